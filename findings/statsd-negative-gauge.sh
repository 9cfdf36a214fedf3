#!/bin/sh
# Does StatsD hold the value of a negative gauge that prometheus-push-client pushes to it?
# A gauge of Prometheus may be negative (Metric types). In StatsD's format a sign adds to the gauge, so that -3 is set by a 0
# before it (StatsD, Metric types, Gauges). The client pushes all metrics as StatsD gauges, again and again.
set -eu
folder=$(mktemp -d)
pids=
trap 'kill $pids 2> /dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install prometheus-push-client==0.0.8 prometheus_client==0.26.0
npm install --silent --no-audit --no-fund --omit=optional --prefix "$folder" statsd@0.9.0
echo "prometheus-push-client 0.0.8, statsd 0.9.0 (npm)"
set -- $(python3 -c '
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
print(udp.getsockname()[1], socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
cat > "$folder/config.js" <<CONFIG
{ address: "127.0.0.1", port: $1, mgmt_address: "127.0.0.1", mgmt_port: $2, backends: ["./backends/console"] }
CONFIG
node "$folder/node_modules/statsd/stats.js" "$folder/config.js" > "$folder/log" 2>&1 &
pids=$!
"$folder/venv/bin/python" - "$1" "$2" <<'PYTHON'
import re, socket, sys, time
import prometheus_push_client as push

def gauges():
    """The gauges that StatsD holds, by its management interface."""
    with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as connection:
        connection.sendall(b"gauges\n")
        answer = b""
        while b"END" not in answer:
            answer += connection.recv(4096)
    return {name: float(value) for name, value in re.findall(r"(backlog|clock_offset): (-?\d+)", answer.decode())}

for _ in range(50):
    try:
        gauges()
        break
    except OSError:
        time.sleep(0.2)
push.Gauge("backlog").set(3)
push.Gauge("clock_offset").set(-3)
seen = []
with push.statsd_udp_thread("127.0.0.1", int(sys.argv[1]), period=1):
    for _ in range(50):
        time.sleep(0.2)
        if (held := gauges()) and held not in seen:
            seen.append(held)
        if len(seen) == 3:
            break
for held in seen:
    print("backlog is 3, clock_offset is -3; StatsD holds", held)
raise SystemExit(seen != [{"backlog": 3, "clock_offset": -3 * pushes} for pushes in (1, 2, 3)])
PYTHON
