{{/*
A text of files/alerts. `words`: maps of words; <word> is replaced by its value. `path`: of the values, for an error.
*/}}
{{- define "ecr-replication-exporter.ruleText" -}}
{{- $text := .text }}
{{- range .words }}
  {{- range $word, $meaning := . }}
    {{- $text = replace (printf "<%s>" $word) (toString $meaning) $text }}
  {{- end }}
{{- end }}
{{- $text = replace "{<selector>}" (empty .selector | ternary "" (printf "{%s}" .selector)) $text }}
{{- $text = replace "<selector>" (empty .selector | ternary "" (printf "%s," .selector)) $text }}
{{- $path := .path }}
{{- with regexFind "<[a-z][A-Za-z]*>" $text }}
{{- fail (printf "%s.%s is null: give it a value, or disable the alert" $path (trimAll "<>" .)) }}
{{- end }}
{{- $text }}
{{- end }}

{{/*
The rule groups of files/alerts, with the values of prometheusRule. Disabled alerts and groups without an alert are
omitted.
*/}}
{{- define "ecr-replication-exporter.ruleGroups" -}}
{{- $rule := .Values.prometheusRule }}
{{- $common := (.Files.Get "files/alerts/words.yaml" | fromYaml).words }}
{{- $source := list }}
{{- range list "images" "registries" "exporter" }}
  {{- $source = concat $source ($.Files.Get (printf "files/alerts/%s.yaml" .) | fromYaml).groups }}
{{- end }}
{{- $selector := default "" $rule.selector | trim | trimSuffix "," | trim }}
{{- $slo := default dict $rule.slo }}
{{- $groups := list }}
{{- range $group := $source }}
  {{- $records := list }}
  {{- $alerts := list }}
  {{- $windows := ternary (list "period") list (not (empty $slo.period)) }}
  {{- range $asked := $group.rules }}
    {{- $knobs := get (default dict $rule.alerts) (default "" $asked.alert) | default dict }}
    {{- if $asked.record }}
      {{- $records = append $records $asked }}
    {{- else if $knobs.enabled }}
      {{- $path := printf "prometheusRule.alerts.%s" $asked.alert }}
      {{- $texts := dict "expr" $asked.expr "summary" $asked.summary "description" $asked.description }}
      {{- if $asked.anyWindow }}
        {{- if not $knobs.windows }}
        {{- fail (printf "%s.windows is null: give it a value, or disable the alert" $path) }}
        {{- end }}
        {{- $any := list }}
        {{- range $pair := $knobs.windows }}
          {{- $any = append $any (include "ecr-replication-exporter.ruleText" (dict "text" $asked.anyWindow "words" (list $common $pair $knobs) "selector" $selector "path" $path)) }}
          {{- $windows = concat $windows (list $pair.long $pair.short) }}
        {{- end }}
        {{- $_ := set $texts "expr" (replace "<anyWindow>" (join "  or\n" $any | trim | nindent 2 | trimPrefix "\n") $asked.expr) }}
      {{- end }}
      {{- range $key, $text := $texts }}
        {{- $_ := set $texts $key (include "ecr-replication-exporter.ruleText" (dict "text" $text "words" (list $common $knobs) "selector" $selector "path" $path)) }}
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
    {{- $recorded := list }}
    {{- range $asked := $records }}
      {{- range $window := contains "<window>" $asked.expr | ternary (uniq $windows) (list "") }}
        {{- $words := list $common $slo (dict "window" (eq $window "period" | ternary $slo.period $window)) }}
        {{- $record := dict "record" $asked.record "expr" (include "ecr-replication-exporter.ruleText" (dict "text" $asked.expr "words" $words "selector" $selector "path" "prometheusRule.slo")) }}
        {{- if $window }}
          {{- $_ := set $record "labels" (dict "window" $window) }}
        {{- end }}
        {{- $recorded = append $recorded $record }}
      {{- end }}
    {{- end }}
    {{- $rendered := dict "name" $group.name "rules" (concat $recorded $alerts) }}
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
