{{/* Name of a part: <release>-<part>. Takes (list $ "part"). */}}
{{- define "toolwise.name" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" ($root.Release.Name | trunc 40 | trimSuffix "-") (index . 1) -}}
{{- end -}}

{{/* Labels that select the pods of a part. Takes (list $ "part"). */}}
{{- define "toolwise.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every pod: none that changes with a version, which would restart it. Takes (list $ "part"). */}}
{{- define "toolwise.podLabels" -}}
{{ include "toolwise.selector" . }}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: toolwise
{{- end -}}

{{/* Labels of every object. Takes (list $ "part"). */}}
{{- define "toolwise.labels" -}}
{{- $root := index . 0 -}}
{{ include "toolwise.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Metadata of every object. Takes (list $ "part"). */}}
{{- define "toolwise.metadata" -}}
name: {{ include "toolwise.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "toolwise.labels" . | nindent 2 }}
{{- end -}}

{{/* One of Toolwise's own images. Takes (list $ "image"). */}}
{{- define "toolwise.image" -}}
{{- $root := index . 0 -}}
{{- printf "%s/%s:%s" $root.Values.image.registry (index . 1) ($root.Values.image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{/* The Secret with PostgreSQL's password. */}}
{{- define "toolwise.databaseSecret" -}}
{{- $database := .Values.mlflow.database -}}
{{- if $database.bundled -}}
{{- $database.secret | default (include "toolwise.name" (list . "postgresql")) -}}
{{- else -}}
{{- required "mlflow.database.external.secret: name a Secret with the keys username and password" $database.external.secret -}}
{{- end -}}
{{- end -}}

{{/* What is in a Secret that an earlier install made, or else new. Takes (list $ "secret" "key"). */}}
{{- define "toolwise.generated" -}}
{{- $root := index . 0 -}}
{{- $found := lookup "v1" "Secret" $root.Release.Namespace (index . 1) -}}
{{- $kept := dig "data" (index . 2) "" ($found | default dict) -}}
{{- $kept | default (randAlphaNum 40 | b64enc) -}}
{{- end -}}
