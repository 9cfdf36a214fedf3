#!/bin/sh
# What does the npm package parse-prometheus-text-format make of a histogram that has a label besides le?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" parse-prometheus-text-format@1.1.1
cat > "$folder/page.txt" <<'PAGE'
# HELP wait_seconds How long
# TYPE wait_seconds histogram
wait_seconds_bucket{region="eu-west-1",le="60"} 7
wait_seconds_bucket{region="eu-west-1",le="+Inf"} 9
wait_seconds_sum{region="eu-west-1"} 500
wait_seconds_count{region="eu-west-1"} 9
wait_seconds_bucket{region="us-west-2",le="60"} 1
wait_seconds_bucket{region="us-west-2",le="+Inf"} 2
wait_seconds_sum{region="us-west-2"} 90
wait_seconds_count{region="us-west-2"} 2
# HELP size_bytes How large
# TYPE size_bytes summary
size_bytes_sum{region="eu-west-1"} 30
size_bytes_count{region="eu-west-1"} 3
size_bytes_sum{region="us-west-2"} 10
size_bytes_count{region="us-west-2"} 1
PAGE
cat > "$folder/read.cjs" <<'SCRIPT'
const fs = require("fs");
const assert = require("assert");
const found = require("parse-prometheus-text-format");
const parse = found.default || found;
// The summary keeps both of its series. The histogram has the buckets of the last series, and no label, sum or count.
const [histogram, summary] = parse(fs.readFileSync(`${__dirname}/page.txt`, "utf8"));
console.log("parse-prometheus-text-format 1.1.1");
console.log("histogram:", JSON.stringify(histogram.metrics));
console.log("summary:  ", JSON.stringify(summary.metrics));
assert.deepStrictEqual(histogram.metrics, [{ buckets: { 60: "1", "+Inf": "2" } }]);
assert.deepStrictEqual(summary.metrics.map((one) => one.labels.region), ["eu-west-1", "us-west-2"]);
SCRIPT
node "$folder/read.cjs"
