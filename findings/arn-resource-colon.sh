#!/bin/sh
# What do two npm packages make of ARNs with a colon in the resource?
# Of an ARN's six parts the last is the resource, and it may hold colons (IAM User Guide, Amazon Resource Names): the revision
# of a task definition and the names of log groups, functions and secrets follow one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" aws-arn-parser@1.0.1 @aws-sdk/util-arn-parser@3.972.51
cat > "$folder/parse.cjs" <<'SCRIPT'
const assert = require("assert");
const reference = require("@aws-sdk/util-arn-parser");
const parse = require("aws-arn-parser");
console.log("aws-arn-parser 1.0.1, beside it @aws-sdk/util-arn-parser 3.972.51");
const seen = ["ecr:eu-west-1:123456789012:repository/team/app", "ecs:eu-west-1:123456789012:task-definition/app:7",
  "logs:eu-west-1:123456789012:log-group:/ecs/app", "lambda:eu-west-1:123456789012:function:hook"].map((name) => {
  const found = [parse(`arn:aws:${name}`).relativeId, reference.parse(`arn:aws:${name}`).resource];
  console.log(`${name}: relativeId ${found[0]}, resource ${found[1]}`);
  return found[0] === found[1];
});
assert.deepStrictEqual(seen, [true, false, false, false]);
SCRIPT
node "$folder/parse.cjs"
