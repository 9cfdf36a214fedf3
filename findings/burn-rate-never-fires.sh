#!/bin/sh
# Do the burn-rate alerts fire that slokit-sre (pip) makes of an objective, while not one event is good?
set -eu
case "$(promtool --version 2>&1 || true)" in
"promtool, version 2.42.0+ds "*) echo "promtool 2.42.0+ds, slokit-sre 1.0.1" ;;
*) echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1 ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install slokit-sre==1.0.1
cat > "$folder/objective.yaml" <<'OBJECTIVE'
apiVersion: slo-kit/v1
name: replication
service: images
description: Images replicate in time
objective: 0.99
window: 30d
sli:
  good_query: 'sum(rate(images_good_total[{window}]))'
  total_query: 'sum(rate(images_total[{window}]))'
OBJECTIVE
"$folder/venv/bin/slo-kit" gen-alerts "$folder/objective.yaml" > "$folder/rules.yaml"
promtool check rules "$folder/rules.yaml"
cat > "$folder/test.yaml" <<'TEST'
rule_files: [rules.yaml]
tests:
  - interval: 1m
    input_series:
      - {series: images_good_total, values: "0x480"}
      - {series: images_total, values: "0+10x480"}
    promql_expr_test:
      - expr: min({__name__=~"slo:sli_error:ratio_rate(1h|5m)"})
        eval_time: 8h
        exp_samples: [{labels: "{}", value: 1}]
    alert_rule_test:
      - {eval_time: 8h, alertname: ReplicationFastBurn, exp_alerts: []}
TEST
promtool test rules "$folder/test.yaml" && echo "All events were bad for eight hours, and ReplicationFastBurn does not fire."
# "and" compares all labels, and the rules give the two ratios different values of a label "window". Without it the alert fires.
sed -i '/^ *window: /d' "$folder/rules.yaml"
if promtool test rules "$folder/test.yaml" > "$folder/out" 2>&1; then exit 1; fi
tr -d "\n" < "$folder/out" | grep -q "got:.*ReplicationFastBurn"
echo "It fires once the label window is removed from the rules."
