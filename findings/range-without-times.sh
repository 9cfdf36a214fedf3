#!/bin/sh
# Which ten minutes does get_metric_range_data of prometheus-api-client ask for in a program that runs for a while?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install prometheus-api-client==0.7.2
"$folder/venv/bin/python" - <<'PYTHON'
import http.server, threading, time, urllib.parse
from prometheus_api_client import PrometheusConnect

asked = []

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query))
        body = b'{"status":"success","data":{"resultType":"matrix","result":[]}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
prometheus = PrometheusConnect(url=f"http://127.0.0.1:{server.server_port}")
ages = []
for _ in range(2):
    time.sleep(4)
    prometheus.get_metric_range_data("up")
    ages.append(time.time() - float(asked[-1]["time"][0]))
print("prometheus-api-client 0.7.2 asks for", asked[-1]["query"], "and then", asked[0]["time"], asked[1]["time"])
print("the end of the range is", [round(age) for age in ages], "seconds ago")
raise SystemExit(asked[0] != asked[1] or ages[1] < 7)
PYTHON
