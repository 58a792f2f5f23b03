{{/* Start of a pod that `helm test` runs: metadata and what every pod has. Takes (list $ "what"). */}}
{{- define "toolwise.testMetadata" -}}
{{- $root := index . 0 -}}
name: {{ include "toolwise.name" (list $root (printf "test-%s" (index . 1))) }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "toolwise.labels" (list $root "test") | nindent 2 }}
annotations:
  helm.sh/hook: test
  # Pods stay until the next test: `helm test --logs` reads their logs after they have ended.
  helm.sh/hook-delete-policy: before-hook-creation
{{- end -}}

{{/* Amounts of every test. */}}
{{- define "toolwise.testResources" -}}
resources:
  requests: { cpu: 50m, memory: 64Mi }
  limits: { cpu: 500m, memory: 256Mi }
{{- end -}}
