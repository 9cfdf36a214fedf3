#!/bin/sh
# What does CloudWatch get from opentelemetry-exporter-cloudwatch-emf for a metric in nanoseconds, UCUM's unit "ns"?
# CloudWatch has no nanoseconds (API reference, MetricDatum, Unit), so that the value has to be divided for Microseconds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install opentelemetry-exporter-cloudwatch-emf==0.2.5 opentelemetry-sdk==1.45.2
echo "opentelemetry-exporter-cloudwatch-emf 0.2.5, opentelemetry-sdk 1.45.2"
"$folder/venv/bin/python" - <<'PYTHON'
import io, json
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry_exporter_cloudwatch_emf import CloudWatchEMFExporter

PER_SECOND = {"Seconds": 1, "Milliseconds": 1e3, "Microseconds": 1e6}
output = io.StringIO()
exporter = CloudWatchEMFExporter(namespace="Replication", output=output)
provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)])
for unit, five_seconds in {"s": 5, "ms": 5_000, "us": 5_000_000, "ns": 5_000_000_000}.items():
    provider.get_meter("example").create_gauge(f"lag_{unit}", unit=unit).set(five_seconds)
provider.force_flush()
seen = {}
for line in output.getvalue().splitlines():
    document = json.loads(line)
    [metric] = document["_aws"]["CloudWatchMetrics"][0]["Metrics"]
    value, unit = document[metric["Name"]], metric["Unit"]
    seen[metric["Name"]] = value / PER_SECOND[unit]
    print(f"{metric['Name']} of 5 seconds: {value} {unit} = {seen[metric['Name']]:g} seconds")
provider.shutdown()
raise SystemExit(seen != {"lag_s": 5, "lag_ms": 5, "lag_us": 5, "lag_ns": 5000})
PYTHON
