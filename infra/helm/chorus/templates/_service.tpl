{{/*
The pod of one of the services. Expects a dict:
  root, service       the chart's scope and the service's name
  env                 YAML list of further environment variables, or ""
  mounts, volumes     YAML lists in addition to /tmp, or ""
  limits              further resource limits, or nil
  tolerations         list
  runtimeClassName    or ""
  healthPort          port of the probes if it is another one than that of the service, or nil
  httpScheme          HTTP or HTTPS for a service that speaks HTTP, or nil for gRPC
*/}}
{{- define "chorus.pod" -}}
{{- $values := get .root.Values .service -}}
{{- $port := include "chorus.port" .service | int -}}
{{- $probe := dict "grpc" (dict "port" (default $port .healthPort | int) "service" (include "chorus.grpcService" .service)) -}}
{{- $protocol := "grpc" -}}
{{- if .httpScheme -}}
{{- $probe = dict "httpGet" (dict "path" "/health" "port" $port "scheme" .httpScheme) -}}
{{- $protocol = "http" -}}
{{- end -}}
{{- $image := printf "%s-%s:%s" .root.Values.image.repository .service (default .root.Chart.AppVersion .root.Values.image.tag) -}}
metadata:
  {{- include "chorus.podMetadata" (list .root .service dict) | nindent 2 }}
spec:
  {{- include "chorus.podSpec" (dict
    "root" .root
    "component" .service
    "serviceAccount" (include "chorus.serviceAccount" .root)
    "tolerations" .tolerations
    "runtimeClassName" .runtimeClassName) | nindent 2 }}
  # Longer than the drain, after which the service exports spans and closes files.
  terminationGracePeriodSeconds: {{ add (ceil (float64 $values.settings.drain_seconds)) 10 }}
  containers:
    - name: {{ .service }}
      image: {{ default $image $values.image | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy | quote }}
      command: [python, -m, services.{{ .service }}]
      ports:
        - name: {{ $protocol }}
          containerPort: {{ $port }}
        {{- with .healthPort }}
        - name: health
          containerPort: {{ . }}
        {{- end }}
        {{- if .root.Values.metrics.enabled }}
        - name: metrics
          containerPort: {{ .root.Values.metrics.port | int }}
        {{- end }}
      {{- $env := include "chorus.env" (dict "root" .root "service" .service "port" $port "settings" $values.settings) }}
      {{- include "chorus.containerEnv" (list .root .service (printf "%s\n%s" $env .env)) | nindent 6 }}
      # Slightly longer than the service's own limit on its start.
      startupProbe:
        {{- toYaml $probe | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: {{ add (ceil (divf (float64 $values.settings.startup_seconds) 5)) 6 }}
      readinessProbe:
        {{- toYaml $probe | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      livenessProbe:
        {{- toYaml $probe | nindent 8 }}
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 4
      resources:
        {{- $resources := deepCopy $values.resources }}
        {{- if .limits }}
        {{- $_ := set $resources "limits" (merge (deepCopy .limits) (default dict $resources.limits)) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      {{- include "chorus.containerSecurityContext" (list .root .service) | nindent 6 }}
      volumeMounts:
        {{- include "chorus.extend" (dict
          "root" .root
          "component" .service
          "field" "extraVolumeMounts"
          "key" "mountPath"
          "own" (printf "- name: tmp\n  mountPath: /tmp\n%s" .mounts)) | nindent 8 }}
    {{- with include "chorus.extraContainers" (list .root .service) }}
    {{- . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "chorus.extend" (dict
      "root" .root
      "component" .service
      "field" "extraVolumes"
      "key" "name"
      "own" (printf "- name: tmp\n  emptyDir: {}\n%s" .volumes)) | nindent 4 }}
{{- end }}

{{- define "chorus.env" -}}
{{- $prefix := printf "CHORUS_%s_" (upper .service) -}}
- name: {{ $prefix }}HOST
  value: {{ .root.Values.network.listenHost | quote }}
- name: {{ $prefix }}PORT
  value: {{ .port | quote }}
- name: {{ $prefix }}LOG_FORMAT
  value: json
{{- if .root.Values.metrics.enabled }}
- name: {{ $prefix }}METRICS_HOST
  value: {{ .root.Values.network.listenHost | quote }}
- name: {{ $prefix }}METRICS_PORT
  value: {{ include "chorus.scalar" .root.Values.metrics.port | quote }}
{{- end }}
{{- range $name, $value := .settings }}
{{- if not (kindIs "invalid" $value) }}
- name: {{ $prefix }}{{ upper $name }}
  value: {{ include "chorus.scalar" $value | quote }}
{{- end }}
{{- end }}
{{- with include "chorus.otlp" .root }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=%s,k8s.pod.name=$(POD_NAME)" $.root.Release.Namespace | quote }}
- name: OTEL_METRICS_EXPORTER
  value: {{ ternary "otlp" "none" $.root.Values.telemetry.metrics }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $.root.Values.telemetry.sampleRatio | quote }}
{{- end }}
{{- end }}

{{/* Volume of models or encoders from a service's values; empty if it has none. */}}
{{- define "chorus.weightsMount" -}}
{{- if .weights.existingClaim -}}
- name: weights
  mountPath: /weights
  readOnly: true
{{- end -}}
{{- end }}

{{- define "chorus.weightsVolume" -}}
{{- with .weights.existingClaim -}}
- name: weights
  persistentVolumeClaim:
    claimName: {{ . | quote }}
    readOnly: true
{{- end -}}
{{- end }}

{{/* Variable with a service's key of the cache: (list . <variable> <key of the secret>); empty without a secret. */}}
{{- define "chorus.cacheKey" -}}
{{- with (index . 0).Values.cache.keys.existingSecret }}
- name: {{ index $ 1 }}
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: {{ index $ 2 }}}
{{- end }}
{{- end }}
