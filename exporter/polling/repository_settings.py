"""The settings of the repositories of a registry, and where those of a replica differ.

Replication creates a repository at the destination with the default settings, or with those of a repository
creation template there (ECR documentation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.calls import Job
from exporter.polling.context import Context
from exporter.polling.optional import OptionalListing
from exporter.polling.rate_limit import Operation
from exporter.polling.repository import RepositoryPoller
from exporter.replication.model import Destination, Page, Repository, RepositorySettings
from exporter.replication.steps import Steps, sliced

#: Seconds between two listings.
INTERVAL = 21_600.0
#: Seconds between two comparisons, if something changes all the time.
COMPARE_EVERY = 5.0
UNKNOWN = RepositorySettings()


class SettingsPoller(OptionalListing[Repository]):
    """Keeps the settings of the repositories of one registry, which is a source, a destination or both."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, Job(Operation.SETTINGS), "ecr:DescribeRepositories")
        self._sightings = context.shared.sightings
        #: By repository. Of one that the last listing did not have, they are unknown.
        self.known: Mapping[str, RepositorySettings] = {}
        #: Monotonic time of the last listing.
        self._listed_at = float("-inf")
        #: The repositories that made a listing necessary.
        self._asked: set[str] = set()
        #: What was compared last, and the monotonic time of the next comparison.
        self._compared = -1
        self._compare_at = float("-inf")

    def seen(self, repository: str, *, exists: bool) -> None:
        """Take that a repository was found, whose settings are of use, or that it does not exist."""
        if not exists:
            self._asked.discard(repository)
            if repository in self.known:
                self._know({name: known for name, known in self.known.items() if name != repository})
        elif repository not in self.known and repository not in self._asked:
            self._asked.add(repository)
            if not self._listing:
                soon = self._listed_at + self._pacing.settings.pending_interval
                self.ask_again(self._job, due=max(self._clock.monotonic(), soon, self._retry_at))

    def page(self, client: EcrClient, token: str | None) -> Page[Repository]:
        return client.repositories(token)

    def listed(self, items: Sequence[Repository]) -> float:
        """Take a complete listing, its own or that of a glob; the seconds until the next one."""
        self._listed_at = self._clock.monotonic()
        self._know(dict.fromkeys(self._asked, UNKNOWN) | dict(items))
        return INTERVAL

    def listed_for_glob(self, items: Sequence[Repository]) -> None:
        """Take the listing that a glob needs, so that none of its own is necessary."""
        self.ask_again(self._job, due=self._pacing.later(self.listed(items)))

    def warn_of_refusal(self, error: ECRError) -> None:
        self._context.warned("settings_not_compared", reason=error.reason, error=str(error))

    def record(self, repositories: Mapping[str, RepositoryPoller]) -> float:
        """Forget what is too old, and compare the repositories; when to do so again (monotonic)."""
        now = self._clock.monotonic()
        if self.known and now > self._listed_at + INTERVAL + self._store.stale_after:
            self._know({})
        if self._compared == self._sightings.settings_version:
            return float("inf")
        if now >= self._compare_at:
            self._compare_at = now + COMPARE_EVERY
            self._compared = self._sightings.settings_version
            self._context.shared.turns.begin(self._compare(repositories))
        return self._compare_at

    def _know(self, known: Mapping[str, RepositorySettings]) -> None:
        if known != self.known:
            self.known = known
            self._sightings.settings_version += 1

    def _compare(self, repositories: Mapping[str, RepositoryPoller]) -> Steps[None]:
        """Take which settings of the repositories differ at the destinations that are looked at."""
        for some in sliced(tuple(repositories.items())):
            for name, repository in some:
                there = self._sightings.settings
                to = sorted(repository.statuses.copies.destinations & there.keys())
                if to:
                    self.seen(name, exists=repository.facts.exists)
                replicas = tuple((each, there[each].known.get(name, UNKNOWN)) for each in to)
                differ = _differences(self.known.get(name, UNKNOWN), replicas)
                if differ != repository.facts.settings_differ:
                    with self._store.lock:
                        self._store.changed()
                        repository.facts.settings_differ = differ
            yield


# Almost all repositories have the same few settings.
@lru_cache(maxsize=4096)
def _differences(
    source: RepositorySettings, replicas: tuple[tuple[Destination, RepositorySettings], ...]
) -> tuple[tuple[Destination, str], ...]:
    return tuple((to, setting) for to, replica in replicas for setting in source.differing(replica))
