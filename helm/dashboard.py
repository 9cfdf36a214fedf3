"""The Grafana dashboard, from a row a panel to JSON.

`make helm` writes the chart's files/dashboard.json; with --check nothing is written, and the exit code is 1
if that file is not what it should be. Grafana imports the file as it is, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter_rows import BACKLOG, EVENTS, EXPORTER
from image_rows import BACKFILLS, DESTINATIONS, LAG, OBJECTIVE, OVERVIEW, REPLICAS, RUNBOOKS, TROUBLE
from panels import BLUE, ORANGE, annotation, placed, variable
from queries import REGISTRY, RULE_ADDED, RULE_REMOVED

FILE = Path(__file__).parent / "ecr-replication-exporter" / "files" / "dashboard.json"
#: Text of an annotation.
RULE = "{{source_registry_id}}/{{source_region}}: {{repository_filter}}* to {{registry_id}}/{{region}}"
SCHEMA_VERSION = 42  # Grafana 12 and 13; newer ones migrate it by themselves
ROWS = (OVERVIEW, DESTINATIONS, REPLICAS, TROUBLE, BACKFILLS, LAG, OBJECTIVE, EVENTS, BACKLOG, EXPORTER)
#: The chart replaces it by dashboard.statusPageUrl.
STATUS_PAGE = "http://localhost:10042"


def variables() -> list[Mapping[str, Any]]:
    windows = ("15m", "1h", "6h", "1d")
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        },
        variable("registry", "Account", "ecr_registry_last_success_timestamp_seconds", "source_registry_id"),
        variable(
            "region",
            "Region",
            'ecr_registry_last_success_timestamp_seconds{source_registry_id=~"$registry"}',
            "source_region",
        ),
        variable(
            "repository", "Repository", f"ecr_repository_replication_images{{{REGISTRY}}}", "repository"
        ),
        variable(
            "to_account", "To account", f"ecr_repository_replication_images{{{REGISTRY}}}", "registry_id"
        ),
        variable(
            "to_region",
            "To Region",
            f'ecr_repository_replication_images{{{REGISTRY},registry_id=~"$to_account"}}',
            "region",
        ),
        {
            "name": "window",
            "label": "Quantiles over",
            "type": "custom",
            "query": ",".join(windows),
            "current": {"text": "1h", "value": "1h"},
            "options": [{"text": w, "value": w, "selected": w == "1h"} for w in windows],
        },
        {
            "name": "status_page",
            "label": "Status page",
            "type": "textbox",
            "query": STATUS_PAGE,
            "current": {"text": STATUS_PAGE, "value": STATUS_PAGE},
            "options": [{"text": STATUS_PAGE, "value": STATUS_PAGE, "selected": True}],
        },
    ]


def _link(title: str, url: str) -> Mapping[str, Any]:
    return {"title": title, "type": "link", "url": url, "icon": "external link", "targetBlank": True}


def dashboard() -> Mapping[str, Any]:
    return {
        "uid": "ecr-image-replication",
        "title": "Amazon ECR image replication",
        "description": "What failed and why, what is stuck, what never went, and how long it takes.",
        "tags": ["aws", "ecr", "replication"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {
            "list": [
                annotation("Replication rule added", RULE_ADDED, RULE, BLUE),
                annotation("Replication rule removed", RULE_REMOVED, RULE, ORANGE),
            ]
        },
        "links": [_link("Status page", "${status_page}/"), _link("Runbooks", RUNBOOKS)],
        "templating": {"list": variables()},
        "panels": placed(ROWS),
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" not in arguments:
        FILE.write_text(text)
    elif FILE.read_text() != text:
        sys.stderr.write(f"{FILE.name} is not what it should be: run make helm\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
