#!/bin/sh
# What does prometheus_client's own server answer to /metrics?name[]=FAMILY for a histogram and for a counter?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

registry = CollectorRegistry()
Histogram("job_seconds", "How long", registry=registry).observe(1)
Counter("jobs", "How many", registry=registry).inc()
Gauge("workers", "Now", registry=registry).set(3)

def samples(*names):
    page = generate_latest(registry.restricted_registry(names)).decode()
    return [line.split(" ")[0] for line in page.splitlines() if not line.startswith("#")]

seen = {name: samples(name) for name in ("workers", "jobs", "jobs_total", "job_seconds", "job_seconds_sum")}
for name, found in seen.items():
    print(name, "->", found)
expected = {"workers": ["workers"], "jobs": [], "jobs_total": ["jobs_total"], "job_seconds": [], "job_seconds_sum": ["job_seconds_sum"]}
raise SystemExit(seen != expected)
PYTHON
