#!/bin/sh
# Prometheus::Tiny (Perl) has a metric type "enum". Can Prometheus read a page with one?
set -eu
prometheus --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs prometheus of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
perl -MPrometheus::Tiny -e 'exit($Prometheus::Tiny::VERSION ne "0.010")' 2> /dev/null ||
  { echo "This needs Perl and Debian's package libprometheus-tiny-perl 0.010-1."; exit 1; }
echo "prometheus 2.42.0+ds, Prometheus::Tiny 0.010"
folder=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
perl -MPrometheus::Tiny - > "$folder/metrics" <<'PERL'
my $page = Prometheus::Tiny->new;
$page->declare("images", help => "How many", type => "gauge");
$page->set("images", 3);
$page->declare("backfill", help => "State", type => "enum", enum => "state", enum_values => ["running", "failed"]);
$page->enum_set("backfill", "running");
print $page->format;
PERL
cat "$folder/metrics"
set -- $(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))')
(cd "$folder" && exec python3 -m http.server --bind 127.0.0.1 "$1" > /dev/null 2>&1) &
pids=$!
cat > "$folder/prometheus.yml" <<CONFIG
scrape_configs:
  - {job_name: page, scrape_interval: 1s, static_configs: [{targets: ["127.0.0.1:$1"]}]}
CONFIG
prometheus --config.file "$folder/prometheus.yml" --storage.tsdb.path "$folder/data" --web.listen-address "127.0.0.1:$2" 2> "$folder/log" &
pids="$pids $!"
python3 - "$2" <<'PYTHON'
import json, sys, time, urllib.request
for _ in range(60):
    time.sleep(1)
    try:
        [target] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/api/v1/targets"))["data"]["activeTargets"]
    except (OSError, ValueError):
        continue
    if target["health"] == "up" or "enum" in target["lastError"]:
        break
print("target is", target["health"], "-", target["lastError"])
raise SystemExit(target["health"] != "down" or "enum" not in target["lastError"])
PYTHON
