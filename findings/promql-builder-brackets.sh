#!/bin/sh
# Do the queries that pangolier and heracles-ql compose mean what the Python expression means?
# PromQL: operators of one precedence are left-associative, ^ is right-associative (Querying, Operators), so that
# a - (b - c) needs its brackets; on() matches series whatever their labels are, and without it all labels have to be equal.
set -eu
promtool --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
echo "promtool 2.42.0+ds, pangolier 0.4.2, heracles-ql 0.2.1"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install pangolier==0.4.2 heracles-ql==0.2.1
"$folder/venv/bin/python" - "$folder/test.json" <<'PYTHON'
import json, subprocess, sys
from heracles import ql
from pangolier.bin_op import BinOp
from pangolier.metrics import Metric

SERIES = {
    "pushed": 100, "copied": 60, "expired": 20, "working_hours": 1,
    'failed{region="eu-west-1",team="a"}': 3, 'calls{region="eu-west-1",team="a"}': 6,
}
pushed, copied, expired, failed, working_hours = map(Metric, "pushed copied expired failed working_hours".split())
other = ql.Selector()
ratio = other.failed / other.calls
ratio.on("region")  # gives a new expression, and changes `ratio` too

QUERIES = [  # library, query that the Python expression means, query that the library gives
    ("pangolier", "pushed - (copied - expired)", (pushed - (copied - expired)).to_str()),
    ("pangolier", "pushed / (copied * expired)", (pushed / (copied * expired)).to_str()),
    ("pangolier", "failed and on() working_hours", BinOp("and", failed, working_hours, on=[]).to_str()),
    ("heracles-ql", "failed * on() working_hours", (other.failed * other.working_hours).on().render()),
    ("heracles-ql", "failed / calls", ratio.render()),
]

def value(query):
    """What promtool evaluates the query to."""
    test = {"eval_time": "0m", "expr": query, "exp_samples": [{"labels": '{never="there"}', "value": 0}]}
    series = [{"series": name, "values": str(number)} for name, number in SERIES.items()]
    with open(sys.argv[1], "w") as file:
        json.dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [test]}]}, file)
    run = subprocess.run(["promtool", "test", "rules", sys.argv[1]], capture_output=True, text=True)
    return (run.stdout + run.stderr).split("got:")[1].strip().strip('"')

seen = []
for library, meant, composed in QUERIES:
    seen.append((value(meant), value(composed)))
    print(f"{library}: for {meant} = {seen[-1][0]} it gives {composed} = {seen[-1][1]}")
raise SystemExit(any(meant == "nil" or meant == composed for meant, composed in seen))
PYTHON
