#!/bin/sh
# Does "promtool test rules" notice that the alert under test, or its file of rules, does not exist?
set -eu
case "$(promtool --version 2>&1 || true)" in
"promtool, version 2.42.0+ds "*) echo "promtool 2.42.0+ds" ;;
*) echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1 ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/rules.yaml" <<'RULES'
groups:
  - name: images
    rules:
      - alert: ImageFailed
        expr: image_failed > 0
RULES
# The alert fires in this test, which wrongly says that it must not.
cat > "$folder/wrong.yaml" <<'TEST'
rule_files: [rules.yaml]
tests:
  - interval: 1m
    input_series: [{series: image_failed, values: "1x10"}]
    alert_rule_test:
      - {eval_time: 5m, alertname: ImageFailed, exp_alerts: []}
TEST
sed 's/alertname: ImageFailed/alertname: ImageFialed/' "$folder/wrong.yaml" > "$folder/no-such-alert.yaml"
sed 's/rules.yaml/ruels.yaml/' "$folder/wrong.yaml" > "$folder/no-such-file.yaml"
seen=
for test in wrong no-such-alert no-such-file; do
  code=0
  promtool test rules "$folder/$test.yaml" > "$folder/out" 2>&1 || code=$?
  echo "$test: exit $code, $(grep -o 'SUCCESS\|FAILED' "$folder/out")"
  seen="$seen $code"
done
test "$seen" = " 1 0 0"
