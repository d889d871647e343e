{{/* Peers and ports of network policies. */}}

{{/* The pods of a component: (list $ "cache"). */}}
{{- define "chorus.peer" -}}
- podSelector:
    matchLabels:
      {{- include "chorus.selector" . | nindent 6 }}
{{- end }}

{{/* The port of a URI or host:port: (list "https://milvus.example:19530" 443). */}}
{{- define "chorus.portOf" -}}
{{- regexFind ":[0-9]+$" (index . 0 | trimSuffix "/") | trimPrefix ":" | default (toString (index . 1)) -}}
{{- end }}

{{/* Ingress to one port: (dict "port" 7402 "from" "<YAML list of peers>"). */}}
{{- define "chorus.ingress" -}}
- from:
    {{- .from | nindent 4 }}
  ports:
    - protocol: TCP
      port: {{ .port | int }}
{{- end }}

{{/* Ingress of Prometheus to the metrics port of a service; empty without one. */}}
{{- define "chorus.ingressMetrics" -}}
{{- if .Values.metrics.enabled -}}
{{- include "chorus.ingress" (dict "from" (toYaml .Values.metrics.scrapers) "port" .Values.metrics.port) -}}
{{- end -}}
{{- end }}

{{- define "chorus.egress" -}}
- to:
    {{- .to | nindent 4 }}
  ports:
    - protocol: TCP
      port: {{ .port | int }}
{{- end }}

{{/* Egress to one of the services: (list $ "cache"). */}}
{{- define "chorus.egressTo" -}}
{{- include "chorus.egress" (dict "to" (include "chorus.peer" .) "port" (include "chorus.port" (index . 1))) -}}
{{- end }}

{{- define "chorus.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - protocol: UDP
      port: {{ . }}
    - protocol: TCP
      port: {{ . }}
    {{- end }}
{{- end }}

{{/* Egress of all services: DNS and the OTLP receiver. */}}
{{- define "chorus.egressCommon" -}}
{{- include "chorus.egressDns" . }}
{{- if and .Values.telemetry.enabled .Values.collector.enabled }}
{{ include "chorus.egress" (dict "to" (include "chorus.peer" (list . "collector")) "port" 4317) }}
{{- else if include "chorus.otlp" . }}
{{ include "chorus.egress" (dict "to" (toYaml .Values.telemetry.peers) "port" (include "chorus.portOf" (list .Values.telemetry.endpoint 4317))) }}
{{- end }}
{{- end }}

{{/* IP families of a service; without values the cluster chooses. */}}
{{- define "chorus.ipFamilies" -}}
{{- $families := dict -}}
{{- with .Values.network.ipFamilyPolicy }}{{ $_ := set $families "ipFamilyPolicy" . }}{{ end -}}
{{- with .Values.network.ipFamilies }}{{ $_ := set $families "ipFamilies" . }}{{ end -}}
{{- with $families }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* An address to listen on, for programs that write IPv6 addresses in brackets. */}}
{{- define "chorus.bracketedListenHost" -}}
{{- ternary "[::]" .Values.network.listenHost (eq .Values.network.listenHost "::") -}}
{{- end }}
