{{/*
The pod of one of the four services. Expects a dict:
  root, service       the chart's scope and the service's name
  env                 YAML list of further environment variables, or ""
  mounts, volumes     YAML lists in addition to /tmp, or ""
  limits              further resource limits, or nil
  tolerations         list
  runtimeClassName    or ""
*/}}
{{- define "chorus.pod" -}}
{{- $values := get .root.Values .service -}}
{{- $port := include "chorus.port" .service | int -}}
{{- $grpc := dict "port" $port "service" (include "chorus.grpcService" .service) -}}
metadata:
  labels:
    {{- include "chorus.selector" (list .root .service) | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "chorus.fullname" .root }}
  automountServiceAccountToken: false
  # Otherwise Kubernetes sets variables such as CHORUS_CACHE_PORT for a release named chorus.
  enableServiceLinks: false
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  # Longer than the drain, after which the service exports spans and closes files.
  terminationGracePeriodSeconds: {{ add (ceil (float64 $values.settings.drain_seconds)) 10 }}
  securityContext:
    {{- include "chorus.podSecurityContext" 10001 | nindent 4 }}
  containers:
    - name: {{ .service }}
      image: {{ printf "%s-%s:%s" .root.Values.image.repository .service (default .root.Chart.AppVersion .root.Values.image.tag) | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [python, -m, services.{{ .service }}]
      ports:
        - name: grpc
          containerPort: {{ $port }}
      env:
        {{- include "chorus.env" (dict "root" .root "service" .service "port" $port "settings" $values.settings) | nindent 8 }}
        {{- with .env }}
        {{- . | nindent 8 }}
        {{- end }}
      # Slightly longer than the service's own limit on its start.
      startupProbe:
        grpc:
          {{- toYaml $grpc | nindent 10 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: {{ add (ceil (divf (float64 $values.settings.startup_seconds) 5)) 6 }}
      readinessProbe:
        grpc:
          {{- toYaml $grpc | nindent 10 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      livenessProbe:
        grpc:
          {{- toYaml $grpc | nindent 10 }}
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 4
      resources:
        {{- $resources := deepCopy $values.resources }}
        {{- if .limits }}
        {{- $_ := set $resources "limits" (merge (deepCopy .limits) (default dict $resources.limits)) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "chorus.containerSecurityContext" true | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- with .mounts }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
  {{- include "chorus.placement" $values | nindent 2 }}
  {{- with .tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "chorus.env" -}}
{{- $prefix := printf "CHORUS_%s_" (upper .service) -}}
- name: {{ $prefix }}HOST
  value: 0.0.0.0
- name: {{ $prefix }}PORT
  value: {{ .port | quote }}
- name: {{ $prefix }}LOG_FORMAT
  value: json
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
  value: k8s.namespace.name={{ $.root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
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
    claimName: {{ . }}
    readOnly: true
{{- end -}}
{{- end }}
