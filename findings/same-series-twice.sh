#!/bin/sh
# A page has one series twice, with two values. What does "promtool check metrics" say, and what does Prometheus store?
set -eu
for tool in promtool prometheus; do
  $tool --version 2>&1 | grep "version 2.42.0+ds " || { echo "This needs Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
done
folder=$(mktemp -d)
trap 'kill $pids 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
pids=
cat > "$folder/metrics" <<'PAGE'
# HELP image_failed Whether the image failed.
# TYPE image_failed gauge
image_failed{repository="team/app"} 0
image_failed{repository="team/app"} 1
PAGE
promtool check metrics < "$folder/metrics" && echo "promtool check metrics: exit 0"
set -- $(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))')
(cd "$folder" && exec python3 -m http.server --bind 127.0.0.1 "$1" > /dev/null 2>&1) &
pids="$pids $!"
cat > "$folder/prometheus.yml" <<CONFIG
scrape_configs:
  - {job_name: page, scrape_interval: 1s, static_configs: [{targets: ["127.0.0.1:$1"]}]}
CONFIG
prometheus --config.file "$folder/prometheus.yml" --storage.tsdb.path "$folder/data" --web.listen-address "127.0.0.1:$2" 2> "$folder/log" &
pids="$pids $!"
found=
for _ in $(seq 60); do
  sleep 1
  found=$(promtool query instant "http://127.0.0.1:$2" 'image_failed or up == 0' 2> /dev/null || true)
  test -z "$found" || break
done
promtool query instant "http://127.0.0.1:$2" up
echo "$found"
python3 - "$2" <<'PYTHON'
import sys, urllib.request
page = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode().splitlines()
[counter] = [line for line in page if line.startswith("prometheus_target_scrapes_sample_duplicate_timestamp_total ")]
print(counter)
raise SystemExit(not counter.endswith(" 0"))
PYTHON
test "$(grep -c 'level=\(warn\|error\)' "$folder/log")" -eq 0
case "$found" in *'image_failed{'*'=> 0 @'*) ;; *) exit 1 ;; esac
