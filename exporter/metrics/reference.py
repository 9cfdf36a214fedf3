"""docs/metrics.md: the catalogue as tables, and what does not fit into a HELP text."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.metrics.catalogue import DOMAIN, OWN, REPLICATION_DURATION, Row
from exporter.replication.model import ReplicaState
from exporter.replication.status import status_at

_NOTES = """
## What is reported and what is there

`ecr_image_replication_status` says what became of the replication, and `ecr_image_replica_present` whether
the destination holds the copy now. What ECR reports stands, whatever a look shows. Where ECR reports
nothing, the status is COMPLETE if the digest was seen there, and MISSING if not. Then it is exported only
where the rules or `targets[].destinations` expect the image. A status that ECR may report in future appears
under its own name.

COMBINATIONS

An image that is watched by tag is present if the tag names its digest there; one that is watched by digest is
present if the destination holds it. What was seen stays until the next look (`replica_interval`). If a
destination cannot be read, it stays for `replica_interval` and `stale_after`, and then its series go. The
listing of a destination that is watched itself shows copies to a new rule or a new image for `stale_after`.
When an image becomes COMPLETE, an earlier look that did not show it there is not believed any more. The next
look comes within `pending_interval`.

ECR is not asked about an image that is seen at all destinations of the rules and of the targets. So such an
image may have no series for a destination that no rule names any more, though ECR still reports it. An old
image that the first look finds at all its destinations is COMPLETE, also one that failed and was copied by
other means before the exporter knew it.

A copy that is absent and arrives without its tag is seen at every fourth look at the latest.

Nothing is said of a destination that was never looked at: another account without an entry in
`destinations`, or `replica_interval: 0s`.

## What the histogram of durations counts

`ecr_image_replication_duration_seconds` counts an image once for each destination, when a poll first
reports COMPLETE there. The first poll of the image may do so.

With an [events queue](events.md) the replication ends at the time of its replication event, in whole
seconds. Without one, or if the event does not arrive, it ends with the first poll that reports COMPLETE.
That value is an upper bound: the push is seen with the next listing (`discovery_interval`), and an unfinished
image is asked about again after `pending_interval`.

A destination has a histogram of 0 replications as soon as the rules name it.

An image counts if the first complete listing that has it is the next one after its push. So these do not
count:

- images that are older than the first listing after a start, or after a reload that changes the targets of
  the repository
- images that were pushed while listings of the repository failed for longer than `stale_after`
- images that a target selects only long after their push, for example by a new tag
- images that were restored from the archive.

A backfill does not count. No metric of AWS tells a backfill from a replication, so these rules do:

- Once the rules were read after the push, a destination counts only if they send the image there, or if ECR
  reports it.
- What is FAILED or MISSING an hour after the push, or later, does not count any more. IN_PROGRESS counts as
  long as it lasts.

## Since when a state lasts

`ecr_image_replication_status_since_timestamp_seconds` is the time of the poll that first reported the
state, not that of the change. It stays the same while the state is the same, also over reloads, another
role or name of the registry, outages and, with `state_file`, restarts. A state that ends and comes back has
a new time, and so has an image that is pushed or restored again. MISSING that cannot be confirmed because
the rules cannot be read keeps its time until they are.

## Backfills

The exporter lists the backfills of each source registry every five minutes, and every minute while one
runs. The series are those of the newest backfill to each destination, and end a day after it did. If ECR
reports no end of a backfill that ended, they stay as long as ECR lists it. A backfill counts pairs of image
and tag, over all repositories of the registry.

ECR sets a backfill to FAILED only if at least half of its images failed after at least 100 were processed
(AWS documentation). So `ecr_registry_backfill_images{state="failed"}` shows failures that the status does
not.

If the operation is absent from the Region or denied, there are no such series. The log says so once
(`backfills_not_listed`), no target fails, and the exporter tries again after a reload or an hour.

## Settings that replicas lose

Replication copies images, not the settings of their repository. It creates the repository at the
destination with the default settings, or with those of a repository creation template there (ECR
documentation). `ecr_repository_replica_settings_differ` compares `imageTagMutability`, the encryption and
`scanOnPush` at both ends, in repositories that are looked at (`replica_interval`). Of the encryption it
compares the type, and whether the KMS key is a multi-Region key, but not the key itself: in another Region it
is another one. Exclusion filters, policies, lifecycle rules and the scanning configuration of a registry are
not read. The repositories of a registry are listed every six hours, soon after one is new there, and more
often if a target is a glob. Where `ecr:DescribeRepositories` is denied, there are no such series. The log
says so once (`settings_not_compared`), no target and no destination fails, and the exporter tries again after
a reload or an hour. What is not confirmed for six hours and `stale_after` goes.

