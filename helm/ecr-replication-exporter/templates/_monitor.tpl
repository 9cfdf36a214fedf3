{{/* How Prometheus scrapes: the same for a ServiceMonitor's endpoint and a PodMonitor's. (dict "root" . "monitor" ...) */}}
{{- define "ecr-replication-exporter.endpoint" -}}
port: http
path: {{ .root.Values.web.telemetryPath | quote }}
scheme: {{ include "ecr-replication-exporter.scheme" .root }}
{{- with .monitor.interval }}
interval: {{ . }}
{{- end }}
{{- with .monitor.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
honorLabels: {{ default false .monitor.honorLabels }}
{{- with .monitor.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.basicAuth }}
basicAuth:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.authorization }}
authorization:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.proxyUrl }}
proxyUrl: {{ . | quote }}
{{- end }}
{{- with .monitor.relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What both say about all that they scrape. */}}
{{- define "ecr-replication-exporter.monitorSpec" -}}
{{- with .monitor.jobLabel }}
jobLabel: {{ . | quote }}
{{- end }}
{{- with .monitor.podTargetLabels }}
podTargetLabels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .monitor.sampleLimit }}
sampleLimit: {{ int64 . }}
{{- end }}
{{- with .monitor.targetLimit }}
targetLimit: {{ int64 . }}
{{- end }}
{{- with .monitor.labelLimit }}
labelLimit: {{ int64 . }}
{{- end }}
namespaceSelector:
  matchNames:
    - {{ include "ecr-replication-exporter.namespace" .root | quote }}
selector:
  matchLabels:
    {{- include "ecr-replication-exporter.selectorLabels" .root | nindent 4 }}
    {{- with .component }}
    app.kubernetes.io/component: {{ . }}
    {{- end }}
{{- end }}
