{{/* Names, labels and parts shared by the pods of several components. */}}

{{- define "chorus.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Name of a component's objects: (list $ "cache"). */}}
{{- define "chorus.name" -}}
{{- printf "%s-%s" (include "chorus.fullname" (index . 0)) (index . 1) -}}
{{- end }}

{{/* Labels that select a component's pods: (list $ "cache"). */}}
{{- define "chorus.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "chorus.metadata" -}}
name: {{ include "chorus.name" . }}
labels:
  {{- include "chorus.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "chorus.port" -}}
{{- get (dict "scheduler" 7400 "embedder" 7401 "cache" 7402 "denoiser" 7403) . -}}
{{- end }}

{{/* Full protobuf name of a service, which health probes use. */}}
{{- define "chorus.grpcService" -}}
{{- printf "chorus.%s.v1.%sService" . (title .) -}}
{{- end }}

{{/* host:port of a service: (list $ "cache"). */}}
{{- define "chorus.target" -}}
{{- printf "%s:%s" (include "chorus.name" .) (include "chorus.port" (index . 1)) -}}
{{- end }}

{{/* http(s)://host:port of the OTLP receiver; empty if telemetry is disabled. */}}
{{- define "chorus.otlp" -}}
{{- if .Values.telemetry.enabled -}}
{{- if .Values.collector.enabled -}}
http://{{ include "chorus.name" (list . "collector") }}:4317
{{- else -}}
{{- .Values.telemetry.endpoint -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A value as text for an environment variable: integers without an exponent. */}}
{{- define "chorus.scalar" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end }}

{{- define "chorus.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "chorus.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ . }}
capabilities:
  drop: [ALL]
{{- end }}

{{- define "chorus.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "chorus.claimSpec" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}

{{/* Whether an optional component is installed: "true" or empty. */}}
{{- define "chorus.bundlesMinio" -}}
{{- if and .Values.minio.enabled (eq .Values.cache.blobs "s3") }}true{{ end -}}
{{- end }}

{{- define "chorus.bundlesCollector" -}}
{{- if and .Values.telemetry.enabled .Values.collector.enabled }}true{{ end -}}
{{- end }}

{{- define "chorus.bundlesJaeger" -}}
{{- if and (include "chorus.bundlesCollector" .) .Values.jaeger.enabled }}true{{ end -}}
{{- end }}
