{{/* Pods that work: steps of pipelines, training jobs and their vLLM servers. */}}
{{- define "toolwise.workers" -}}
pipeline:
  matchExpressions:
    - { key: pipelines.kubeflow.org/v2_component, operator: Exists }
training:
  matchExpressions:
    - { key: jobset.sigs.k8s.io/jobset-name, operator: Exists }
rollouts:
  matchLabels:
    app.kubernetes.io/name: vllm
{{- end -}}

{{/* Pods that KServe makes. Takes nothing. */}}
{{- define "toolwise.endpoints" -}}
matchExpressions:
  - { key: serving.kserve.io/inferenceservice, operator: Exists }
{{- end -}}

{{/* A rule that lets names be looked up. Takes nothing. */}}
{{- define "toolwise.dns" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
  ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
{{- end -}}

{{/* Peers of a rule for S3 and the web: everybody but the link-local addresses, and those of AWS's and
Google's metadata services in IPv6. Pods are named beside the blocks, which need not match them. */}}
{{- define "toolwise.outside" -}}
{{- if not .Values.networkPolicy.metadataService -}}
to:
  - namespaceSelector: {}
  - ipBlock:
      cidr: 0.0.0.0/0
      except: [169.254.0.0/16]
  - ipBlock:
      cidr: "::/0"
      except: ["fe80::/10", "fd00:ec2::/32", "fd20:ce::/32"]
{{- end -}}
{{- end -}}

{{/* Refuses a port of S3 that no rule would let through; silent where the Secret is not there yet. */}}
{{- define "toolwise.checkStoragePort" -}}
{{- $secret := .Values.storage.secret -}}
{{- $found := lookup "v1" "Secret" .Release.Namespace $secret | default dict -}}
{{- $endpoint := dig "data" "AWS_ENDPOINT_URL_S3" "" $found | b64dec | trim -}}
{{- $port := regexFind "^https?://[^/]+:[0-9]+(/|$)" $endpoint | trimSuffix "/" | regexFind "[0-9]+$" -}}
{{- $ports := toStrings .Values.networkPolicy.storagePorts -}}
{{- if and $port (not (has $port $ports)) -}}
{{- fail (printf "networkPolicy.storagePorts: AWS_ENDPOINT_URL_S3 of Secret %s is %s, whose port the network policies would close; add --set 'networkPolicy.storagePorts={%s}'" $secret $endpoint (join "," (append $ports $port))) -}}
{{- end -}}
{{- end -}}

{{/* Who may use MLflow, sandbox and search. */}}
{{- define "toolwise.clients" -}}
- podSelector:
    {{- include "toolwise.endpoints" . | nindent 4 }}
{{- range include "toolwise.workers" . | fromYaml }}
- podSelector:
    {{- toYaml . | nindent 4 }}
{{- end }}
- podSelector:
    matchLabels:
      {{- include "toolwise.selector" (list . "test") | nindent 6 }}
{{- range .Values.networkPolicy.clientNamespaces }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- end -}}
