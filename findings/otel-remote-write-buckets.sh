#!/bin/sh
# Can Prometheus use the histograms that OpenTelemetry's exporter for remote write (Python) sends?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install \
  opentelemetry-exporter-prometheus-remote-write==0.66b1 opentelemetry-sdk==1.45.2
"$folder/venv/bin/python" - <<'PYTHON'
import http.server, threading
import snappy
from opentelemetry.exporter.prometheus_remote_write import PrometheusRemoteWriteMetricsExporter
from opentelemetry.exporter.prometheus_remote_write.gen.remote_pb2 import WriteRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

sent = []

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent.append(WriteRequest.FromString(snappy.uncompress(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
exporter = PrometheusRemoteWriteMetricsExporter(endpoint=f"http://127.0.0.1:{server.server_port}/api/v1/write")
provider = MeterProvider(metric_readers=[PeriodicExportingMetricReader(exporter)])
waits = provider.get_meter("example").create_histogram("wait")
for seconds in (3, 7, 7):
    waits.record(seconds)
provider.force_flush()
labels = [{label.name: label.value for label in series.labels} for series in sent[0].timeseries]
buckets = [(one["__name__"], one["le"], series.samples[0].value) for one, series in zip(labels, sent[0].timeseries) if "le" in one]
print("opentelemetry-exporter-prometheus-remote-write 0.66b1 sends of 3, 7 and 7 seconds",
      [one for one in buckets if one[1] in ("5.0", "10.0", "25.0", "+Inf")])
print("names:", sorted({one["__name__"] for one in labels}))
# In Prometheus a bucket is named wait_bucket, holds all that is not greater than le, and +Inf is the count: 1, 3, 3 and 3 here.
values = {le: value for name, le, value in buckets if name == "wait"}
raise SystemExit((values.get("5.0"), values.get("10.0"), values.get("25.0"), values.get("+Inf")) != (1, 2, 0, 0))
PYTHON
