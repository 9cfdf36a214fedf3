{{/*
The rule groups of files/alerts.yaml. Each <word> is replaced by its value in prometheusRule.alerts. Disabled alerts and
empty groups are omitted.
*/}}
{{- define "ecr-replication-exporter.ruleGroups" -}}
{{- $rule := .Values.prometheusRule }}
{{- $source := .Files.Get "files/alerts.yaml" | fromYaml }}
{{- $selector := default "" $rule.selector | trim | trimSuffix "," | trim }}
{{- $groups := list }}
{{- range $group := $source.groups }}
  {{- $alerts := list }}
  {{- range $asked := $group.rules }}
    {{- $knobs := get (default dict $rule.alerts) $asked.alert | default dict }}
    {{- if $knobs.enabled }}
      {{- $texts := dict "expr" $asked.expr "summary" $asked.summary "description" $asked.description }}
      {{- range $key, $text := $texts }}
        {{- range $words := list $source.words $knobs }}
          {{- range $word, $meaning := $words }}
            {{- $text = replace (printf "<%s>" $word) (toString $meaning) $text }}
          {{- end }}
        {{- end }}
        {{- $text = replace "{<selector>}" (empty $selector | ternary "" (printf "{%s}" $selector)) $text }}
        {{- $text = replace "<selector>" (empty $selector | ternary "" (printf "%s," $selector)) $text }}
        {{- with regexFind "<[a-z][A-Za-z]*>" $text }}
        {{- fail (printf "prometheusRule.alerts.%s.%s is null: give it a value, or disable the alert" $asked.alert (trimAll "<>" .)) }}
        {{- end }}
        {{- $_ := set $texts $key $text }}
      {{- end }}
      {{- $alert := dict "alert" $asked.alert "expr" $texts.expr }}
      {{- if $knobs.for }}
        {{- $_ := set $alert "for" $knobs.for }}
      {{- end }}
      {{- if $knobs.keepFiringFor }}
        {{- $_ := set $alert "keep_firing_for" $knobs.keepFiringFor }}
      {{- end }}
      {{- $_ := set $alert "labels" (merge (dict "severity" (default "warning" $knobs.severity)) (default dict $knobs.labels) (default dict $rule.alertLabels)) }}
      {{- $annotations := pick $texts "summary" "description" }}
      {{- with $rule.runbookBaseUrl }}
        {{- $_ := set $annotations "runbook_url" (printf "%s/%s.md" (trimSuffix "/" .) $asked.alert) }}
      {{- end }}
      {{- $_ := set $alert "annotations" $annotations }}
      {{- $alerts = append $alerts $alert }}
    {{- end }}
  {{- end }}
  {{- if $alerts }}
    {{- $rendered := dict "name" $group.name "rules" $alerts }}
    {{- with $rule.interval }}
      {{- $_ := set $rendered "interval" . }}
    {{- end }}
    {{- $groups = append $groups $rendered }}
  {{- end }}
{{- end }}
{{- $groups = concat $groups (default list $rule.additionalGroups) }}
{{- range $number, $group := $groups }}
  {{- range slice $groups 0 $number }}
    {{- if eq .name $group.name }}
    {{- fail (printf "prometheusRule.additionalGroups: %s is the name of another group: choose another one" .name) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toYaml (dict "groups" (default list $groups)) }}
{{- end }}
