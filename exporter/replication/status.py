"""What an answer of ECR means: the states of an image at its destinations, and what to expect next.

All pure: what ECR reports and where the rules send the image go in, states come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Replication, Since, Status

#: Seconds after a push in which unfinished replication is normal. AWS says that most images take under
#: 30 minutes and gives no maximum (ECR documentation).
RECENT = 3600.0

#: Of several entries about one destination the worst counts; ECR gives no times that tell the latest.
_GRAVITY: Mapping[str, int] = {Status.COMPLETE: 0, Status.MISSING: 1, Status.IN_PROGRESS: 2, Status.FAILED: 4}
_NOWHERE: frozenset[Destination] = frozenset()


class Evaluation(NamedTuple):
    """What the exporter makes of one answer about one image."""

    replications: tuple[Replication, ...]
    state: ImageState
    #: The rules may have changed since they were read, so that a later reading may change the answer.
    unverified: bool


def evaluate(
    reported: tuple[Replication, ...],
    expected: frozenset[Destination] | None,
    *,
    required: frozenset[Destination] = _NOWHERE,
    held: frozenset[Destination] = _NOWHERE,
    rules_apply: bool,
    rules_expired: bool,
    recent: bool,
) -> Evaluation:
    """The states of an image that ECR answered for.

    `expected`: where the rules send it; None if no rules are believed. `required`: where it must arrive
    whatever the rules say. `held`: where it was seen, so that it is COMPLETE there though ECR does not report
    it. `rules_apply`: the rules were read after its replication began. `rules_expired`: rules were known, and
    are too old to be believed. `recent`: its replication began less than RECENT ago.
    """
    replications = evaluate_replications(reported, (expected or _NOWHERE) | required, held)
    rules_known = expected is not None and rules_apply
    state = image_state(replications, recent=recent, rules_known=rules_known)
    if expected is None or rules_apply:
        return Evaluation(replications, state, unverified=expected is None and rules_expired)
    # The rules may have changed between their reading and the push, so nothing is MISSING because of them.
    certain = evaluate_replications(reported, required, held)
    unverified = not replications or certain != replications
    if unverified and state is ImageState.SETTLED:
        state = ImageState.UNKNOWN
    return Evaluation(certain, state, unverified)


@lru_cache(maxsize=1024)  # almost all images have the same few answers
def evaluate_replications(
    reported: tuple[Replication, ...],
    expected: frozenset[Destination],
    held: frozenset[Destination] = _NOWHERE,
) -> tuple[Replication, ...]:
    """One state for each destination: what ECR reports. Where it is expected to report and does not, the
    image is COMPLETE if it is held there, and MISSING if not.

    An entry without its Region or registry id may mean any destination that matches the rest of it. None
    of those destinations is called MISSING.
    """
    worst: dict[Destination, Replication] = {}
    for entry in reported:
        known = worst.get(entry.destination)
        if known is None or _GRAVITY.get(entry.status, 3) > _GRAVITY.get(known.status, 3):
            worst[entry.destination] = entry
    unreported = [d for d in expected if not any(may_mean(found, d) for found in worst)]
    inferred = (
        Replication(d, status)
        for d in unreported
        if (status := status_at(None, expected=True, held=d in held))
    )
    return tuple(sorted([*worst.values(), *inferred]))


def status_at(reported: str | None, *, expected: bool, held: bool) -> str | None:
    """The state of an image at one destination; None if nothing is said of it there.

    `reported`: what ECR reports, None if nothing. `held`: whether the destination was seen to hold the image.
    What ECR reports stands: a look at the destination says what is there, not what became of the replication.
    """
    if reported is not None or not expected:
        return reported
    return Status.COMPLETE if held else Status.MISSING


def may_mean(found: Destination, wanted: Destination) -> bool:
    return found.region in ("", wanted.region) and found.registry_id in ("", wanted.registry_id)


@lru_cache(maxsize=1024)
def tells_of(replications: tuple[Replication, ...], destinations: frozenset[Destination]) -> bool:
    """Whether there is a state for each of these destinations."""
    found = [replication.destination for replication in replications]
    return all(any(may_mean(each, wanted) for each in found) for wanted in destinations)


def image_state(replications: tuple[Replication, ...], *, recent: bool, rules_known: bool) -> ImageState:
    """What to expect next of an image that ECR answered for.

    Where no rules can be read and nothing is reported, a recent push may still be on its way.
    """
    statuses = {replication.status for replication in replications}
    unfinished = statuses - {Status.COMPLETE, Status.FAILED}
    if recent and (unfinished or not (statuses or rules_known)):
        return ImageState.PENDING
    if statuses & {Status.FAILED, Status.IN_PROGRESS, Status.MISSING}:
        return ImageState.FAILED
    return ImageState.UNKNOWN if unfinished else ImageState.SETTLED


def states_since(
    before: tuple[Since, ...], replications: tuple[Replication, ...], *, rules_apply: bool, now: float
) -> tuple[Since, ...]:
    """Since when the image is in each of its states other than COMPLETE. `now` is Unix time.

    `rules_apply`: as for `evaluate`, and False if no rules are known. Nothing is MISSING then. What was
    MISSING before keeps its time until the rules tell whether it still is.
    """
    known = {(since.destination, since.status): since.at for since in before}
    unfinished = [
        Since(destination, status, known.get((destination, status), now))
        for destination, status, _ in replications
        if status != Status.COMPLETE
    ]
    if before and not rules_apply:
        reported = {replication.destination for replication in replications}
        unfinished += [
            since._replace(shown=False)
            for since in before
            if since.status == Status.MISSING and since.destination not in reported
        ]
    return tuple(unfinished)


@lru_cache(maxsize=4096)
def shared(replications: tuple[Replication, ...]) -> tuple[Replication, ...]:
    """One object for all images with equal answers: less memory, and readers compare by identity first."""
    return replications


def missing_only_where_expected(facts: ImageFacts, expected: frozenset[Destination]) -> ImageFacts:
    """The facts after a change of the rules: not MISSING where nothing is expected any more."""

    def holds(known: Replication | Since) -> bool:
        return known.status != Status.MISSING or known.destination in expected | facts.required

    replications = facts.replications
    if replications is not None:
        replications = shared(tuple(known for known in replications if holds(known)))
    since = tuple(known for known in facts.since if holds(known))
    if (replications, since) == (facts.replications, facts.since):
        return facts
    return replace(facts, replications=replications, since=since)
