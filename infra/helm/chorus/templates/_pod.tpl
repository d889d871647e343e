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
Rejects items of the values that the chart or an earlier item sets: the API server refuses two volumes, mounts or
containers of one name or path, and silently takes one of two variables. Expects a dict:
  path, items   the list of the values and its path
  key           field that distinguishes the items
  taken         list of the chart's own values of that field
  remedy
*/}}
{{- define "chorus.rejectDuplicates" -}}
{{- $key := .key -}}
{{- $taken := list -}}
{{- range .taken -}}
{{- $taken = append $taken (clean .) -}}
{{- end -}}
{{- range .items -}}
{{- /* A path with a trailing slash is the same path; names contain no slash. */ -}}
{{- $value := get . $key | clean -}}
{{- if has $value $taken -}}
{{- fail (printf "%s: %s is set twice, or by the chart: %s" $.path $value $.remedy) -}}
{{- end -}}
{{- $taken = append $taken $value -}}
{{- end -}}
{{- end }}

{{/* Environment of a component's container: (list $ "cache" <YAML list of the chart's variables>). */}}
{{- define "chorus.containerEnv" -}}
{{- $component := index . 1 -}}
{{- $values := get (index . 0).Values $component -}}
{{- $names := list -}}
{{- range fromYamlArray (index . 2) -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- include "chorus.rejectDuplicates" (dict
  "path" (printf "%s.extraEnv" $component)
  "items" $values.extraEnv
  "key" "name"
  "taken" $names
  "remedy" (printf "use %s.settings, or the value from which the chart derives it" $component)) -}}
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

{{/*
The chart's items of a list and those of the values. Expects a dict:
  root, component
  field, key    such as "extraVolumes", and the field that distinguishes the items
  own           YAML list of the chart's items
  taken         further values of `key` that the chart sets elsewhere, or nil
*/}}
{{- define "chorus.extend" -}}
{{- $key := .key -}}
{{- $items := get (get .root.Values .component) .field -}}
{{- $taken := default list .taken -}}
{{- range fromYamlArray .own -}}
{{- $taken = append $taken (get . $key) -}}
{{- end -}}
{{- include "chorus.rejectDuplicates" (dict
  "path" (printf "%s.%s" .component .field)
  "items" $items
  "key" $key
  "taken" $taken
  "remedy" (printf "choose another %s" $key)) -}}
{{- .own | trim }}
{{- with $items }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Further containers of a pod, after the component's own: (list $ "cache"). */}}
{{- define "chorus.extraContainers" -}}
{{- $component := index . 1 -}}
{{- $values := get (index . 0).Values $component -}}
{{- $names := list $component -}}
{{- range $field := list "extraContainers" "extraInitContainers" -}}
{{- /* Containers and init containers share one namespace. */ -}}
{{- $items := get $values $field -}}
{{- include "chorus.rejectDuplicates" (dict
  "path" (printf "%s.%s" $component $field)
  "items" $items
  "key" "name"
  "taken" $names
  "remedy" "choose another name") -}}
{{- range $items -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- with $values.extraContainers }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* Items of the values for a list that the chart begins: (list .Values.cache.extraEgress 4), with the indent. */}}
{{- define "chorus.items" -}}
{{- $indent := index . 1 -}}
{{- with index . 0 }}
{{- toYaml . | nindent $indent }}
{{- end -}}
{{- end }}
