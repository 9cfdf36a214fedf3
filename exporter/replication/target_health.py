"""How targets fare: facts and a time -> success and reasons of each target, and whether a registry was heard.

All pure. What must survive from one reading to the next, which targets are in their first round and why
it failed, the poller keeps in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from exporter.replication.facts import FirstRound, RegistryFacts, RepositoryFacts
from exporter.replication.model import Reason

#: Seconds after which a registry that gave no answer at all fails its targets, though no call failed:
#: AWS throttles each of them, say.
SILENT_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """How a target fares in a registry. `success` and `images` are None while they are not known."""

    label: str
    success: bool | None
    reasons: frozenset[Reason]
    images: int | None


@dataclass(slots=True)
class _Tally:
    """What the repositories of a target add up to."""

    reasons: set[Reason] = field(default_factory=set)
    images: int | None = 0
    asked: bool = True


def evaluate(facts: RegistryFacts, now: float, stale_after: float) -> tuple[TargetHealth, ...]:
    """How each target of the registry fares at the monotonic time `now`.

    A target succeeds if nothing that concerns it fails and its first round is over. A first round that
    failed counts as failed until it is over.
    """
    tallies = _tallies(facts, now, stale_after)
    healths = []
    for label, tally in tallies.items():
        first = facts.first_rounds.get(label)
        if first and _overdue(facts, first, now, stale_after):
            tally.reasons |= _lateness(facts)
        reasons = frozenset(tally.reasons) or (first.reasons if first else frozenset())
        known = facts.begun and first is None
        success = False if reasons else True if known else None
        healths.append(TargetHealth(label, success, reasons, tally.images))
    return tuple(healths)


def first_rounds(facts: RegistryFacts, now: float, stale_after: float) -> dict[str, FirstRound]:
    """The first rounds that are not over at the monotonic time `now`, each with its last reasons."""
    tallies = _tallies(facts, now, stale_after)
    return {
        label: replace(first, reasons=frozenset(tallies[label].reasons)) if tallies[label].reasons else first
        for label, first in facts.first_rounds.items()
        if not tallies[label].asked
    }


def awaits_answer(facts: RegistryFacts, now: float, stale_after: float) -> bool:
    """Whether the registry neither answered nor failed yet, and still has time to do so."""
    return facts.heard_at == float("inf") and not _silent(facts, facts.since, now, stale_after)


def _silent(facts: RegistryFacts, since: float, now: float, stale_after: float) -> bool:
    """Whether the registry was not heard within SILENT_AFTER of the monotonic time `since`."""
    return min(facts.heard_at, now) > since + min(SILENT_AFTER, stale_after)


def _overdue(facts: RegistryFacts, first: FirstRound, now: float, stale_after: float) -> bool:
    """Whether the first round takes longer than the amount of work explains."""
    return _silent(facts, first.since, now, stale_after) or now > first.since + stale_after


def _tallies(facts: RegistryFacts, now: float, stale_after: float) -> dict[str, _Tally]:
    tallies = {label: _Tally() for label in facts.labels}
    for scope, reason in facts.failures.items():
        for label in facts.globs if scope.kind == "repositories" else facts.labels:
            tallies[label].reasons.add(reason)
    unknown = facts.labels if not facts.begun else facts.globs if not facts.repositories_known else ()
    for label in unknown:
        tallies[label].images = None
        tallies[label].asked = False
    lateness = _lateness(facts)
    for repository in facts.repositories.values():
        late = lateness if repository.late(now, stale_after) else None
        _add(tallies, repository, globs=facts.globs, late=late)
    if facts.rules is not None and facts.believed_rules(now, stale_after) is None:
        for tally in tallies.values():
            tally.reasons |= lateness
    return tallies


def _lateness(facts: RegistryFacts) -> set[Reason]:
    """Why something could not be confirmed in time. Where a call failed, that is the reason already."""
    if facts.failures:
        return set()
    return {Reason.THROTTLED if facts.throttled else Reason.UNAVAILABLE}


def _add(
    tallies: Mapping[str, _Tally],
    repository: RepositoryFacts,
    *,
    globs: frozenset[str],
    late: set[Reason] | None,
) -> None:
    """Add one repository to the targets that apply to it. `late`: why it is late, None if it is not."""
    reasons = set(repository.failures.values()) or late or set()
    counts = {target.label: target for target in repository.targets or ()}
    for label in repository.labels:
        tally = tallies.get(label)
        if tally is None:
            continue  # a reload removed the target, and has not come to this repository yet
        # A glob does not fail because of a repository that only another target spells out.
        tally.reasons |= reasons - {Reason.REPOSITORY_NOT_FOUND} if label in globs else reasons
        tally.asked = tally.asked and repository.asked
        count = counts.get(label)
        if count is None or late is not None:
            tally.images = None
        elif tally.images is not None:
            tally.images += count.images
        if count is not None and not count.complete:
            tally.reasons.add(Reason.IMAGE_NOT_FOUND)
