#!/bin/sh
# Does label_replace put an underscore between two groups, as it puts a hyphen between them?
set -eu
case "$(promtool --version 2>&1 || true)" in
"promtool, version 2.42.0+ds "*) echo "promtool 2.42.0+ds" ;;
*) echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1 ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Prometheus reads "$1_" as the group named "1_", which no expression has, and a group that is not there as an empty text.
cat > "$folder/test.yaml" <<'TEST'
tests:
  - interval: 1m
    input_series: [{series: 'image_failed{repository="team/app"}', values: "1x5"}]
    promql_expr_test:
      - expr: label_replace(image_failed, "key", "$1-$2", "repository", "(.*)/(.*)")
        eval_time: 1m
        exp_samples: [{labels: 'image_failed{repository="team/app", key="team-app"}', value: 1}]
      - expr: label_replace(image_failed, "key", "$1_$2", "repository", "(.*)/(.*)")
        eval_time: 1m
        exp_samples: [{labels: 'image_failed{repository="team/app", key="app"}', value: 1}]
      - expr: label_replace(image_failed, "key", "${1}_$2", "repository", "(.*)/(.*)")
        eval_time: 1m
        exp_samples: [{labels: 'image_failed{repository="team/app", key="team_app"}', value: 1}]
      - expr: label_replace(image_failed, "repository", "$1_old", "repository", "(.*)")
        eval_time: 1m
        exp_samples: [{labels: image_failed, value: 1}]
TEST
promtool test rules "$folder/test.yaml"
echo 'team/app becomes team-app by "$1-$2" and app by "$1_$2"; "$1_old" removes the label.'
cat > "$folder/prometheus.yml" <<'CONFIG'
scrape_configs:
  - job_name: page
    static_configs: [{targets: ["127.0.0.1:1"]}]
    metric_relabel_configs:
      - {source_labels: [repository], regex: "(.*)/(.*)", target_label: key, replacement: $1_$2}
CONFIG
promtool check config "$folder/prometheus.yml"
