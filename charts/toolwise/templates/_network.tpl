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
