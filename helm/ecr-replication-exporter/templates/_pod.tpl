{{/* The pod template of the Deployment and the StatefulSet. */}}
{{- define "ecr-replication-exporter.podTemplate" -}}
{{- include "ecr-replication-exporter.check" . }}
{{- $pod := include "ecr-replication-exporter.pod" . }}
{{- include "ecr-replication-exporter.checkNames" (fromYaml $pod).spec }}
{{- $pod }}
{{- end }}

{{- define "ecr-replication-exporter.pod" -}}
{{- $annotations := deepCopy (default dict .Values.podAnnotations) }}
{{- if not (or (include "ecr-replication-exporter.reloads" .) .Values.existingConfigMap .Values.existingConfigSecret) }}
{{- $_ := set $annotations "checksum/config" (include "ecr-replication-exporter.config" . | sha256sum) }}
{{- end }}
{{- $webSecret := include "ecr-replication-exporter.webSecret" . }}
metadata:
  labels:
    {{- include "ecr-replication-exporter.podLabels" . | nindent 4 }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "ecr-replication-exporter.serviceAccountName" . | quote }}
  automountServiceAccountToken: {{ default false .Values.serviceAccount.automount }}
  enableServiceLinks: false
  {{- if not (kindIs "invalid" .Values.terminationGracePeriodSeconds) }}
  terminationGracePeriodSeconds: {{ int64 .Values.terminationGracePeriodSeconds }}
  {{- end }}
  {{- with include "ecr-replication-exporter.imagePullSecrets" . }}
  imagePullSecrets:
    {{- nindent 4 . }}
  {{- end }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.dnsPolicy }}
  dnsPolicy: {{ . }}
  {{- end }}
  {{- with .Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- tpl (toYaml .) $ | nindent 4 }}
  {{- end }}
  containers:
    - name: exporter
      image: {{ include "ecr-replication-exporter.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - --config.file=/etc/ecr-replication-exporter/config/{{ .Values.configKey }}
        {{- if include "ecr-replication-exporter.reloads" . }}
        - --config.auto-reload-interval={{ .Values.autoReloadInterval }}
        {{- end }}
        - --web.listen-address=:{{ .Values.containerPort }}
        - {{ printf "--web.telemetry-path=%s" .Values.web.telemetryPath | quote }}
        {{- if $webSecret }}
        - --web.config.file=/etc/ecr-replication-exporter/web/{{ .Values.web.configKey }}
        {{- end }}
        {{- if .Values.web.enableLifecycle }}
        - --web.enable-lifecycle
        {{- end }}
        - --web.max-requests={{ int64 .Values.web.maxRequests }}
        - --log.level={{ .Values.log.level }}
        - --log.format={{ .Values.log.format }}
        {{- if gt (int .Values.shards) 1 }}
        - --shard=auto
        - --total-shards={{ .Values.shards }}
        {{- end }}
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if or .Values.aws.region (include "ecr-replication-exporter.isStateful" .) .Values.extraEnv }}
      env:
        {{- if include "ecr-replication-exporter.isStateful" . }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- end }}
        {{- with .Values.aws.region }}
        - name: AWS_REGION
          value: {{ . | quote }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- tpl (toYaml .) $ | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- tpl (toYaml .) $ | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ .Values.containerPort }}
          protocol: TCP
      {{- if .Values.startupProbe.enabled }}
      startupProbe:
        {{- include "ecr-replication-exporter.probe" (dict "root" . "probe" .Values.startupProbe "path" "/-/healthy") | nindent 8 }}
      {{- end }}
      {{- if .Values.livenessProbe.enabled }}
      livenessProbe:
        {{- include "ecr-replication-exporter.probe" (dict "root" . "probe" .Values.livenessProbe "path" "/-/healthy") | nindent 8 }}
      {{- end }}
      {{- if .Values.readinessProbe.enabled }}
      readinessProbe:
        {{- include "ecr-replication-exporter.probe" (dict "root" . "probe" .Values.readinessProbe "path" "/-/ready") | nindent 8 }}
      {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        # Directories, because Kubernetes never updates files that are mounted by subPath.
        - name: config
          mountPath: /etc/ecr-replication-exporter/config
          readOnly: true
        {{- if $webSecret }}
        - name: web
          mountPath: /etc/ecr-replication-exporter/web
          readOnly: true
        {{- end }}
        {{- if .Values.web.certificateSecret }}
        - name: certificate
          mountPath: /etc/ecr-replication-exporter/tls
          readOnly: true
        {{- end }}
        {{- if include "ecr-replication-exporter.isStateful" . }}
        - name: state
          mountPath: {{ .Values.stateFile.mountPath | quote }}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- tpl (toYaml .) $ | nindent 8 }}
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- tpl (toYaml .) $ | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      {{- if .Values.existingConfigSecret }}
      secret:
        secretName: {{ tpl .Values.existingConfigSecret . | quote }}
      {{- else }}
      configMap:
        name: {{ default (include "ecr-replication-exporter.fullname" .) (tpl (default "" .Values.existingConfigMap) .) | quote }}
      {{- end }}
    {{- if $webSecret }}
    - name: web
      secret:
        secretName: {{ $webSecret | quote }}
    {{- end }}
    {{- if .Values.web.certificateSecret }}
    - name: certificate
      secret:
        secretName: {{ tpl .Values.web.certificateSecret . | quote }}
    {{- end }}
    {{- if and (include "ecr-replication-exporter.isStateful" .) (not .Values.stateFile.persistent) }}
    - name: state
      emptyDir: {}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- tpl (toYaml .) $ | nindent 4 }}
    {{- end }}
{{- end }}
