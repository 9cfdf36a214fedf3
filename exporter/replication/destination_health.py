"""How looking at a destination goes: facts and a time -> success, reasons and time of the last success."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.replication.facts import DestinationFacts
from exporter.replication.model import Destination, Reason
from exporter.replication.target_health import SILENT_AFTER


@dataclass(frozen=True, slots=True)
class DestinationHealth:
    """How a destination fares. `success` and `complete_time` (Unix time) are None while not known."""

    destination: Destination
    success: bool | None
    reasons: frozenset[Reason]
    #: The time of the oldest look, once all of its repositories were looked at.
    complete_time: float | None


def evaluate(facts: DestinationFacts, now: float, stale_after: float) -> DestinationHealth:
    """How the destination fares at the monotonic time `now`.

    It succeeds if each of its repositories was looked at in time, and no call fails. A repository that is new
    has the same time for its first look.
    """
    registry = facts.registry
    reasons = set(facts.failures.values())
    reasons.update(reason for scope, reason in registry.failures.items() if scope.kind == "registry")
    late = any(now > look.at + facts.interval + stale_after for look in facts.looks.values())
    silent = registry.heard_at == float("inf") and now > facts.since + SILENT_AFTER
    if not reasons and (late or silent):
        reasons.add(Reason.THROTTLED if registry.throttled else Reason.UNAVAILABLE)
    success = False if reasons else True if facts.asked else None
    times = [look.time for look in facts.looks.values() if look.time is not None]
    return DestinationHealth(
        facts.destination, success, frozenset(reasons), min(times, default=None) if facts.asked else None
    )
