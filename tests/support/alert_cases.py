"""For each alert, what makes it fire and what it says then."""

from __future__ import annotations

from collections.abc import Mapping

from support.alert_timeline import BUILD, Case, Moment, Value, clock, counting, labelled, phase_start

S = 'source_registry_id="111122223333",source_region="us-east-1"'
D = 'region="eu-west-1",registry_id="111122223333"'
I = f'repository="team/app",tag="v1",{S}'  # noqa: E741 - the letter of docs/metrics.md

SOURCE = {"source_registry_id": "111122223333", "source_region": "us-east-1"}
DESTINATION = {"region": "eu-west-1", "registry_id": "111122223333"}
TARGET = {"target": "team/*", **SOURCE}

DIGEST = "sha256:" + "0" * 64
DENIED = "DESTINATION_REGISTRY_ACCESS_DENIED"
OWN = "ecr_replication_exporter"
DESCRIBED = (
    f'{OWN}_aws_requests_total{{aws_service="ecr",operation="DescribeRegistry",outcome="success",{S}}}'
)
LISTED = f"ecr_registry_last_success_timestamp_seconds{{{S}}}"
PUSHED = f"ecr_image_pushed_timestamp_seconds{{{I}}}"
RULE = f'ecr_registry_replication_rule_info{{{S},{D},repository_filter="team/",delete_replication="false"}}'
#: The labels of one image under two tags and under its digest, as the exporter shows them.
NAMES = (
    f'repository="team/app",tag="v1",{S}',
    f'repository="team/app",tag="latest",{S}',
    f'repository="team/app",digest="{DIGEST}",{S}',
)
IMAGE_INFO: Mapping[str, Value] = {
    f'ecr_image_info{{repository="team/app",tag="{tag}",digest="{DIGEST}",{S}}}': 1
    for tag in ("v1", "latest", "")
} | {
    # A tag that moves: another exporter shows another image for it.
    f'ecr_image_info{{instance="10.0.9.9:10042",repository="team/app",tag="v1",digest="sha256:other",{S}}}': 1
}
#: Pushed now, so that its failure is young.
TWO_TAGS_AND_A_DIGEST: Mapping[str, Value] = {
    **{f"ecr_image_pushed_timestamp_seconds{{{name}}}": 0 for name in NAMES},
    **IMAGE_INFO,
}
BUILD_HERE = labelled(BUILD, 'namespace="here"')
OTHER_BUILD = labelled(BUILD, 'job="other"')
TARGET_IMAGES = f'ecr_target_images{{target="team/*",{S}}}'
SHARDS_TARGET_IMAGES = labelled(TARGET_IMAGES, 'apps_kubernetes_io_pod_index="1"')
NEW_RULE = (
    f'ecr_registry_replication_rule_info{{{S},{D},repository_filter="infra/",delete_replication="false"}}'
)
MIRRORING_RULE = RULE.replace("false", "true")
BACKFILL_STARTED = f"ecr_registry_backfill_started_timestamp_seconds{{{S},{D}}}"
COMPLETED = f"ecr_image_replication_duration_seconds_count{{{S},{D}}}"
QUEUE_READ = f"{OWN}_events_queue_success{{{S}}}"
DESTINATION_READ = f"ecr_destination_success{{{D}}}"
DESTINATIONS = f'ecr_repository_replication_destinations{{repository="team/app",{S}}}'


def status(name: str) -> str:
    return f'ecr_image_replication_status{{{I},{D},status="{name}"}}'


def state_of_all_names(state: str) -> dict[str, Value]:
    """The image is in this state since the phase began, under each of its names."""
    statuses = {f'ecr_image_replication_status{{{name},{D},status="{state}"}}': 1.0 for name in NAMES}
    since = {
        f"ecr_image_replication_status_since_timestamp_seconds{{{name},{D}}}": phase_start for name in NAMES
    }
    return {**statuses, **since}


def failed(name: str) -> str:
    return f'ecr_image_replication_failure_info{{{name},{D},failure_code="{DENIED}"}}'


