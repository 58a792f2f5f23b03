{{/* Fields of every pod, within the Pod Security Standard "restricted". Takes (list $ "part" uid). */}}
{{- define "toolwise.pod" -}}
{{- $root := index . 0 -}}
{{- $uid := index . 2 -}}
serviceAccountName: {{ include "toolwise.name" (list $root (index . 1)) }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $uid }}
  runAsGroup: {{ $uid }}
  fsGroup: {{ $uid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Replicas on different nodes where there are some. Takes (list $ "part"). */}}
{{- define "toolwise.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "toolwise.selector" . | nindent 8 }}
{{- end -}}

{{- define "toolwise.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Environment variables from the Secret with S3's credentials. */}}
{{- define "toolwise.storageEnvironment" -}}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_ENDPOINT_URL_S3" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.storage.secret }}
      key: {{ . }}
{{- end }}
- name: AWS_DEFAULT_REGION
  valueFrom:
    secretKeyRef:
      name: {{ .Values.storage.secret }}
      key: AWS_DEFAULT_REGION
      optional: true
{{- end -}}

{{/* Environment variables of whatever opens MLflow's database. */}}
{{- define "toolwise.databaseEnvironment" -}}
{{- $database := .Values.mlflow.database -}}
{{- $secret := include "toolwise.databaseSecret" . -}}
- name: HOME
  value: /tmp
# libpq reads both: they need no quoting there, and the address holds no secret.
- name: PGUSER
  {{- if $database.bundled }}
  value: mlflow
  {{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: username
  {{- end }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: password
- name: MLFLOW_BACKEND_STORE_URI
  {{- if $database.bundled }}
  value: postgresql+psycopg2://{{ include "toolwise.name" (list . "postgresql") }}:5432/mlflow
  {{- else }}
  {{- with $database.external }}
  {{- if and (hasPrefix "verify-" .sslMode) (not .caSecret) }}
  {{- fail (printf "mlflow.database.external.caSecret: sslMode %s needs the Secret with the CA of the server's certificate, in its key ca.crt" .sslMode) }}
  {{- end }}
  value: postgresql+psycopg2://{{ required "mlflow.database.external.host: name the PostgreSQL server" .host }}:{{ .port }}/{{ .name }}?sslmode={{ .sslMode }}
  {{- end }}
  {{- end }}
{{- if include "toolwise.databaseCA" . }}
- name: PGSSLROOTCERT
  value: /etc/postgresql-ca/ca.crt
{{- end }}
{{- end -}}

{{/* The Secret with the CA of an external database; empty where there is none. */}}
{{- define "toolwise.databaseCA" -}}
{{- $database := .Values.mlflow.database -}}
{{- if not $database.bundled }}{{ $database.external.caSecret }}{{ end -}}
{{- end -}}

{{/* Mounts of whatever opens MLflow's database. */}}
{{- define "toolwise.databaseMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "toolwise.databaseCA" . }}
- name: database-ca
  mountPath: /etc/postgresql-ca
  readOnly: true
{{- end }}
{{- end -}}
