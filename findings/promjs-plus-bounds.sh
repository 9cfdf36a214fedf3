#!/bin/sh
# Do histograms and gauges of promjs-plus (npm) count as Prometheus defines them?
# A bucket holds the observations that are less than or equal to its bound `le` (Metric types, Histogram), and a gauge that is
# decremented before it is set goes below zero, as it does in the official client libraries.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" promjs-plus@0.5.4 prom-client@15.1.3
echo "promjs-plus 0.5.4, beside it prom-client 15.1.3"
cat > "$folder/count.cjs" <<'SCRIPT'
const assert = require("assert");
const reference = require("prom-client");
const registry = require("promjs-plus").default();
const buckets = [1, 5];
const histograms = [
  registry.create("histogram", "tries", "Tries", buckets),
  new reference.Histogram({ name: "tries", help: "Tries", buckets }),
];
const gauges = [registry.create("gauge", "free", "Free"), new reference.Gauge({ name: "free", help: "Free" })];
for (const histogram of histograms) [1, 5, 5].forEach((tries) => histogram.observe(tries));
gauges[0].sub(3);
gauges[1].dec(3);

async function main() {
  const pages = [registry.metrics(), await reference.register.metrics()];
  const lines = pages.map((page) => page.split("\n").filter((line) => /^(tries_bucket|free)/.test(line)).sort());
  console.log(`promjs-plus: ${lines[0].join("  ")}\nprom-client: ${lines[1].join("  ")}`);
  const bucket = (le, count) => `tries_bucket{le="${le}"} ${count}`;
  assert.deepStrictEqual(lines[0], ["free 0", bucket("+Inf", 3), bucket(1, 1), bucket(5, 1)]);
  assert.deepStrictEqual(lines[1], ["free -3", bucket("+Inf", 3), bucket(1, 1), bucket(5, 3)]);
}
main();
SCRIPT
node "$folder/count.cjs"
