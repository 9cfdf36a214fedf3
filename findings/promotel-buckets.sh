#!/bin/sh
# Which part of a page in the Prometheus text format reaches OTLP through the npm package @platformatic/promotel?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" @platformatic/promotel@0.2.2
cat > "$folder/page.txt" <<'PAGE'
# TYPE wait_seconds histogram
wait_seconds_bucket{le="1"} 3
wait_seconds_bucket{le="60"} 7
wait_seconds_bucket{le="+Inf"} 9
wait_seconds_sum 500
wait_seconds_count 9
# TYPE images_count gauge
images_count{repository="team/app"} 4
# TYPE selected gauge
selected{rule="v1"} 1
selected{rule="v{1,2}"} 1
PAGE
cat > "$folder/read.mjs" <<'SCRIPT'
import assert from "assert";
import fs from "fs";
import { convert, parse } from "@platformatic/promotel";

const page = fs.readFileSync(new URL("page.txt", import.meta.url), "utf8");
const [wait, images, selected] = convert(parse(page)).resource_metrics[0].scope_metrics[0].metrics;
const [buckets] = wait.histogram.data_points;
const rules = selected.gauge.data_points.map((point) => point.attributes[0].value.string_value);
console.log("@platformatic/promotel 0.2.2");
console.log("a histogram with buckets 1, 60 and +Inf has the bounds", buckets.explicit_bounds, "and counts", buckets.bucket_counts);
console.log("the gauge images_count becomes the", Object.keys(images)[1], images.name);
console.log("of the values v1 and v{1,2} of a label remain", rules);
assert.deepStrictEqual([buckets.explicit_bounds, buckets.bucket_counts, buckets.count], [[], [9], 9]);
assert.deepStrictEqual(Object.keys(images), ["name", "histogram"]);
assert.strictEqual(images.name, "images");
assert.deepStrictEqual(rules, ["v1"]);
SCRIPT
node "$folder/read.mjs"
