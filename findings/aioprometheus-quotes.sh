#!/bin/sh
# Does aioprometheus escape label values and help texts, as the text format demands for \, " and line breaks?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install aioprometheus==23.12.0 prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import aioprometheus
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

REASONS = ('policy "pull" is missing', "C:\\new", "first\nsecond")

def read(page):
    """The label values that a reader of the page finds, or its error."""
    try:
        return [sample.labels["reason"] for family in text_string_to_metric_families(page) for sample in family.samples]
    except Exception as error:
        return type(error).__name__

seen = {}
for reason in REASONS:
    registry = aioprometheus.Registry()
    aioprometheus.Gauge("failed", "Failures", registry=registry).set({"reason": reason}, 1)
    page, _ = aioprometheus.render(registry, ["text/plain"])
    other = CollectorRegistry()
    Gauge("failed", "Failures", ["reason"], registry=other).labels(reason).set(1)
    seen[reason] = (read(page.decode()), read(generate_latest(other).decode()))
    print(repr(reason), "- aioprometheus 23.12.0:", page.decode().splitlines()[2:], "read as", seen[reason][0])
wrong = [reason for reason, (found, _) in seen.items() if found != [reason]]
right = [reason for reason, (_, found) in seen.items() if found == [reason]]
raise SystemExit(len(wrong) != 3 or len(right) != 3)
PYTHON
