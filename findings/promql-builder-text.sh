#!/bin/sh
# Are the queries that @grafana/promql-builder (npm) composes queries of PromQL?
set -eu
promtool --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
echo "promtool 2.42.0+ds, @grafana/promql-builder 0.0.6"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" @grafana/promql-builder@0.0.6
cat > "$folder/build.cjs" <<'SCRIPT'
const assert = require("assert");
const { execFileSync } = require("child_process");
const fs = require("fs");
const { and, countValues, labelReplace, mul, neg, s, sum, vector } = require("@grafana/promql-builder");
const failed = vector("image_failed");
const queries = {
  "sum of a product": sum(mul(failed, vector("weight"))),
  "label_replace": labelReplace(failed, s("key"), s("$1"), s("repository"), s("team/(.*)")),
  "count_values": countValues("value", failed),
  "minus": neg(failed),
  "and, without a label": and(failed, vector("up")).on([]),
};
const seen = Object.entries(queries).map(([name, query]) => {
  const rule = { record: "images:failed", expr: String(query) };
  fs.writeFileSync(`${__dirname}/rules.json`, JSON.stringify({ groups: [{ name: "images", rules: [rule] }] }));
  let valid = true;
  try {
    execFileSync("promtool", ["check", "rules", `${__dirname}/rules.json`], { stdio: "ignore" });
  } catch {
    valid = false;
  }
  console.log(`${name}: ${query} - promtool ${valid ? "accepts" : "refuses"} it`);
  return valid;
});
assert.deepStrictEqual(seen, [true, false, false, false, false]);
SCRIPT
node "$folder/build.cjs"
