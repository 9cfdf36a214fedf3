{{/* Checks that the schema cannot express. Without them the pod would not start or would lose its state. */}}
{{- define "ecr-replication-exporter.check" -}}
{{- if and .Values.existingConfigMap .Values.existingConfigSecret }}
{{- fail "existingConfigMap and existingConfigSecret are both set: the configuration comes from one of them, leave the other empty" }}
{{- end }}
{{- include "ecr-replication-exporter.checkState" . }}
{{- include "ecr-replication-exporter.checkWeb" . }}
{{- range $key := list "serviceMonitor" "podMonitor" }}
{{- with get $.Values $key }}
{{- if and .basicAuth .authorization }}
{{- fail (printf "%s has basicAuth and authorization, and the Prometheus operator takes one of them: leave the other empty" $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Each write replaces the state file, so its folder must be in a volume, not only the file. */}}
{{- define "ecr-replication-exporter.checkState" -}}
{{- $file := (default dict .Values.config).state_file }}
{{- if and $file (not (or .Values.existingConfigMap .Values.existingConfigSecret)) }}
{{- $places := dict "folders" (list) }}
{{- if include "ecr-replication-exporter.isStateful" . }}
{{- $_ := set $places "folders" (list .Values.stateFile.mountPath) }}
{{- end }}
{{- range tpl (toYaml (default list .Values.extraVolumeMounts)) . | fromYamlArray }}
{{- if not .readOnly }}
{{- $_ := set $places "folders" (append $places.folders .mountPath) }}
{{- end }}
{{- end }}
{{- $kept := false }}
{{- range $places.folders }}
{{- $kept = or $kept (hasPrefix (printf "%s/" (clean . | trimSuffix "/")) (clean (printf "/%s" $file))) }}
{{- end }}
{{- if not $kept }}
{{- fail (printf "config.state_file is %s, and no volume that can be written is mounted there: leave it out and set stateFile.enabled, or mount a volume with extraVolumes and extraVolumeMounts" $file) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Names in the lists of a pod: (the pod's spec). A second item of a name is refused by Kubernetes, or hides the first. */}}
{{- define "ecr-replication-exporter.checkNames" -}}
{{- $exporter := first .containers }}
{{- $lists := dict
  "extraContainers" (concat (default list .initContainers) .containers)
  "extraVolumes" .volumes
  "extraVolumeMounts" $exporter.volumeMounts
  "extraEnv" (default list $exporter.env)
}}
{{- range $key, $list := $lists }}
{{- $seen := list }}
{{- range $list }}
{{- $name := hasKey . "mountPath" | ternary (clean (default "" .mountPath)) .name }}
{{- if has $name $seen }}
{{- fail (printf "%s: %s is set twice, by the chart or by the values: leave it out, or choose another name or path" $key $name) }}
{{- end }}
{{- $seen = append $seen $name }}
{{- end }}
{{- end }}
{{- end }}

{{/* The chart cannot check a web configuration that extraArgs names. */}}
{{- define "ecr-replication-exporter.checkWeb" -}}
{{- $web := .Values.web }}
{{- if not (or $web.existingSecret (contains "--web.config.file" (join " " .Values.extraArgs))) }}
{{- if and $web.tls (not (default dict $web.config).tls_server_config) }}
{{- fail "web.tls is true, but no web configuration has TLS: name a Secret that does in web.existingSecret, or set web.config.tls_server_config" }}
{{- end }}
{{- if and $web.certificateSecret (not $web.config) }}
{{- fail "web.certificateSecret is set, but no web configuration uses it: name its files in web.config.tls_server_config, or a Secret with a web configuration in web.existingSecret" }}
{{- end }}
{{- end }}
{{- end }}