def replica(present: float, tag: str = "v1") -> dict[str, Value]:
    """Whether the image is present at the destination under the tag."""
    return {f'ecr_image_replica_present{{repository="team/app",tag="{tag}",{S},{D}}}': present}


def present_under_all_names() -> dict[str, Value]:
    return {f"ecr_image_replica_present{{{name},{D}}}": 1.0 for name in NAMES}


def problem(reason: str, names: tuple[str, ...] = NAMES, state: str = "COMPLETE") -> dict[str, Value]:
    """The copy has this problem under these names, while the replication is in this state."""
    return {
        **{f'ecr_image_replica_problem_info{{{name},{D},reason="{reason}"}}': 1.0 for name in names},
        **{f'ecr_image_replication_status{{{name},{D},status="{state}"}}': 1.0 for name in NAMES},
        **IMAGE_INFO,
    }


def gone(reason: str, good: Mapping[str, Value], about: str) -> Case:
    return Case(
        "ECRReplicaGone",
        "warning",
        good=good,
        bad=problem(reason),
        fires_after=10,
        resolves_within=17,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION, "reason": reason},
        summary=f"The copy of team/app@{DIGEST} from 111122223333/us-east-1 cannot be pulled at"
        f" 111122223333/eu-west-1: it is {reason} there.",
        about=about,
    )


def tag_differs(reason: str, good: Mapping[str, Value], summary: str, about: str) -> Case:
    return Case(
        "ECRReplicaTagDiffers",
        "warning",
        good=good,
        bad=problem(reason, NAMES[:1]),
        fires_after=30,
        resolves_within=17,
        labels={
            "repository": "team/app",
            "tag": "v1",
            "digest": DIGEST,
            **SOURCE,
            **DESTINATION,
            "reason": reason,
        },
        summary=summary,
        about=about,
    )


def failure(reason: str) -> str:
    return f'ecr_target_failure_info{{target="team/*",{S},reason="{reason}"}}'


def listings(outcome: str) -> str:
    return f'{OWN}_aws_requests_total{{aws_service="ecr",operation="DescribeImages",outcome="{outcome}",{S}}}'


def bucket(le: str) -> str:
    return f'ecr_image_replication_duration_seconds_bucket{{{S},{D},le="{le}"}}'


def late_pushes(every: int, count: int) -> dict[str, Value]:
    """A push every so many minutes since the phase began, each of which never becomes COMPLETE."""
    series: dict[str, Value] = {}
    for number in range(count):
        image = f'repository="team/app",digest="sha256:{number:064}",{S}'

        def pushed(moment: Moment, minute: int = number * every) -> float | None:
            return phase_start(moment) + minute * 60 if moment.phase >= minute else None

        series[f"ecr_image_pushed_timestamp_seconds{{{image}}}"] = pushed
        series[f"ecr_image_replication_status_since_timestamp_seconds{{{image},{D}}}"] = pushed
    return series


def events(kind: str, outcome: str = "used") -> str:
    return f'{OWN}_events_received_total{{{S},kind="{kind}",outcome="{outcome}"}}'


#: Another shard of the registry, whose queue gets events.
OTHER_SHARDS_EVENTS: Mapping[str, Value] = {
    labelled(name, 'instance="10.0.9.9:10042"'): counting(1) for name in (COMPLETED, events("PUSH"))
} | {labelled(QUEUE_READ, 'instance="10.0.9.9:10042"'): 1}


def delays(le: str) -> str:
    return f'{OWN}_event_delay_seconds_bucket{{{S},le="{le}"}}'


def backfill(name: str) -> str:
    return f'ecr_registry_backfill_status{{{S},{D},status="{name}"}}'


def backfilled(state: str) -> str:
    return f'ecr_registry_backfill_images{{{S},{D},state="{state}"}}'


def shard(ordinal: int) -> dict[str, float]:
    """As scraped with a label of the pod that differs from shard to shard."""
    at = f'instance="10.0.1.{ordinal}:10042",apps_kubernetes_io_pod_index="{ordinal}"'
    return {f"{OWN}_shard_ordinal{{{at}}}": ordinal, f"{OWN}_total_shards{{{at}}}": 3}


