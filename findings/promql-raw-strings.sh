#!/bin/sh
# PromQL processes no escape inside backticks. Does promql-parser (pip) take the raw regular expressions that promtool takes?
set -eu
case "$(promtool --version 2>&1 || true)" in
"promtool, version 2.42.0+ds "*) echo "promtool 2.42.0+ds" ;;
*) echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1 ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install promql-parser==0.12.0
"$folder/venv/bin/python" - "$folder/rules.json" <<'PYTHON'
import json, subprocess, sys
import promql_parser

QUERIES = {
    "escaped": 'image_failed{tag=~"v\\\\d+\\\\.\\\\d+"}',
    "raw, class": "image_failed{tag=~`v\\d+`}",
    "raw, dot": "image_failed{tag=~`1\\.2`}",
    "raw, no escape": "image_failed{tag=~`v[0-9]+`}",
}
seen = {}
for name, query in QUERIES.items():
    with open(sys.argv[1], "w") as file:
        json.dump({"groups": [{"name": "images", "rules": [{"record": "images:failed", "expr": query}]}]}, file)
    tool = subprocess.run(["promtool", "check", "rules", sys.argv[1]], capture_output=True).returncode == 0
    try:
        promql_parser.parse(query)
        parser = "parsed"
    except ValueError as error:
        parser = str(error)
    seen[name] = (tool, parser)
    print(f"{name}: {query} - promtool {tool}, promql-parser 0.12.0 {parser}")
raise SystemExit(
    list(seen.values())
    != [(True, "parsed"), (True, "unknown escape sequence 'd'"), (True, "unknown escape sequence '.'"), (True, "parsed")]
)
PYTHON
