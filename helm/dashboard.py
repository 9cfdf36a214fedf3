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

from exporter_rows import BACKLOG, EXPORTER
from image_rows import BACKFILLS, DESTINATIONS, LAG, OVERVIEW, REPLICAS, TROUBLE
from panels import placed, variable
from queries import REGISTRY

FILE = Path(__file__).parent / "ecr-replication-exporter" / "files" / "dashboard.json"
SCHEMA_VERSION = 42  # Grafana 12 and 13; newer ones migrate it by themselves
ROWS = (OVERVIEW, DESTINATIONS, REPLICAS, TROUBLE, BACKFILLS, LAG, BACKLOG, EXPORTER)


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
        {
            "name": "window",
            "label": "Quantiles over",
            "type": "custom",
            "query": ",".join(windows),
            "current": {"text": "1h", "value": "1h"},
            "options": [{"text": w, "value": w, "selected": w == "1h"} for w in windows],
        },
    ]


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
        "annotations": {"list": []},
        "links": [],
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