def crash_loop(moment: Moment) -> float | None:
    """When the process started, if it does so every eight minutes and lives for three."""
    return moment.minute // 8 * 480.0 if moment.minute % 8 < 3 else None


def crash_looping(moment: Moment) -> float | None:
    """What it shows of itself while it lives."""
    return 1 if crash_loop(moment) is not None else None


def now_and_then(moment: Moment) -> float:
    """A counter of what is done at the start and every twenty minutes."""
    return 1 + moment.since_start // 20


def until_the_tag_arrives(moment: Moment) -> float | None:
    """1 for 25 minutes after the tag moved at the source."""
    return 1 if 50 <= moment.minute < 75 else None


def target_case(alert: str, severity: str, reason: str, after: int, summary: str) -> Case:
    return Case(
        alert,
        severity,
        good={},
        bad={failure(reason): 1},
        fires_after=after,
        resolves_within=17,
        labels={**TARGET, "reason": reason},
        summary=summary,
    )


def rules_gone(described: Value, about: str = "") -> Case:
    return Case(
        "ECRReplicationRulesGone",
        "critical",
        good={RULE: 1, DESCRIBED: described},
        bad={DESCRIBED: described},
        fires_after=15,
        resolves_within=17,
        labels=SOURCE,
        summary="111122223333/us-east-1 has no replication rules. It had rules within 1d.",
        about=about,
    )


def rules_changed(change: str, described: Value, about: str = "") -> Case:
    """A rule for `infra/` is added or removed, while the rules are read as often as `described` counts."""
    before: Mapping[str, Value] = {RULE: 1, DESCRIBED: described}
    after: Mapping[str, Value] = {RULE: 1, NEW_RULE: 1, DESCRIBED: described}
    added = change == "added"
    return Case(
        "ECRReplicationRulesChanged",
        "info",
        good=before if added else after,
        bad=after if added else before,
        fires_after=2 if added else 12,
        sooner=0 if added else 1,
        resolves_within=90,
        labels={
            **SOURCE,
            **DESTINATION,
            "repository_filter": "infra/",
            "delete_replication": "false",
            "change": change,
        },
        summary=f"A replication rule of 111122223333/us-east-1 was {change} within 1h: infra/* to"
        " 111122223333/eu-west-1.",
        about=change + about,
    )


