"""The first rounds of targets, and the log of the targets that fail and recover."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from exporter.config.settings import TargetSettings
from exporter.polling.context import Context
from exporter.replication import target_health
from exporter.replication.facts import FirstRound
from exporter.replication.model import Reason

#: Seconds between two looks at the targets: while facts change, and else. Only time makes a target late.
SHORT_PAUSE, LONG_PAUSE = 1.0, 10.0
#: Seconds until a target that recovered and fails again for the same reason is logged again.
REPEAT_AFTER = 60.0
#: If more targets than that fail for one reason or recover at once, they share a line.
MOST_LINES = 5


class TargetRounds:
    """Records what the last answers mean for the targets of one registry."""

    def __init__(self, context: Context) -> None:
        self._context = context
        #: What each target selects, by label.
        self._selections: Mapping[str, TargetSettings] = {}
        self._looked_at = self._look_at = float("-inf")
        #: The failing targets of the log, with the reasons that it gave; and when it gave each reason.
        self._failing: dict[str, frozenset[Reason]] = {}
        self._logged_at: dict[tuple[str, Reason], float] = {}

    def configure(self, selections: Mapping[str, TargetSettings]) -> None:
        """Take what each target selects, by label. Begins a round for each target that is new or selects
        differently. The caller holds the lock.
        """
        context, facts = self._context, self._context.facts
        rounds, now = facts.first_rounds, context.shared.clock.monotonic()
        facts.first_rounds = {}
        for label, selection in selections.items():
            if selection != self._selections.get(label):
                facts.first_rounds[label] = FirstRound(now)
            elif label in rounds:
                facts.first_rounds[label] = rounds[label]
        facts.labels, self._selections = tuple(selections), selections
        context.targets_changed = True

    def record(self) -> float:
        """End the first rounds that are over, and log which targets fail; the time of the next look."""
        context, facts = self._context, self._context.facts
        store, now = context.shared.store, context.shared.clock.monotonic()
        if context.targets_changed:
            if facts.first_rounds:
                with store.lock:
                    facts.first_rounds = target_health.first_rounds(facts, now, store.stale_after)
            context.targets_changed = False
            self._look_at = min(self._look_at, self._looked_at + SHORT_PAUSE)
        if now >= self._look_at:
            self._log(target_health.evaluate(facts, now, store.stale_after), now)
            self._looked_at, self._look_at = now, now + LONG_PAUSE
        return self._look_at

    def _log(self, targets: Iterable[target_health.TargetHealth], now: float) -> None:
        before, self._failing = self._failing, {}
        self._logged_at = {key: at for key, at in self._logged_at.items() if now < at + REPEAT_AFTER}
        failed: Mapping[Reason, list[str]] = defaultdict(list)
        recovered = []
        for health in targets:
            logged = before.get(health.label, frozenset())
            new = {
                reason for reason in health.reasons - logged if (health.label, reason) not in self._logged_at
            }
            for reason in sorted(new):
                failed[reason].append(health.label)
                self._logged_at[health.label, reason] = now
            if logged and health.success:
                recovered.append(health.label)
            elif logged or new:
                self._failing[health.label] = (logged & health.reasons) | new or logged
        for reason, labels in failed.items():
            for target, count in shared_lines(labels):
                self._context.warned("target_failed", target=target, reason=reason, targets=count)
        for target, count in shared_lines(recovered):
            self._context.noted("target_recovered", target=target, targets=count)


def shared_lines(labels: Sequence[str]) -> list[tuple[str, int | None]]:
    """The names on each line: one, or some of all and their number if they are many."""
    if len(labels) <= MOST_LINES:
        return [(label, None) for label in labels]
    return [(", ".join(labels[:MOST_LINES]), len(labels))]
