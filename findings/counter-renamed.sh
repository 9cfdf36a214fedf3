#!/bin/sh
# Does prometheus_client's parser of the text format 0.0.4 keep the names that stand on the page?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

# Format 0.0.4 has no rule for the names of counters: Prometheus stores this one as node_netstat_tcp_resets.
PAGE = """\
# HELP node_netstat_tcp_resets Resets.
# TYPE node_netstat_tcp_resets counter
node_netstat_tcp_resets{host="a"} 5
# HELP node_load Load.
# TYPE node_load gauge
node_load{host="a"} 2
"""

class Relay:
    def collect(self):
        return text_string_to_metric_families(PAGE)

registry = CollectorRegistry()
registry.register(Relay())
parsed = [sample.name for family in Relay().collect() for sample in family.samples]
relayed = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
print("prometheus_client 0.26.0 parses", parsed)
print("and a relay on it exposes", relayed)
raise SystemExit(
    parsed != ["node_netstat_tcp_resets_total", "node_load"]
    or relayed != ['node_netstat_tcp_resets_total{host="a"} 5.0', 'node_load{host="a"} 2.0']
)
PYTHON
