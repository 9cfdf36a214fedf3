"""The parts of queries that several panels share.

What several exporters tell alike (the pods of an update, say) counts once: `once` takes the greatest. What
each shard counts of its own is added by `added`, which takes two pods of one shard for one.
"""

from __future__ import annotations

OWN = "ecr_replication_exporter_"
#: The matchers of what is chosen above the panels.
REGISTRY = 'source_registry_id=~"$registry",source_region=~"$region"'
REPOSITORY = f'{REGISTRY},repository=~"$repository"'
DESTINATION = 'registry_id=~"$to_account",region=~"$to_region"'
#: Of what is about images at destinations.
THERE = f"{REPOSITORY},{DESTINATION}"
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
    since = once(f"ecr_image_replication_status_since_timestamp_seconds{{{THERE}}}")
    return f"({left}) * ignoring ({label}) group_left () (time() - {since})"


def labelled(expr: str, label: str, *parts: str) -> str:
    """With one label more, which joins others by a slash."""
    names = ", ".join(f'"{part}"' for part in parts)
    return f'label_join({expr}, "{label}", "/", {names})'


def images(*matchers: str) -> str:
    return once(f"ecr_repository_replication_images{{{','.join((THERE, *matchers))}}}")


IMAGES = images()
COMPLETE = images('status="COMPLETE"')
NOT_COMPLETE = images('status!="COMPLETE"')
BUCKETS = f"ecr_image_replication_duration_seconds_bucket{{{REGISTRY},{DESTINATION}}}"
UNFINISHED = once(f'ecr_image_replication_status{{{THERE},status=~"IN_PROGRESS|MISSING"}}') + " == 1"
FAILED = once(f"ecr_image_replication_failure_info{{{THERE}}}")
REPLICA_PROBLEMS = (
    f"ecr_image_replica_problem_info{{{THERE}}} and ignoring (reason, status)"
    f' (ecr_image_replication_status{{{THERE},status="COMPLETE"}} == 1)'
)
CALLS = f"{OWN}aws_requests_total{{{REGISTRY}}}"
#: Metrics that every process has, of ours alone.
OURS = f"and on (job, instance) {OWN}build_info"
RULES = f"ecr_registry_replication_rule_info{{{REGISTRY},{DESTINATION}}}"


def _seen(within: str) -> str:
    """Rules that were seen within a time range, whichever exporter shows them."""
    return f"max without (instance, pod) (present_over_time({RULES}{within}))"


#: True for two minutes, while the exporter is scraped. A restart of it is no change.
RULE_ADDED = (
    f"{_seen('[2m]')} unless {_seen('[10m] offset 2m')} and on (source_registry_id, source_region)"
    " present_over_time(ecr_registry_last_success_timestamp_seconds[10m] offset 2m)"
)
RULE_REMOVED = (
    f"{_seen('[2m] offset 5m')} unless {_seen('[5m]')} and on (source_registry_id, source_region)"
    " ecr_registry_last_success_timestamp_seconds"
)