CASES = (
    Case(
        "ECRReplicationFailed",
        "critical",
        good={status("FAILED"): 0, status("COMPLETE"): 1, **TWO_TAGS_AND_A_DIGEST},
        bad={
            status("FAILED"): 1,
            status("COMPLETE"): 0,
            **TWO_TAGS_AND_A_DIGEST,
            **{failed(name): 1 for name in NAMES},
        },
        fires_after=1,
        resolves_within=12,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION, "failure_code": DENIED},
        summary=f"Replication of team/app@{DIGEST} from 111122223333/us-east-1 to 111122223333/eu-west-1"
        f" failed: {DENIED}.",
    ),
    Case(
        "ECRReplicationFailed",
        "critical",
        about="of an image without a push time",
        good={status("FAILED"): 0, status("COMPLETE"): 1, **IMAGE_INFO},
        bad={status("FAILED"): 1, status("COMPLETE"): 0, **IMAGE_INFO, **{failed(name): 1 for name in NAMES}},
        fires_after=1,
        resolves_within=12,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION, "failure_code": DENIED},
        summary=f"Replication of team/app@{DIGEST} from 111122223333/us-east-1 to 111122223333/eu-west-1"
        f" failed: {DENIED}.",
    ),
    Case(
        "ECRReplicationFailed",
        "critical",
        about="unless it was copied by other means",
        good={**{failed(name): 1 for name in NAMES}, **TWO_TAGS_AND_A_DIGEST, **present_under_all_names()},
        bad={
            **{failed(name): 1 for name in NAMES},
            **TWO_TAGS_AND_A_DIGEST,
            **present_under_all_names(),
            **replica(0, "latest"),
        },
        fires_after=1,
        resolves_within=12,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION, "failure_code": DENIED},
        summary=f"Replication of team/app@{DIGEST} from 111122223333/us-east-1 to 111122223333/eu-west-1"
        f" failed: {DENIED}.",
    ),
    Case(
        "ECRReplicationStuck",
        "warning",
        about="unless the copy is present",
        good={
            **{
                name: 0.0 if callable(value) else value
                for name, value in state_of_all_names("IN_PROGRESS").items()
            },
            **IMAGE_INFO,
            **present_under_all_names(),
        },
        bad={**state_of_all_names("IN_PROGRESS"), **IMAGE_INFO, **replica(0), **replica(0, "latest")},
        fires_after=41,
        resolves_within=12,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION},
        summary=f"Replication of team/app@{DIGEST} from 111122223333/us-east-1 to 111122223333/eu-west-1"
        " is in progress for 42m 0s.",
    ),
    Case(
        "ECRReplicationStuck",
        "warning",
        good={status("IN_PROGRESS"): 0},
        bad={**state_of_all_names("IN_PROGRESS"), **IMAGE_INFO},
        fires_after=41,
        resolves_within=12,
        labels={"repository": "team/app", "digest": DIGEST, **SOURCE, **DESTINATION},
        summary=f"Replication of team/app@{DIGEST} from 111122223333/us-east-1 to 111122223333/eu-west-1"
        " is in progress for 42m 0s.",
    ),
    Case(
        "ECRReplicationMissing",
        "warning",
        good={status("MISSING"): 0},
        bad={**state_of_all_names("MISSING"), **IMAGE_INFO},
        fires_after=46,
        resolves_within=17,
        labels={"repository": "team/app", **SOURCE, **DESTINATION},
        summary="ECR reports no replication of 1 images of team/app from 111122223333/us-east-1 to"
        " 111122223333/eu-west-1, although a rule or a target expects them there.",
    ),
    Case(
        "ECRReplicationSlow",
        "warning",
        good={bucket("1800"): counting(1), bucket("3600"): counting(1), bucket("+Inf"): counting(1)},
        bad={bucket("1800"): counting(0), bucket("3600"): counting(1), bucket("+Inf"): counting(1)},
        fires_after=19,
        resolves_within=380,
        labels={**SOURCE, **DESTINATION},
        summary="Replication from 111122223333/us-east-1 to 111122223333/eu-west-1 is slow: the 0.95"
        " quantile over 6h is 52m 21s.",
    ),
    Case(
        "ECRReplicationBudgetBurnsFast",
        "critical",
        good={bucket("900.0"): 0},
        bad={bucket("900.0"): 0, **late_pushes(every=5, count=30)},
        fires_after=23,
        resolves_within=47,
        labels={**SOURCE, **DESTINATION},
        summary="Many pushes to 111122223333/us-east-1 are not COMPLETE at 111122223333/eu-west-1 in time."
        " They use up the error budget 1000.0 times as fast as the objective allows.",
    ),
    Case(
        "ECRReplicationBudgetBurnsSlowly",
        "warning",
        good={bucket("900.0"): 0},
        bad={bucket("900.0"): 0, **late_pushes(every=30, count=10)},
        fires_after=61,
        resolves_within=377,
        labels={**SOURCE, **DESTINATION},
        summary="Too many pushes to 111122223333/us-east-1 were not COMPLETE at 111122223333/eu-west-1 in"
        " time. They use up the error budget 1000.0 times as fast as the objective allows.",
    ),
    Case(
        "ECRReplicationStatusUnknown",
        "info",
        good={},
        bad={
            f'ecr_repository_replication_images{{repository="team/app",{S},{D},status="TELEPORTED"}}': 3,
            f'ecr_repository_replication_images{{repository="team/app",{S},{D},status="FAILED"}}': 3,
        },
        fires_after=15,
        resolves_within=17,
        labels={"repository": "team/app", **SOURCE, **DESTINATION, "status": "TELEPORTED"},
        summary="ECR reports TELEPORTED for 3 images of team/app at 111122223333/eu-west-1. No other alert"
        " covers this status.",
    ),
    gone("absent", problem("absent", state="IN_PROGRESS"), "and not while replication runs"),
    gone("archived", {**problem("archived", names=()), **present_under_all_names()}, "archived"),
    tag_differs(
        "other_image",
        problem("other_image", NAMES[:1], "IN_PROGRESS"),
        f"The tag of team/app:v1@{DIGEST} from 111122223333/us-east-1 names another image at"
        " 111122223333/eu-west-1.",
        "and not while replication runs",
    ),
    tag_differs(
        "untagged",
        {**problem("untagged", names=()), **replica(1)},
        f"The tag of team/app:v1@{DIGEST} from 111122223333/us-east-1 does not exist at"
        " 111122223333/eu-west-1.",
        "untagged",
    ),
    tag_differs(
        "other_image",
        {
            **problem("other_image", names=()),
            f'ecr_image_replica_problem_info{{{NAMES[0]},{D},reason="other_image"}}': until_the_tag_arrives,
        },
        f"The tag of team/app:v1@{DIGEST} from 111122223333/us-east-1 names another image at"
        " 111122223333/eu-west-1.",
        "and not where the tag arrives in time",
    ),
    Case(
        "ECRDestinationNotRead",
        "warning",
        good={DESTINATION_READ: 1},
        bad={DESTINATION_READ: 0},
        fires_after=15,
        resolves_within=17,
        labels=DESTINATION,
        summary="The exporter cannot look at the copies at 111122223333/eu-west-1.",
    ),
    rules_gone(counting(1)),
    rules_gone(now_and_then, about="seldom read"),
    rules_changed("added", counting(1)),
    rules_changed("added", now_and_then, ", seldom read"),
    rules_changed("removed", counting(1)),
    rules_changed("removed", now_and_then, ", seldom read"),
    Case(
        "ECRReplicationNothingReplicated",
        "warning",
        good={DESTINATIONS: 1},
        bad={DESTINATIONS: 0, DESTINATIONS.replace("app", "api"): 0, DESTINATIONS.replace("app", "web"): 2},
        fires_after=15,
        resolves_within=17,
        labels=SOURCE,
        summary="2 watched repositories of 111122223333/us-east-1 are not replicated.",
    ),
    Case(
        "ECRReplicationDeletesMirrored",
        "info",
        good={RULE: 1},
        bad={MIRRORING_RULE: 1},
        fires_after=15,
        resolves_within=17,
        labels={**SOURCE, **DESTINATION, "repository_filter": "team/", "delete_replication": "true"},
        summary="A replication rule of 111122223333/us-east-1 mirrors deletions to 111122223333/eu-west-1:"
        " team/*.",
    ),
    target_case(
        "ECRReplicationTargetNotFound",
        "warning",
        "image_not_found",
        15,
        "Target team/* does not exist in 111122223333/us-east-1: image_not_found.",
    ),
    target_case(
        "ECRReplicationTargetDenied",
        "critical",
        "access_denied",
        10,
        "AWS denies a call that the exporter needs to watch team/* in 111122223333/us-east-1.",
    ),
    target_case(
        "ECRReplicationTargetFailing",
        "warning",
        "unavailable",
        30,
        "Calls for team/* in 111122223333/us-east-1 fail: unavailable.",
    ),
    Case(
        "ECRReplicationTargetEmpty",
        "info",
        good={TARGET_IMAGES: 0, SHARDS_TARGET_IMAGES: 5},
        bad={TARGET_IMAGES: 0, SHARDS_TARGET_IMAGES: 0},
        fires_after=60,
        resolves_within=17,
        labels=TARGET,
        summary="Target team/* selects no images in 111122223333/us-east-1.",
        about="on any shard",
    ),
    Case(
        "ECRReplicationTargetEmpty",
        "info",
        good={TARGET_IMAGES: 0, failure("repository_not_found"): 1},
        bad={TARGET_IMAGES: 0},
        fires_after=60,
        resolves_within=17,
        labels=TARGET,
        summary="Target team/* selects no images in 111122223333/us-east-1.",
        about="of what exists",
    ),
    Case(
        "ECRReplicationRegistryNotListed",
        "critical",
        good={LISTED: clock},
        bad={LISTED: phase_start},
        fires_after=33,
        resolves_within=17,
        labels=SOURCE,
        summary="The last complete listing of 111122223333/us-east-1 was 34m 0s ago.",
    ),
    Case(
        "ECREventsQueueFailing",
        "warning",
        good={QUEUE_READ: 1},
        bad={QUEUE_READ: 0},
        fires_after=15,
        resolves_within=17,
        labels=SOURCE,
        summary="The exporter cannot read the events queue of 111122223333/us-east-1.",
    ),
    Case(
        "ECREventsSilent",
        "info",
        good={QUEUE_READ: 1, COMPLETED: counting(1), events("PUSH", "foreign"): counting(1)},
        bad={QUEUE_READ: 1, COMPLETED: counting(1), events("PUSH", "foreign"): counting(0)},
        fires_after=1560,
        sooner=2,
        resolves_within=17,
        labels=SOURCE,
        summary="The events queue of 111122223333/us-east-1 got no event of a push within 1d, although images"
        " were pushed.",
    ),
    Case(
        "ECREventsSilent",
        "info",
        good={QUEUE_READ: 1, COMPLETED: counting(1), events("PUSH"): counting(1), **OTHER_SHARDS_EVENTS},
        bad={QUEUE_READ: 1, COMPLETED: counting(1), events("PUSH"): counting(0), **OTHER_SHARDS_EVENTS},
        fires_after=1560,
        sooner=2,
        resolves_within=17,
        labels=SOURCE,
        summary="The events queue of 111122223333/us-east-1 got no event of a push within 1d, although images"
        " were pushed.",
        about="the queue of one shard",
    ),
    Case(
        "ECREventsDelayed",
        "info",
        good={delays("5.0"): counting(1), delays("600.0"): counting(1), delays("+Inf"): counting(1)},
        bad={delays("5.0"): counting(0), delays("600.0"): counting(0), delays("+Inf"): counting(1)},
        fires_after=18,
        sooner=1,
        resolves_within=77,
        labels=SOURCE,
        summary="Events of 111122223333/us-east-1 are late: the 0.95 quantile over 1h is 10m 0s.",
    ),
    Case(
        "ECRReplicationExporterAbsent",
        "critical",
        good={BUILD: 1},
        bad={},
        fires_after=10,
        resolves_within=2,
        labels={"job": ""},
        summary="Prometheus scrapes no ECR replication exporter, so the other alerts cannot fire.",
    ),
    Case(
        "ECRReplicationExporterDown",
        "warning",
        good={"up": 1, BUILD: 1},
        bad={"up": 0},
        fires_after=10,
        resolves_within=2,
        labels={"instance": "10.0.0.1:10042"},
        summary="Prometheus cannot scrape the ECR replication exporter 10.0.0.1:10042.",
        moves=False,
    ),
    Case(
        "ECRReplicationExporterVanished",
        "warning",
        good={BUILD_HERE: 1, OTHER_BUILD: 1},
        bad={OTHER_BUILD: 1},
        fires_after=15,
        resolves_within=2,
        labels={"namespace": "here", "job": "ecr"},
        summary="The ECR replication exporter here/ecr is not a target of Prometheus. It was a"
        " target within 1d.",
    ),
    Case(
        "ECRReplicationExporterRestarting",
        "warning",
        good={"process_start_time_seconds": 0, BUILD: 1},
        bad={"process_start_time_seconds": crash_loop, BUILD: crash_looping},
        fires_after=32,
        resolves_within=77,
        labels={"instance": "10.0.0.1:10042"},
        summary="The ECR replication exporter 10.0.0.1:10042 started 5 times within an hour.",
        moves=False,
    ),
    Case(
        "ECRBackfillFailed",
        "warning",
        good={backfill("FAILED"): 0, backfill("IN_PROGRESS"): 1},
        bad={backfill("FAILED"): 1, backfill("IN_PROGRESS"): 0},
        fires_after=2,
        resolves_within=17,
        labels={**SOURCE, **DESTINATION, "status": "FAILED"},
        summary="The backfill from 111122223333/us-east-1 to 111122223333/eu-west-1 failed.",
    ),
    Case(
        "ECRBackfillImagesFailed",
        "warning",
        good={backfill("FAILED"): 0, backfilled("failed"): 0},
        bad={backfill("FAILED"): 0, backfilled("failed"): 3},
        fires_after=2,
        resolves_within=17,
        labels={**SOURCE, **DESTINATION, "state": "failed"},
        summary="The backfill from 111122223333/us-east-1 to 111122223333/eu-west-1 did not copy 3 images.",
    ),
    Case(
        "ECRBackfillImagesFailed",
        "warning",
        good={backfill("FAILED"): 1, backfilled("failed"): 3},
        bad={backfill("FAILED"): 0, backfilled("failed"): 3},
        fires_after=2,
        resolves_within=17,
        labels={**SOURCE, **DESTINATION, "state": "failed"},
        summary="The backfill from 111122223333/us-east-1 to 111122223333/eu-west-1 did not copy 3 images.",
        about="unless it failed itself",
    ),
    Case(
        "ECRBackfillStalled",
        "warning",
        good={
            backfill("IN_PROGRESS"): 1,
            BACKFILL_STARTED: 0,
            backfilled("completed"): lambda moment: moment.minute,
            backfilled("failed"): 0,
        },
        bad={
            backfill("IN_PROGRESS"): 1,
            BACKFILL_STARTED: 0,
            backfilled("completed"): lambda moment: moment.minute - moment.phase,
            backfilled("failed"): 0,
        },
        fires_after=130,
        resolves_within=17,
        labels={**SOURCE, **DESTINATION, "status": "IN_PROGRESS"},
        summary="The backfill from 111122223333/us-east-1 to 111122223333/eu-west-1 has made no"
        " progress for 2h.",
    ),
    Case(
        "ECRReplicationExporterShardMissing",
        "critical",
        good={**shard(0), **shard(1), **shard(2)},
        bad={**shard(0), **shard(2)},
        fires_after=15,
        resolves_within=12,
        labels={},
        summary="Prometheus does not scrape 1 shards of the ECR replication exporter.",
    ),
    Case(
        "ECRReplicationExporterReloadFailed",
        "warning",
        good={f"{OWN}_config_last_reload_successful": 1},
        bad={f"{OWN}_config_last_reload_successful": 0},
        fires_after=2,
        resolves_within=12,
        labels={},
        summary="The ECR replication exporter rejected its new configuration and still uses the"
        " previous one.",
    ),
    Case(
        "ECRReplicationExporterBudgetTooSmall",
        "warning",
        good={f"{OWN}_poll_overdue_seconds": 0},
        bad={f"{OWN}_poll_overdue_seconds": 1200},
        fires_after=60,
        resolves_within=17,
        labels={},
        summary="Calls to ECR are 20m 0s overdue.",
    ),
    Case(
        "ECRReplicationExporterThrottled",
        "info",
        good={
            listings("success"): counting(100),
            listings("throttled"): counting(1),
        },
        bad={
            listings("success"): counting(80),
            listings("throttled"): counting(20),
        },
        fires_after=15,
        resolves_within=34,
        labels=SOURCE,
        summary="AWS throttles 20% of the calls to 111122223333/us-east-1.",
    ),
    Case(
        "ECRReplicationExporterImagesSkipped",
        "warning",
        good={f"{OWN}_images_skipped": 0},
        bad={f"{OWN}_images_skipped": 12},
        fires_after=60,
        resolves_within=17,
        labels={},
        summary="The exporter does not watch 12 images that targets select.",
    ),
    Case(
        "ECRReplicationExporterImagesUnknown",
        "warning",
        good={f'{OWN}_images{{state="unknown"}}': 0},
        bad={f'{OWN}_images{{state="unknown"}}': 7},
        fires_after=60,
        resolves_within=17,
        labels={"state": "unknown"},
        summary="The exporter does not know the replication status of 7 watched images.",
    ),
    Case(
        "ECRReplicationExporterStateFileNotWritten",
        "warning",
        good={f"{OWN}_state_file_last_success_timestamp_seconds": clock},
        bad={f"{OWN}_state_file_last_success_timestamp_seconds": phase_start},
        fires_after=71,
        resolves_within=17,
        labels={},
        summary="The ECR replication exporter cannot write its state file.",
        about="for long",
    ),
    Case(
        "ECRReplicationExporterStateFileNotWritten",
        "warning",
        good={f'{OWN}_state_file_failures_total{{operation="write"}}': 0},
        bad={f'{OWN}_state_file_failures_total{{operation="write"}}': counting(0.1)},
        fires_after=10,
        resolves_within=47,
        labels={},
        summary="The ECR replication exporter cannot write its state file.",
        about="ever",
    ),
)

