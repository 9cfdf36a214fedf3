"""The Grafana dashboard, from a row a panel to JSON.

`make helm` writes the chart's files/dashboard.json; with --check nothing is written, and the exit code is 1
if that file is not what it should be. Grafana imports the file as it is, too.

What several exporters tell alike (the pods of an update, say) counts once: `once` takes the greatest. What
each shard counts of its own is added by `added`, which takes two pods of one shard for one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    REPLICA_COLOURS,
    STATUS_COLOURS,
    WIDTH,
    Panel,
    Query,
    Row,
    line_colour,
    lines,
    matrix,
    placed,
    stat,
    table,
    variable,
)

FILE = Path(__file__).parent / "ecr-replication-exporter" / "files" / "dashboard.json"
SCHEMA_VERSION = 42  # Grafana 12 and 13; newer ones migrate it by themselves

OWN = "ecr_replication_exporter_"
#: The matchers of what is chosen above the panels.
REGISTRY = 'source_registry_id=~"$registry",source_region=~"$region"'
REPOSITORY = f'{REGISTRY},repository=~"$repository"'
TARGET = "target, source_registry_id, source_region"


def once(selector: str) -> str:
    return f"max without (instance, pod) ({selector})"


#: One exporter, or the shards that are one together.
RELEASE = "cluster, namespace, job"
#: 1 for each process, with its shard as a label.
ORDINALS = f'count_values by ({RELEASE}, instance) ("ordinal", {OWN}shard_ordinal)'


def added(selector: str, by: str = "") -> str:
    of_each = f"{selector} * on ({RELEASE}, instance) group_left (ordinal) {ORDINALS}"
    labels = ", ".join(filter(None, (by, RELEASE, "ordinal")))
    return f"sum by ({by}) (max by ({labels}) ({of_each}))"


def per_image(left: str, label: str) -> str:
    """How long images for which `left` is 1 are in that state. `label`: what `left` has besides I and D."""
    since = once(f"ecr_image_replication_status_since_timestamp_seconds{{{REPOSITORY}}}")
    return f"({left}) * ignoring ({label}) group_left () (time() - {since})"


def labelled(expr: str, label: str, *parts: str) -> str:
    """With one label more, which joins others by a slash."""
    names = ", ".join(f'"{part}"' for part in parts)
    return f'label_join({expr}, "{label}", "/", {names})'


def images(*matchers: str) -> str:
    return once(f"ecr_repository_replication_images{{{','.join((REPOSITORY, *matchers))}}}")


IMAGES = images()
COMPLETE = images('status="COMPLETE"')
NOT_COMPLETE = images('status!="COMPLETE"')
BUCKETS = f"ecr_image_replication_duration_seconds_bucket{{{REGISTRY}}}"
UNFINISHED = once(f'ecr_image_replication_status{{{REPOSITORY},status=~"IN_PROGRESS|MISSING"}}') + " == 1"
FAILED = once(f"ecr_image_replication_failure_info{{{REPOSITORY}}}")
REPLICA_PROBLEMS = (
    f"ecr_image_replica_problem_info{{{REPOSITORY}}} and ignoring (reason, status)"
    f' (ecr_image_replication_status{{{REPOSITORY},status="COMPLETE"}} == 1)'
)
CALLS = f"{OWN}aws_requests_total{{{REGISTRY}}}"
#: Metrics that every process has, of ours alone.
OURS = f"and on (job, instance) {OWN}build_info"
STATUS_LINES = [line_colour(*each) for each in STATUS_COLOURS.items()]
STACKED = {"fillOpacity": 20, "stacking": {"mode": "normal", "group": "A"}}


def _status(status: str, title: str, colour: str, about: str) -> Panel:
    counted = images(f'status="{status}"')
    expr = f"sum ({counted})"
    return stat(title, Query(expr), about, steps=[(None, GREY), (1, colour)], width=4)


OVERVIEW = Row(
    "Overview",
    [
        _status("FAILED", "Failed", RED, "Images, counted at each destination, of which ECR reports FAILED."),
        _status("MISSING", "Missing", ORANGE, "The rules send them there, and ECR reports nothing."),
        _status("IN_PROGRESS", "In progress", BLUE, "On their way."),
        stat(
            "Complete",
            Query(f"sum ({COMPLETE}) / sum ({IMAGES})"),
            "The part of the images that arrived at their destinations.",
            steps=[(None, RED), (0.9, ORANGE), (0.99, GREEN)],
            unit="percentunit",
            width=4,
        ),
        stat(
            "Oldest unfinished",
            Query(
                f"max (time() - ecr_repository_replication_oldest_pending_timestamp_seconds{{{REPOSITORY}}})"
            ),
            "Age since its push of the oldest image that is in progress or missing.",
            steps=[(None, GREEN), (1800, ORANGE), (7200, RED)],
            unit="s",
            width=4,
        ),
        stat(
            "Targets in trouble",
            Query(f"sum (1 - min by ({TARGET}) (ecr_target_success{{{REGISTRY}}}))"),
            "Targets of the configuration of which not everything was found and asked in the last round.",
            steps=[(None, GREEN), (1, RED)],
            width=4,
        ),
    ],
)
DESTINATIONS = Row(
    "Destinations",
    [
        matrix(
            "Destinations by state",
            labelled(
                f"sum by (registry_id, region, status) ({IMAGES})", "destination", "registry_id", "region"
            ),
            row="destination",
            about="Images of the chosen repositories at each destination, by the state of their replication.",
        ),
        matrix(
            "Repositories by state",
            f"sum by (repository, status) ({IMAGES})",
            row="repository",
            about="The same for each repository, all destinations together.",
        ),
        table(
            "Alerts",
            once('ALERTS{alertname=~"ECR(Replica|Backfill|Destination).+"}'),
            about="Alerts of the shipped rules that are pending or firing.",
            columns={
                "alertname": "Alert",
                "alertstate": "State",
                "severity": "Severity",
                "repository": "Repository",
                "digest": "Digest",
                "registry_id": "Account",
                "region": "Region",
            },
        ),
        table(
            "Replication rules",
            "max by (source_registry_id, source_region, repository_filter, registry_id, region,"
            f" delete_replication) (ecr_registry_replication_rule_info{{{REGISTRY}}})",
            about="Where the registries send what is pushed to repositories with a prefix; none: all.",
            columns={
                "source_registry_id": "From account",
                "source_region": "From Region",
                "repository_filter": "Prefix",
                "registry_id": "To account",
                "region": "To Region",
                "delete_replication": "Mirrors deletions",
            },
        ),
        table(
            "Repositories without a destination",
            once(f"ecr_repository_replication_destinations{{{REPOSITORY}}}") + " == 0",
            about="Watched repositories that no replication rule selects, so ECR replicates no push to them.",
            columns={
                "repository": "Repository",
                "source_registry_id": "Account",
                "source_region": "Region",
            },
            width=WIDTH,
            height=5,
        ),
    ],
)
FROM_TO = {
    "source_registry_id": "From account",
    "source_region": "From Region",
    "registry_id": "To account",
    "region": "To Region",
}
REPLICAS = Row(
    "Copies at the destinations",
    [
        matrix(
            "Copies by state",
            labelled(
                "sum by (registry_id, region, state)"
                f" ({once(f'ecr_repository_replica_images{{{REPOSITORY}}}')})",
                "destination",
                "registry_id",
                "region",
            ),
            row="destination",
            column="state",
            colours=REPLICA_COLOURS,
            about="What the destinations held at the last look, of the images of the chosen repositories.",
        ),
        table(
            "Destinations that cannot be looked at",
            once("ecr_destination_failure_info"),
            about="Empty is well. What was seen last stays for replica_interval and stale_after.",
            columns={"registry_id": "Account", "region": "Region", "reason": "Reason"},
            width=6,
        ),
        lines(
            "Age of the last look",
            Query(
                f"time() - {once('ecr_destination_last_success_timestamp_seconds')}",
                "{{registry_id}}/{{region}}",
            ),
            about="Since each repository of the destination was looked at.",
            unit="s",
            width=6,
        ),
        table(
            "Copies that are not present",
            f"topk(200, {once(REPLICA_PROBLEMS)})",
            about="Two hundred images whose replication is COMPLETE, and which the destination does not hold"
            " active and under the tag.",
            columns={
                "repository": "Repository",
                "tag": "Tag",
                "digest": "Digest",
                **FROM_TO,
                "reason": "Reason",
            },
            width=WIDTH,
        ),
    ],
)
TROUBLE = Row(
    "Failing and stuck images",
    [
        table(
            "Failed images",
            per_image(FAILED, "failure_code"),
            about="With the code that ECR gives, and how long they are in that state.",
            columns={
                "repository": "Repository",
                "tag": "Tag",
                "digest": "Digest",
                **FROM_TO,
                "failure_code": "Code",
                "Value": "For",
            },
            unit="s",
            sort="For",
        ),
        table(
            "Unfinished images",
            f"topk(200, {per_image(UNFINISHED, 'status')})",
            about="The two hundred that are in progress or missing for longest: at the top, what is stuck.",
            columns={
                "repository": "Repository",
                "tag": "Tag",
                "digest": "Digest",
                **FROM_TO,
                "status": "State",
                "Value": "For",
            },
            unit="s",
            sort="For",
        ),
    ],
)


def backfill_images(state: str) -> str:
    return once(f'ecr_registry_backfill_images{{{REGISTRY},state="{state}"}}')


BACKFILLS = Row(
    "Backfills",
    [
        table(
            "Status",
            once(f"ecr_registry_backfill_status{{{REGISTRY}}}") + " == 1",
            about="The newest backfill to each destination, until a day after its end.",
            columns={**FROM_TO, "status": "Status"},
            width=8,
        ),
        table(
            "Why it failed",
            once(f"ecr_registry_backfill_failure_info{{{REGISTRY}}}"),
            about="The codes that ECR reports for the backfill and its images.",
            columns={**FROM_TO, "failure_code": "Code"},
            width=8,
        ),
        lines(
            "Progress",
            Query(
                f"{backfill_images('completed')} / ignoring (state) {backfill_images('total')}",
                "{{registry_id}}/{{region}} completed",
            ),
            Query(
                f"{backfill_images('failed')} / ignoring (state) {backfill_images('total')}",
                "{{registry_id}}/{{region}} failed",
            ),
            about="The part of the images that is copied, and the part that failed.",
            unit="percentunit",
            width=8,
        ),
    ],
)


def _quantile(quantile: float, by: str = "") -> str:
    return f"histogram_quantile({quantile}, sum by (le{by}) (rate({BUCKETS}[$window])))"


LAG = Row(
    "How long it takes",
    [
        lines(
            "From push to complete",
            *(Query(_quantile(q), f"{q:g}") for q in (0.5, 0.95, 0.99)),
            about="Quantiles over the chosen window, of images that were pushed meanwhile.",
            unit="s",
        ),
        lines(
            "The slowest twentieth, by destination",
            Query(_quantile(0.95, ", registry_id, region"), "{{registry_id}}/{{region}}"),
            about="The 0.95 quantile over the chosen window.",
            unit="s",
        ),
        Panel(
            "Durations",
            "heatmap",
            [Query(f"sum by (le) (increase({BUCKETS}[$__rate_interval]))", "{{le}}", format="heatmap")],
            "How many replications ended, by how long they took.",
            width=WIDTH,
            unit="s",
            options={
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
                "yAxis": {"axisPlacement": "left", "unit": "s"},
                "tooltip": {"mode": "single", "yHistogram": False},
            },
        ),
    ],
)
BACKLOG = Row(
    "Backlog and budget",
    [
        lines(
            "Unfinished and failed",
            Query(f"sum by (status) ({NOT_COMPLETE})", "{{status}}"),
            about="Images at their destinations, by state.",
            custom=STACKED,
            overrides=STATUS_LINES,
        ),
        lines(
            "Age of the oldest unfinished image",
            Query(
                "max by (repository) (time() -"
                f" ecr_repository_replication_oldest_pending_timestamp_seconds{{{REPOSITORY}}})",
                "{{repository}}",
            ),
            about="Since its push; in progress or missing.",
            unit="s",
        ),
        lines(
            "Calls to ECR and what is allowed",
            Query(f"sum by (operation) (rate({CALLS}[$__rate_interval]))", "{{operation}}"),
            Query(added(f"{OWN}request_rate_limit{{{REGISTRY}}}"), "rate limit"),
            about="The limit goes down while AWS throttles, and back up to requests_per_second.",
            unit="reqps",
            overrides=[line_colour("rate limit", RED)],
        ),
        lines(
            "Calls by outcome",
            Query(f"sum by (outcome) (rate({CALLS}[$__rate_interval]))", "{{outcome}}"),
            about="success, or why not.",
            unit="reqps",
            custom=STACKED,
        ),
        lines(
            "Overdue",
            Query(f"max without (pod) ({OWN}poll_overdue_seconds)", "{{instance}}"),
            about="How late the latest due call is. If it grows, requests_per_second is too small.",
            unit="s",
        ),
        lines(
            "Calls take",
            Query(
                "histogram_quantile(0.95, sum by (operation, le)"
                f" (rate({OWN}aws_request_duration_seconds_bucket[$__rate_interval])))",
                "{{operation}}",
            ),
            about="The 0.95 quantile of each operation.",
            unit="s",
        ),
    ],
)
EXPORTER = Row(
    "The exporter",
    [
        stat(
            "Configuration",
            Query(f"min ({OWN}config_last_reload_successful)"),
            "Whether the configuration on disk is the one in force.",
            steps=[(None, RED), (1, GREEN)],
            width=4,
            defaults={
                "mappings": [
                    {"type": "value", "options": {"0": {"text": "refused"}, "1": {"text": "in force"}}}
                ]
            },
        ),
        stat(
            "Shards",
            Query(
                f'count (count_values by ({RELEASE}) ("ordinal", {OWN}shard_ordinal))'
                f" / sum (max by ({RELEASE}) ({OWN}total_shards))"
            ),
            "The part of the shards that is scraped, of all releases together.",
            steps=[(None, RED), (1, GREEN)],
            unit="percentunit",
            width=4,
        ),
        stat(
            "Images skipped",
            Query(added(f"{OWN}images_skipped")),
            "What targets select and max_images leaves out.",
            steps=[(None, GREEN), (1, ORANGE)],
            width=4,
        ),
        stat(
            "Last listing",
            Query(f"max (time() - ecr_registry_last_success_timestamp_seconds{{{REGISTRY}}})"),
            "Age of the oldest complete listing of a registry.",
            steps=[(None, GREEN), (900, ORANGE), (1800, RED)],
            unit="s",
            width=4,
        ),
        stat(
            "State file",
            Query(f"max (time() - {OWN}state_file_last_success_timestamp_seconds)"),
            "Age of the state file; no data without one.",
            steps=[(None, GREEN), (1800, ORANGE), (3600, RED)],
            unit="s",
            width=4,
        ),
        stat(
            "Running for",
            Query(f"min (time() - process_start_time_seconds {OURS})"),
            "Since the latest start of an exporter.",
            steps=[(None, BLUE)],
            unit="s",
            width=4,
        ),
        lines(
            "Images by what is expected of them",
            Query(added(f"{OWN}images", "state"), "{{state}}"),
            about="new: not asked yet. unknown: no usable answer, or none for long.",
            custom=STACKED,
        ),
        table(
            "Targets",
            added(f"ecr_target_images{{{REGISTRY}}}", TARGET),
            about="How many images each target of the configuration selects, on all shards.",
            columns={
                "target": "Target",
                "source_registry_id": "Account",
                "source_region": "Region",
                "Value": "Images",
            },
            sort="Images",
        ),
        table(
            "Targets in trouble, and why",
            f"max by ({TARGET}, reason) (ecr_target_failure_info{{{REGISTRY}}})",
            about="Empty is well.",
            columns={
                "target": "Target",
                "source_registry_id": "Account",
                "source_region": "Region",
                "reason": "Reason",
            },
        ),
        table(
            "Versions",
            f"{OWN}build_info",
            about="Of each exporter that is scraped.",
            columns={
                "instance": "Instance",
                "version": "Exporter",
                "python_version": "Python",
                "boto3_version": "boto3",
            },
        ),
        lines(
            "Memory",
            Query(f"process_resident_memory_bytes {OURS}", "{{instance}}"),
            about="Resident memory of the process.",
            unit="bytes",
        ),
        lines(
            "Processor",
            Query(f"rate(process_cpu_seconds_total[$__rate_interval]) {OURS}", "{{instance}}"),
            about="Seconds of processor time a second.",
        ),
    ],
)
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
