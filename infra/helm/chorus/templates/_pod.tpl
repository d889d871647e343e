{{/* Parts of the pods of every component, from the values that all components have. */}}

{{/* Metadata of a pod: (list $ "cache" <dict of the chart's annotations>). */}}
{{- define "chorus.podMetadata" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
labels:
  {{- include "chorus.selector" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := deepCopy (default dict $values.podAnnotations) -}}
{{- range $key, $value := index . 2 -}}
{{- $_ := set $annotations $key $value -}}
{{- end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Fields of a pod other than its containers and volumes. Expects a dict:
  root, component
  serviceAccount      name, used unless the values name another; or ""
  tolerations         list
  runtimeClassName    or ""
*/}}
{{- define "chorus.podSpec" -}}
{{- $values := get .root.Values .component -}}
{{- with default .serviceAccount $values.serviceAccountName -}}
serviceAccountName: {{ . | quote }}
{{ end -}}
automountServiceAccountToken: false
# Otherwise Kubernetes sets variables such as CHORUS_CACHE_PORT for a release named chorus.
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with include "chorus.securityContext" (list .root.Values.podSecurityContext $values.podSecurityContext) }}
securityContext:
  {{- . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := deepCopy . }}
  {{- if not (hasKey . "labelSelector") }}
  {{- $_ := set $constraint "labelSelector" (dict "matchLabels" (fromYaml (include "chorus.selector" (list $.root $.component)))) }}
  {{- end }}
  - {{- toYaml $constraint | nindent 4 }}
  {{- end }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.extraInitContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A security context merged over another one, without the keys that are null; empty if none is left. */}}
{{- define "chorus.securityContext" -}}
{{- $merged := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := $merged -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $merged $key -}}
{{- end -}}
{{- end -}}
{{- with $merged }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* Security context of a component's container: (list $ "cache"). */}}
{{- define "chorus.containerSecurityContext" -}}
{{- $root := index . 0 -}}
{{- with include "chorus.securityContext" (list $root.Values.containerSecurityContext (get $root.Values (index . 1)).containerSecurityContext) -}}
securityContext:
  {{- . | nindent 2 }}
{{- end -}}
{{- end }}

{{/*
Environment of a component's container: (list $ "cache" <YAML list of the chart's variables>). Rejects a variable
of the values that the chart sets, because Kubernetes would silently take one of the two.
*/}}
{{- define "chorus.containerEnv" -}}
{{- $component := index . 1 -}}
{{- $values := get (index . 0).Values $component -}}
{{- $names := list -}}
{{- range fromYamlArray (index . 2) -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if has .name $names -}}
{{- fail (printf "%s.extraEnv: %s is set twice, or by the chart: use %s.settings, or the value from which the chart derives it" $component .name $component) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
env:
  {{- index . 2 | trim | nindent 2 }}
  {{- with $values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Items of the values for a list that the chart begins: (list .Values.cache.extraVolumes 8), with the indent. */}}
{{- define "chorus.items" -}}
{{- $indent := index . 1 -}}
{{- with index . 0 }}
{{- toYaml . | nindent $indent }}
{{- end -}}
{{- end }}
