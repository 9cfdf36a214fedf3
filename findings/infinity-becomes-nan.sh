#!/bin/sh
# Which numbers does the npm package prometheus-query return for an infinite result of Prometheus?
set -eu
prometheus --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs prometheus of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
echo "prometheus 2.42.0+ds, prometheus-query 3.5.1"
folder=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" prometheus-query@3.5.1
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
echo "global: {}" > "$folder/prometheus.yml"
prometheus --config.file "$folder/prometheus.yml" --storage.tsdb.path "$folder/data" --web.listen-address "127.0.0.1:$port" 2> "$folder/log" &
pid=$!
for _ in $(seq 60); do
  sleep 1
  test -z "$(promtool query instant "http://127.0.0.1:$port" '1' 2> /dev/null || true)" || break
done
# A burn rate while the objective leaves no budget, for example.
promtool query instant "http://127.0.0.1:$port" 'vector(2) / 0'
cat > "$folder/ask.mjs" <<'SCRIPT'
import assert from "assert";
import prometheus from "prometheus-query";
const driver = new prometheus.PrometheusDriver({ endpoint: process.argv[2] });
const seen = [];
for (const query of ["vector(2) / 0", "vector(-2) / 0", "vector(2) / 1"]) {
  const { value } = (await driver.instantQuery(query)).result[0].value;
  console.log(`${query} is ${value}, greater than 1: ${value > 1}`);
  seen.push(value);
}
assert.deepStrictEqual(seen, [NaN, NaN, 2]);
SCRIPT
node "$folder/ask.mjs" "http://127.0.0.1:$port"
