{{/*
Null removes a default from the values. Maps are then empty, and values that the exporter needs are as in values.yaml.
Each template calls this first, because Helm renders the templates in no documented order. `merge` replaces 0 and false too, so
the list has no value that may be 0 or false.
*/}}
{{- define "ecr-replication-exporter.defaults" -}}
{{- $needed := dict
  "configKey" "config.yaml"
  "containerPort" 10042
  "shards" 1
  "log" (dict "level" "info" "format" "logfmt")
  "web" (dict "telemetryPath" "/metrics" "maxRequests" 40 "configKey" "web-config.yaml")
  "image" (dict "pullPolicy" "IfNotPresent")
  "service" (dict "type" "ClusterIP" "port" 10042)
  "stateFile" (dict "size" "1Gi" "accessModes" (list "ReadWriteOnce") "mountPath" "/var/lib/ecr-replication-exporter")
  "verticalPodAutoscaler" (dict "updateMode" "Auto")
}}
{{- $maps := list "aws" "serviceAccount" "serviceMonitor" "podMonitor" "networkPolicy" "podDisruptionBudget" "dashboard" "helmTest" }}
{{- range concat $maps (list "startupProbe" "livenessProbe" "readinessProbe" "prometheusRule") }}
{{- $_ := set $needed . dict }}
{{- end }}
{{- $_ := merge .Values $needed }}
{{- end }}

{{/*
Names. A StatefulSet's pods bear its name and a hash of ten characters in a label of at most 63, and other objects
bear it and a suffix of up to eleven: 52 are left. A Service's name has no dot and begins with a letter.
*/}}
{{- define "ecr-replication-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "ecr-replication-exporter.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- /* An alias in a parent chart may have capitals and underscores. */}}
{{- $full = default $full .Values.fullnameOverride | lower | replace "." "-" | replace "_" "-" }}
{{- if regexMatch "^[0-9]" $full }}
{{- $full = printf "ecr-%s" $full }}
{{- end }}
{{- regexReplaceAll "-+$" (trunc 52 $full) "" }}
{{- end }}