#: All that a healthy exporter of three shards shows, as far as alerts ask for it.
HEALTHY: Mapping[str, Value] = {
    "up": 1,
    BUILD: 1,
    "process_start_time_seconds": 0,
    **shard(0),
    **shard(1),
    **shard(2),
    status("FAILED"): 0,
    status("IN_PROGRESS"): 0,
    status("MISSING"): 0,
    status("COMPLETE"): 1,
    PUSHED: 0,
    f'ecr_repository_replication_images{{repository="team/app",{S},{D},status="COMPLETE"}}': 3,
    bucket("900.0"): counting(1),
    bucket("1800"): counting(1),
    bucket("+Inf"): counting(1),
    QUEUE_READ: 1,
    events("PUSH"): counting(1),
    RULE: 1,
    DESTINATIONS: 1,
    **replica(1),
    DESTINATION_READ: 1,
    backfill("FAILED"): 0,
    backfill("IN_PROGRESS"): 1,
    backfilled("completed"): clock,
    backfilled("failed"): 0,
    BACKFILL_STARTED: 0,
    DESCRIBED: counting(1),
    LISTED: clock,
    f'ecr_target_images{{target="team/*",{S}}}': 3,
    f"{OWN}_config_last_reload_successful": 1,
    f"{OWN}_poll_overdue_seconds": 0,
    f"{OWN}_images_skipped": 0,
    f'{OWN}_images{{state="unknown"}}': 0,
    f"{OWN}_state_file_last_success_timestamp_seconds": clock,
    f'{OWN}_state_file_failures_total{{operation="write"}}': 0,
}
#: An image that was pushed more than a week before it is first seen, and FAILED.
OLD_FAILURE: Mapping[str, Value] = {
    **HEALTHY,
    **{f"ecr_image_pushed_timestamp_seconds{{{name}}}": -8 * 86400.0 for name in NAMES},
    **{name: value for name, value in TWO_TAGS_AND_A_DIGEST.items() if "info" in name},
    **{failed(name): 1 for name in NAMES},
}
#: The rules cannot be read for hours: what is known of them is shown for an hour, and then not.
UNREADABLE: Mapping[str, Value] = {
    **HEALTHY,
    RULE: lambda moment: 1 if moment.phase < 60 else None,
    DESCRIBED: lambda moment: moment.since_start - moment.phase,
}
#: A new exporter is denied the rules that the one before it read.
DENIED_FROM_THE_START = {name: value for name, value in HEALTHY.items() if name not in {RULE, DESCRIBED}}
#: Another release, namespace or job watches the same.
MOVED: Mapping[str, Value] = {labelled(name, 'job="moved"'): value for name, value in HEALTHY.items()}
