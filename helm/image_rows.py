"""The rows of the dashboard about images: their replications, their copies, backfills and durations."""

from __future__ import annotations

from panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    REPLICA_COLOURS,
    WIDTH,
    Panel,
    Query,
    Row,
    lines,
    matrix,
    stat,
    table,
)
from queries import (
    BUCKETS,
    COMPLETE,
    FAILED,
    IMAGES,
    REGISTRY,
    REPLICA_PROBLEMS,
    REPOSITORY,
    TARGET,
    UNFINISHED,
    images,
    labelled,
    once,
    per_image,
)


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
            about="Two hundred COMPLETE images that the destination does not hold, active and under the tag.",
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