## Deletion mirroring

`delete_replication` of `ecr_registry_replication_rule_info` is the field `deleteReplication.enabled` of the
rule, and true if one of several rules for the destination and filter has it. botocore before 1.44.4 drops
the field from every answer, so the exporter requires boto3 1.44.4.
"""

#: What a copy that is not present means, beside what ECR reports. For docs/metrics.md.
_MEANING: dict[tuple[str | None, str], str] = {
    ("COMPLETE", "present"): "well",
    ("COMPLETE", "absent"): "deleted after it arrived: by a lifecycle rule, a person, or mirrored deletion",
    ("COMPLETE", "untagged"): "arrived without its tag: the repository is immutable, or the tag was removed",
    (
        "COMPLETE",
        "other_image",
    ): "the tag names an older image: the repository is immutable, or the tag was moved",
    ("COMPLETE", "archived"): "archived there, so it cannot be pulled until it is restored",
    ("IN_PROGRESS", "present"): "arrived, and ECR does not say so yet",
    ("IN_PROGRESS", "absent"): "on its way",
    ("IN_PROGRESS", "untagged"): "on its way; the tag comes last",
    ("IN_PROGRESS", "other_image"): "on its way; the tag still names the image before",
    ("IN_PROGRESS", "archived"): "on its way again, after it was archived",
    ("FAILED", "present"): "copied by other means after it failed",
    ("FAILED", "absent"): "failed, and not there",
    ("FAILED", "untagged"): "failed, and there without its tag",
    ("FAILED", "other_image"): "failed; the tag names another image",
    ("FAILED", "archived"): "failed, and an older copy is archived",
    (
        None,
        "present",
    ): "there, though ECR does not report it: a backfill, another copy, or the origin of a replica",
    (None, "absent"): "should have gone there and never did",
    (None, "untagged"): "there without its tag, though ECR does not report it",
    (None, "other_image"): "the tag names another image there",
    (None, "archived"): "archived there, though ECR does not report it",
}


_DIGEST_HELD = ((False, "not there"), (True, "there too"))
#: The same where nothing is known of the copy.
_UNSEEN = {
    "COMPLETE": "replicated once; whether the copy is still there is not known",
    "IN_PROGRESS": "on its way",
    "FAILED": "failed; `ecr_image_replication_failure_info` has the reason",
    None: "should have gone there, and no copy was seen",
}


def _combinations() -> str:
    """The table of what ECR reports and what a look shows -> what is exported and what it means."""
    head = "ECR reports", "the copy was seen", "`..._status`", "`..._replica_present`", ""
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for reported in ("COMPLETE", "IN_PROGRESS", "FAILED", None):
        not_looked = "not looked at" if reported else "expected there and not looked at"
        looks: list[tuple[ReplicaState | None, bool, str]] = [(None, False, not_looked)]
        for state in ReplicaState:
            looks += [(state, state is not ReplicaState.ABSENT, state.value)]
            if state is ReplicaState.OTHER_IMAGE and reported is None:
                looks[-1:] = [(state, held, f"{state}, digest {there}") for held, there in _DIGEST_HELD]
        for seen, held, text in looks:
            status = status_at(reported, expected=True, held=held)
            present = "" if seen is None else "1" if seen is ReplicaState.PRESENT else "0"
            meaning = _MEANING[reported, seen] if seen else _UNSEEN[reported]
            rows.append(f"| {reported or 'nothing'} | {text} | {status} | {present} | {meaning} |")
    return "\n".join(rows)


def markdown() -> str:
    """docs/metrics.md, made from the catalogue."""
    head = (
        "# Metrics\n\n`make docs` writes this page from `exporter/metrics/catalogue.py`. Every name is API:"
        " a renamed metric is a breaking change.\n"
    )
    replication = _table("Replication", [*DOMAIN, REPLICATION_DURATION])
    own = _table("The exporter itself", OWN)
    notes = _NOTES.replace("COMBINATIONS", _combinations())
    return f"{head}{replication}{own}\nThe usual `process_*` metrics come with them.\n{notes}"


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = [f"\n## {title}\n", "| name | type | labels | |", "|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.type} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is what the command is for
