"""Keeps which targets of a registry are in their first round, and why it failed.

Reading derives nothing that lasts, so what must last is recorded here, by the loop thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from exporter.polling.jobs import Clock
from exporter.replication import target_health
from exporter.replication.facts import FirstRound, RegistryFacts
from exporter.replication.store import Store


class FirstRounds:
    """The first rounds of the targets of one registry."""

    def __init__(self, facts: RegistryFacts, *, store: Store, clock: Clock) -> None:
        self._facts = facts
        self._store = store
        self._clock = clock
        self._changed = False

    def configure(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Begin a round for each label that was not there before. The caller holds the store's lock."""
        known, now = set(before), self._clock.monotonic()
        rounds = self._facts.first_rounds
        self._facts.first_rounds = {
            label: rounds.get(label) or FirstRound(now)
            for label in after
            if label in rounds or label not in known
        }
        self._changed = True

    def changed(self) -> None:
        """Note that a fact changed which may end or fail a round."""
        self._changed = True

    def record(self) -> None:
        """End the rounds that are over, and keep the reasons of those that fail."""
        if self._changed and self._facts.first_rounds:
            with self._store.lock:
                self._facts.first_rounds = target_health.first_rounds(
                    self._facts, self._clock.monotonic(), self._store.stale_after
                )
        self._changed = False
