#!/bin/sh
# An attribute set has two keys that become one Prometheus label. Can Prometheus read what OpenTelemetry for JavaScript exposes?
set -eu
prometheus --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs prometheus of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
echo "prometheus 2.42.0+ds, @opentelemetry/exporter-prometheus 0.223.0"
folder=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" @opentelemetry/exporter-prometheus@0.223.0 @opentelemetry/sdk-metrics@2.12.1
cat > "$folder/serve.mjs" <<'SCRIPT'
import { PrometheusExporter } from "@opentelemetry/exporter-prometheus";
import { MeterProvider } from "@opentelemetry/sdk-metrics";
const exporter = new PrometheusExporter({ host: "127.0.0.1", port: Number(process.argv[2]) });
const meter = new MeterProvider({ readers: [exporter] }).getMeter("example");
meter.createCounter("images").add(1, { "aws.region": "eu-west-1", aws_region: "us-east-1" });
setInterval(() => {}, 1000);
SCRIPT
set -- $(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))')
node "$folder/serve.mjs" "$1" &
pids=$!
cat > "$folder/prometheus.yml" <<CONFIG
scrape_configs:
  - {job_name: page, scrape_interval: 1s, static_configs: [{targets: ["127.0.0.1:$1"]}]}
CONFIG
prometheus --config.file "$folder/prometheus.yml" --storage.tsdb.path "$folder/data" --web.listen-address "127.0.0.1:$2" 2> "$folder/log" &
pids="$pids $!"
python3 - "$1" "$2" <<'PYTHON'
import json, sys, time, urllib.request
page, prometheus = (f"http://127.0.0.1:{port}" for port in sys.argv[1:])
for _ in range(60):
    time.sleep(1)
    try:
        lines = urllib.request.urlopen(f"{page}/metrics").read().decode().splitlines()
        [target] = json.load(urllib.request.urlopen(f"{prometheus}/api/v1/targets"))["data"]["activeTargets"]
    except (OSError, ValueError):
        continue
    if target["health"] == "up" or "aws_region" in target["lastError"]:
        break
print([line for line in lines if line.startswith("images_total")])
print("target is", target["health"], "-", target["lastError"])
raise SystemExit(target["health"] != "down" or "aws_region" not in target["lastError"])
PYTHON
