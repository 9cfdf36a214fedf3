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
    link,
    matrix,
    stat,
    table,
)
from queries import (
    BUCKETS,
    COMPLETE,
    DESTINATION,
    FAILED,
    IMAGES,
    REGISTRY,
    REPLICA_PROBLEMS,
    REPOSITORY,
    RULES,
    TARGET,
    THERE,
    UNFINISHED,
    images,
    labelled,
    once,
    per_image,
)

RUNBOOKS = "https://github.com/ecr-replication-exporter/ecr-replication-exporter/blob/main/docs/runbooks"
TO_RUNBOOK = link("Alert", "Runbook", RUNBOOKS + "/${__value.raw}.md")
TO_PAGE = link("Repository", "Status page", "${status_page}/?repository=${__value.raw}")


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
            Query(f"max (time() - ecr_repository_replication_oldest_pending_timestamp_seconds{{{THERE}}})"),
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
            once('ALERTS{alertname=~"ECR(Replica|Backfill|Destination|Events).+"}'),
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
            overrides=[TO_RUNBOOK, TO_PAGE],
        ),
        table(
            "Replication rules",
            "max by (source_registry_id, source_region, repository_filter, registry_id, region,"
            f" delete_replication) ({RULES})",
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
                f"sum by (registry_id, region, state) ({once(f'ecr_repository_replica_images{{{THERE}}}')})",
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
            once(f"ecr_destination_failure_info{{{DESTINATION}}}"),
            about="Empty is well. What was seen last stays for replica_interval and stale_after.",
            columns={"registry_id": "Account", "region": "Region", "reason": "Reason"},
            width=6,
        ),
        lines(
            "Age of the last look",
            Query(
                f"time() - {once(f'ecr_destination_last_success_timestamp_seconds{{{DESTINATION}}}')}",
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
            overrides=[TO_PAGE],
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
            overrides=[TO_PAGE],
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
            overrides=[TO_PAGE],
        ),
    ],
)


def backfill_images(state: str) -> str:
    return once(f'ecr_registry_backfill_images{{{REGISTRY},{DESTINATION},state="{state}"}}')


BACKFILLS = Row(
    "Backfills",
    [
        table(
            "Status",
            once(f"ecr_registry_backfill_status{{{REGISTRY},{DESTINATION}}}") + " == 1",
            about="The newest backfill to each destination, until a day after its end.",
            columns={**FROM_TO, "status": "Status"},
            width=8,
        ),
        table(
            "Why it failed",
            once(f"ecr_registry_backfill_failure_info{{{REGISTRY},{DESTINATION}}}"),
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
BURN_RATE = f"ecr:burn_rate{{{REGISTRY},{DESTINATION}}}"
OF_THE_PERIOD = f'ecr:burn_rate{{{REGISTRY},{DESTINATION},window="period"}}'
OBJECTIVE = Row(
    "Objective: COMPLETE in time",
    [
        stat(
            "Error budget left",
            Query(f"1 - max ({OF_THE_PERIOD})"),
            "At the destination that has the least. Below 0: missed. Needs the shipped rules.",
            steps=[(None, RED), (0, ORANGE), (0.25, GREEN)],
            unit="percentunit",
            width=4,
        ),
        lines(
            "Burn rate",
            Query(f"max by (window) ({BURN_RATE})", "{{window}}"),
            about="At the worst destination. At 1 the budget is used up exactly within its period.",
            width=10,
        ),
        table(
            "Late pushes",
            "topk(200, count by (repository, digest, source_registry_id, source_region, registry_id, region)"
            f" (present_over_time(ecr:late_push{{{THERE}}}[$window])))",
            about="Two hundred pushes that were not COMPLETE in time within the chosen window.",
            columns={"repository": "Repository", "digest": "Digest", **FROM_TO},
            width=10,
            overrides=[TO_PAGE],
        ),
    ],
)
