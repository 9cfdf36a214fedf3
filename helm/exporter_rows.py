"""The rows of the dashboard about the exporter and its calls."""

from __future__ import annotations

from panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    STATUS_COLOURS,
    Query,
    Row,
    line_colour,
    lines,
    stat,
    table,
)
from queries import (
    CALLS,
    NOT_COMPLETE,
    OURS,
    OWN,
    REGISTRY,
    RELEASE,
    REPOSITORY,
    TARGET,
    added,
)

STATUS_LINES = [line_colour(*each) for each in STATUS_COLOURS.items()]
STACKED = {"fillOpacity": 20, "stacking": {"mode": "normal", "group": "A"}}

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
RECEIVED = f"{OWN}events_received_total{{{REGISTRY}}}"
EVENTS = Row(
    "Events",
    [
        stat(
            "Events queues",
            Query(f"min ({OWN}events_queue_success{{{REGISTRY}}})"),
            "Whether every events queue can be read. No data without a queue.",
            steps=[(None, RED), (1, GREEN)],
            width=4,
            defaults={
                "mappings": [{"type": "value", "options": {"0": {"text": "failing"}, "1": {"text": "read"}}}]
            },
        ),
        lines(
            "Events by kind",
            Query(f"sum by (kind) (rate({RECEIVED}[$__rate_interval]))", "{{kind}}"),
            about="Messages that the queues gave, per second.",
            unit="reqps",
            custom=STACKED,
            width=7,
        ),
        lines(
            "Events by outcome",
            Query(f"sum by (outcome) (rate({RECEIVED}[$__rate_interval]))", "{{outcome}}"),
            about="used, foreign (not watched), duplicate, old (polling was sooner), invalid.",
            unit="reqps",
            custom=STACKED,
            width=7,
        ),
        lines(
            "Events take",
            Query(
                "histogram_quantile(0.95, sum by (le, source_registry_id, source_region)"
                f" (rate({OWN}event_delay_seconds_bucket{{{REGISTRY}}}[$window])))",
                "{{source_registry_id}}/{{source_region}}",
            ),
            about="The 0.95 quantile over the chosen window, from the event to its handling.",
            unit="s",
            width=6,
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
