#!/bin/sh
# Does prometheus_client's server respect the weights of Accept and Accept-Encoding (RFC 9110, section 12.4.2)?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import urllib.request
from prometheus_client import CollectorRegistry, Counter, start_http_server

registry = CollectorRegistry()
Counter("jobs", "How many", registry=registry).inc()
server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def ask(**headers):
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/metrics", headers=headers)
    with opener.open(request) as answer:
        return answer.headers["Content-Type"].partition(";")[0], answer.headers["Content-Encoding"] or "identity"

# A weight of 0 means "not acceptable".
no_gzip = {"Accept-Encoding": "identity, gzip;q=0"}
no_openmetrics = {"Accept": "text/plain, application/openmetrics-text;version=1.0.0;q=0"}
plain_first = {"Accept": "text/plain;version=0.0.4;q=0.9, application/openmetrics-text;version=1.0.0;q=0.1"}
seen = []
print("prometheus_client 0.26.0 answers")
for headers in (no_gzip, no_openmetrics, plain_first):
    seen.append(ask(**headers))
    print(headers, "with", *seen[-1])
raise SystemExit(seen[0][1] != "gzip" or {kind for kind, _ in seen[1:]} != {"application/openmetrics-text"})
PYTHON
