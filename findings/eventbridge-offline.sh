#!/bin/sh
# Does the EventBridge of serverless-offline-aws-eventbridge (npm) match events of ECR as EventBridge documents it?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" serverless-offline-aws-eventbridge@2.2.4
cat > "$folder/match.cjs" <<'SCRIPT'
const assert = require("assert");
const Plugin = require("serverless-offline-aws-eventbridge");
const plugin = Object.assign(Object.create(Plugin.prototype), { logDebug() {}, eventBuses: {} });
const Detail = JSON.stringify({ result: "SUCCESS", "action-type": "PUSH", "repository-name": "team/app" });

function matches(detail) {
  const subscriber = { functionKey: "example", event: { pattern: { source: ["aws.ecr"], detail } } };
  try {
    return plugin.verifyIsSubscribed(subscriber, { Source: "aws.ecr", DetailType: "ECR Image Action", Detail });
  } catch (error) {
    return error.message.split("\n")[0];
  }
}
const seen = {
  "a field with a hyphen": matches({ "repository-name": ["team/app"] }),
  // Every field of a pattern has to match, and anything-but needs the field to be there.
  "$or beside a field that does not match": matches({ result: ["FAILED"], $or: [{ result: ["SUCCESS"] }, { result: ["PENDING"] }] }),
  "anything-but, field absent": matches({ reason: [{ "anything-but": "quota" }] }),
};
console.log("serverless-offline-aws-eventbridge 2.2.4");
for (const [name, found] of Object.entries(seen)) console.log(`${name}: ${found}`);
assert.deepStrictEqual(Object.values(seen), ["Lexical error on line 1. Unrecognized text.", true, true]);
SCRIPT
node "$folder/match.cjs"
