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
    #: Since when each of its repositories was looked at.
    complete_time: float | None


def evaluate(facts: DestinationFacts, now: float, stale_after: float) -> DestinationHealth:
    """How the destination fares at the monotonic time `now`.

    It succeeds if each of its repositories was looked at in time, and no call fails.
    """
    registry = facts.registry
    reasons = set(facts.failures.values())
    reasons.update(reason for scope, reason in registry.failures.items() if scope.kind == "registry")
    looks = [look for look in facts.looks.values() if look]
    complete = len(looks) == len(facts.looks)
    late = any(now > at + facts.interval + stale_after for at, _ in looks)
    silent = registry.heard_at == float("inf") and now > facts.since + SILENT_AFTER
    overdue = not complete and now > facts.since + facts.interval + stale_after
    if not reasons and (late or silent or overdue):
        reasons.add(Reason.THROTTLED if registry.throttled else Reason.UNAVAILABLE)
    success = False if reasons else True if complete else None
    time = min((time for _, time in looks), default=None) if complete else None
    return DestinationHealth(facts.destination, success, frozenset(reasons), time)
