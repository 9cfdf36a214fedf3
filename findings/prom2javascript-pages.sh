#!/bin/sh
# Does prom2javascript (npm) read pages that the text format of Prometheus allows?
# Exposition formats, Text format details: a value may be NaN, +Inf or -Inf, in a label value \\ is a backslash and \n a line break.
# Data model: a metric name may hold colons, as the names of recording rules that /federate exposes do.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" prom2javascript@0.2.0
echo "prom2javascript 0.2.0"
cat > "$folder/read.cjs" <<'SCRIPT'
const assert = require("assert");
const { getMetricsFromIterator } = require("prom2javascript");
const pages = {
  "a summary without observations": ["# TYPE wait summary", 'wait{quantile="0.5"} NaN', "wait_sum 0", "wait_count 0"],
  "a recording rule": ["# TYPE images:failed:sum gauge", "images:failed:sum 3"],
  "minus infinity": ["# TYPE newest gauge", "newest -Inf"],
  "a backslash and the letter n, read as a line break": ["# TYPE free gauge", 'free{path="C:\\\\new"} 1'],
};

async function main() {
  const seen = [];
  for (const [name, lines] of Object.entries(pages)) {
    const found = await getMetricsFromIterator(["# TYPE up gauge", "up 1", ...lines].values()).catch((error) => error.message);
    seen.push(typeof found === "string" ? found.split(" [")[0] : Object.values(found).flatMap((metric) => metric.data).pop().labels);
    console.log(`${name}: ${JSON.stringify(seen.at(-1))}`);
  }
  const refused = "Unable to parse metric";
  assert.deepStrictEqual(seen, [refused, refused, refused, { path: "C:\new" }]);
}
main();
SCRIPT
node "$folder/read.cjs"
