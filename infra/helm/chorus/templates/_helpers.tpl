{{/* Names, labels and parts shared by the pods of several components. */}}

{{/*
Prefix of all names. Names of services begin with a letter and have no dot. The longest name is that of a
StatefulSet's pods with their hash, at most 63 characters.
*/}}
{{- define "chorus.fullname" -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- $name := printf "%s-%s" $release .Chart.Name -}}
{{- if contains .Chart.Name $release -}}
{{- $name = $release -}}
{{- end -}}
{{- if regexMatch "^[^a-z]" $name -}}
{{- $name = printf "%s-%s" .Chart.Name $release -}}
{{- end -}}
{{- default $name .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end }}

{{/* Name of the service account of the services. */}}
{{- define "chorus.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "chorus.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* Name of a component's objects: (list $ "cache"). */}}
{{- define "chorus.name" -}}
{{- printf "%s-%s" (include "chorus.fullname" (index . 0)) (index . 1) -}}
{{- end }}

{{/* Labels that select a component's pods: (list $ "cache"). */}}
{{- define "chorus.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name | quote }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 | quote }}
{{- end }}

{{- define "chorus.metadata" -}}
name: {{ include "chorus.name" . | quote }}
labels:
  {{- include "chorus.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ (index . 0).Release.Service | quote }}
  helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "chorus.port" -}}
{{- get (dict "scheduler" 7400 "embedder" 7401 "cache" 7402 "denoiser" 7403 "gateway" 7404) . -}}
{{- end }}

{{/* Port of the scheduler's health checks where its own port uses TLS; empty without TLS. */}}
{{- define "chorus.healthPort" -}}
{{- if .Values.scheduler.tls.existingSecret }}7410{{ end -}}
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

{{- define "chorus.claimSpec" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ ternary "" . (eq . "-") | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size | quote }}
{{- end }}

{{/* Whether the gateway calls the cache, for its console: "true" or empty. */}}
{{- define "chorus.consoleCache" -}}
{{- if and .Values.gateway.console.cache (ne (get .Values.gateway.settings "console" | toString) "false") }}true{{ end -}}
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