{{- define "ecr-replication-exporter.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "ecr-replication-exporter.serviceAccountName" -}}
{{- $default := ternary (include "ecr-replication-exporter.fullname" .) "default" (default false .Values.serviceAccount.create) }}
{{- default $default .Values.serviceAccount.name }}
{{- end }}

{{/* Labels. Selector labels of a workload are immutable, so labels from the values never override them. */}}
{{- define "ecr-replication-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ecr-replication-exporter.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "ecr-replication-exporter.labels" -}}
{{- $own := include "ecr-replication-exporter.selectorLabels" . | fromYaml }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- $_ := set $own "app.kubernetes.io/version" (.Chart.AppVersion | replace "+" "_" | trunc 63) }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- merge $own (default dict .Values.commonLabels) | toYaml }}
{{- end }}

{{/* Not the chart's version: an upgrade that changes nothing else restarts no pod. */}}
{{- define "ecr-replication-exporter.podLabels" -}}
{{- $own := include "ecr-replication-exporter.selectorLabels" . | fromYaml }}
{{- merge $own (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml }}
{{- end }}

{{/*
Metadata of an object: (dict "root" . "suffix" "" "labels" dict "annotations" dict). A component
label lets a ServiceMonitor select one Service, so labels from the values never override it.
*/}}
{{- define "ecr-replication-exporter.metadata" -}}
name: "{{ include "ecr-replication-exporter.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}"
namespace: {{ default (include "ecr-replication-exporter.namespace" .root) .namespace | quote }}
labels:
  {{- $component := ternary (dict "app.kubernetes.io/component" .component) dict (hasKey . "component") }}
  {{- merge $component (include "ecr-replication-exporter.labels" .root | fromYaml) (default dict .labels) | toYaml | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ecr-replication-exporter.image" -}}
{{- $image := .Values.image }}
{{- $repository := required "image.repository is empty: build the image and name it (README.md, An image of your own)" $image.repository }}
{{- $registry := default $image.registry (.Values.global).imageRegistry }}
{{- $name := list $registry $repository | compact | join "/" }}
{{- $tag := default .Chart.AppVersion $image.tag }}
{{- ternary (printf "%s@%s" $name $image.digest) (printf "%s:%s" $name $tag) (not (empty $image.digest)) }}
{{- end }}

{{/* As a list. In `global` some charts write names, others maps. */}}
{{- define "ecr-replication-exporter.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default list (.Values.global).imagePullSecrets) (default list .Values.imagePullSecrets) }}
{{- $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- with $secrets }}{{ uniq . | toYaml }}{{ end }}
{{- end }}

{{/* Shapes */}}
{{- define "ecr-replication-exporter.isStateful" -}}
{{- if or .Values.stateFile.enabled (gt (int .Values.shards) 1) }}true{{ end }}
{{- end }}

{{- define "ecr-replication-exporter.reloads" -}}
{{- if regexMatch "[1-9]" (default "" .Values.autoReloadInterval) }}true{{ end }}
{{- end }}

{{/* How a workload is updated. Kubernetes refuses `rollingUpdate`, which has a default, beside another type. */}}
{{- define "ecr-replication-exporter.strategy" -}}
{{- ternary . (omit . "rollingUpdate") (eq (default "RollingUpdate" .type) "RollingUpdate") | toYaml }}
{{- end }}

{{/* The configuration, and where to keep the state if there is a place for it. */}}
{{- define "ecr-replication-exporter.config" -}}
{{- $config := required "config is empty: name its targets, an existingConfigMap or an existingConfigSecret" .Values.config | deepCopy }}
{{- if and (include "ecr-replication-exporter.isStateful" .) (not $config.state_file) }}
{{- $_ := set $config "state_file" (printf "%s/state" .Values.stateFile.mountPath) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* The web configuration */}}
{{- define "ecr-replication-exporter.webSecret" -}}
{{- if .Values.web.existingSecret }}
{{- tpl .Values.web.existingSecret . }}
{{- else if .Values.web.config }}
{{- include "ecr-replication-exporter.fullname" . }}-web
{{- end }}
{{- end }}

{{- define "ecr-replication-exporter.scheme" -}}
{{- if or .Values.web.tls (default dict .Values.web.config).tls_server_config }}https{{ else }}http{{ end }}
{{- end }}

{{/* Probes of Kubernetes have no client certificate and no password, so they check only that the port is open. */}}
{{- define "ecr-replication-exporter.isLocked" -}}
{{- $web := default dict .Values.web.config }}
{{- $tls := default dict $web.tls_server_config }}
{{- if or $web.basic_auth_users (eq (default "" $tls.client_auth_type) "RequireAndVerifyClientCert") }}true{{ end }}
{{- end }}

{{/* (dict "root" . "probe" .Values.livenessProbe "path" "/-/healthy") */}}
{{- define "ecr-replication-exporter.probe" -}}
{{- $probe := omit (deepCopy .probe) "enabled" }}
{{- /* A probe has one handler: another one takes the place of the chart's, and of an httpGet of other values. */}}
{{- if pick $probe "exec" "grpc" "tcpSocket" }}
{{- $probe = omit $probe "httpGet" }}
{{- else }}
{{- if and (include "ecr-replication-exporter.isLocked" .root) (not $probe.httpGet) }}
{{- $probe = merge (dict "tcpSocket" (dict "port" "http")) $probe }}
{{- else }}
{{- $scheme := include "ecr-replication-exporter.scheme" .root | upper }}
{{- $probe = merge $probe (dict "httpGet" (dict "path" .path "port" "http" "scheme" $scheme)) }}
{{- end }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{- define "ecr-replication-exporter.testLabels" -}}
app.kubernetes.io/name: "{{ include "ecr-replication-exporter.name" . }}-test"
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* 0 is a value here; null and "" are not. */}}
{{- define "ecr-replication-exporter.budget" -}}
{{- $least := .Values.podDisruptionBudget.minAvailable | toJson | trimAll "\"" | replace "null" "" }}
{{- $most := .Values.podDisruptionBudget.maxUnavailable | toJson | trimAll "\"" | replace "null" "" }}
{{- if $least }}minAvailable: {{ $least }}
{{- else if $most }}maxUnavailable: {{ $most }}
{{- else }}{{ fail "podDisruptionBudget has neither minAvailable nor maxUnavailable: give one of them a number or a percentage" }}
{{- end }}
{{- end }}

{{/* True if the budget allows no eviction even when all pods are healthy. Kubernetes rounds both percentages up. */}}
{{- define "ecr-replication-exporter.isDrainBlocked" -}}
{{- $shards := int .Values.shards }}
{{- $budget := include "ecr-replication-exporter.budget" . }}
{{- $number := regexFind "[0-9]+" $budget | int }}
{{- if hasSuffix "%" $budget }}
{{- $number = div (add (mul $number $shards) 99) 100 | int }}
{{- end }}
{{- if ternary (ge $number $shards) (eq $number 0) (hasPrefix "minAvailable" $budget) }}true{{ end }}
{{- end }}
