#!/bin/sh
# Does "promtool test rules" notice that the alert under test, or its file of rules, does not exist?
set -eu
wanted="promtool, version 2.42.0+ds"
case "$(promtool --version 2>&1 || true)" in
"$wanted "*) echo "$wanted" ;;
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
for name in ImageFailed ImageFialed; do
  cat > "$folder/$name.yaml" <<TEST
rule_files: [rules.yaml]
tests:
  - input_series: [{series: image_failed, values: "0x10"}]
    alert_rule_test:
      - {eval_time: 5m, alertname: $name, exp_alerts: []}
TEST
done
sed 's/rules.yaml/ruels.yaml/' "$folder/ImageFailed.yaml" > "$folder/no-file.yaml"
# An alert that must not fire here, the same alert with its name misspelled, and the same test with its file misspelled.
for test in ImageFailed ImageFialed no-file; do
  code=0
  promtool test rules "$folder/$test.yaml" > "$folder/out" 2>&1 || code=$?
  echo "$test: exit $code, $(grep -o 'SUCCESS\|FAILED' "$folder/out"), $(grep -c WARNING "$folder/out" || true) warnings"
  test "$code" -eq 0
  grep -q SUCCESS "$folder/out"
done
