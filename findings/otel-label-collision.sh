#!/bin/sh
# Two attributes of OpenTelemetry become one Prometheus label. Are both values kept, as OpenTelemetry's specification demands?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install \
  opentelemetry-exporter-prometheus==0.66b2 opentelemetry-sdk==1.45.2 prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

# "Prometheus and OpenMetrics Compatibility", Metric Attributes: values of keys that map to one label name MUST be
# concatenated, separated by ";", in the order of the keys.
meter = MeterProvider(metric_readers=[PrometheusMetricReader()]).get_meter("example")
images = meter.create_counter("images")
images.add(1, {"aws.region": "eu-west-1", "aws_region": "us-east-1"})
images.add(2, {"aws.region": "us-west-2", "aws_region": "us-east-1"})
lines = [line for line in generate_latest(REGISTRY).decode().splitlines() if line.startswith("images_total")]
print("opentelemetry-exporter-prometheus 0.66b2 exposes")
print("\n".join(lines))
series = [line.rpartition(" ")[0] for line in lines]
print("series:", len(series), "- different ones:", len(set(series)))
raise SystemExit(len(lines) != 2 or len(set(series)) != 1 or 'aws_region="us-east-1"' not in series[0])
PYTHON
