"""The log of repositories that no replication rule covers."""

from __future__ import annotations

from exporter.polling.context import Context
from exporter.polling.rounds import shared_lines

#: Seconds between two looks at the repositories: while facts change, and else.
SHORT_PAUSE, LONG_PAUSE = 1.0, 10.0
#: Seconds after a warning in which others are collected, because repositories are listed one after another.
COLLECT_FOR = 60.0


class Coverage:
    """Warns once of each repository with selected images that the rules of the registry send nowhere.

    It warns again only after rules covered the repository.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looked_at = self._warn_at = float("-inf")
        #: The version of the store at the last look; None if repositories wait to be warned of.
        self._version: int | None = None
        self._warned: set[str] = set()

    def record(self) -> float:
        """Look at the repositories if it is time to; the monotonic time of the next look."""
        context, facts = self._context, self._context.facts
        now, version = context.shared.clock.monotonic(), context.shared.store.version
        if now < (look_at := self._looked_at + (LONG_PAUSE if version == self._version else SHORT_PAUSE)):
            return look_at
        self._looked_at, self._version = now, version
        counts = facts.destination_counts(now, context.shared.store.stale_after)
        self._warned -= {name for name, count in counts.items() if count}
        new = [
            name
            for name, count in counts.items()
            if not count and name not in self._warned and facts.repositories[name].images
        ]
        if new and now < self._warn_at:
            self._version = None
        elif new:
            self._warn_at = now + COLLECT_FOR
            self._warned.update(new)
            for repository, number in shared_lines(new):
                context.warned("nothing_replicated", repository=repository, repositories=number)
        return self._looked_at + (SHORT_PAUSE if self._version is None else LONG_PAUSE)
