"""The repositories of one registry: which exist, and which are polled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.aws.events import Event, EventKind
from exporter.polling.access import Group
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context, Outcome
from exporter.polling.listing import Listing
from exporter.polling.rate_limit import Operation
from exporter.polling.repository import RepositoryPoller
from exporter.polling.repository_settings import SettingsPoller
from exporter.polling.rounds import TargetRounds
from exporter.replication.durations import SLACK
from exporter.replication.model import FailureScope, Page, Repository
from exporter.replication.targets import Targets

_REPOSITORIES = Job(Operation.REPOSITORIES)
_SCOPE = FailureScope("repositories")


class RepositoriesPoller(Asker):
    """Lists the repositories if a glob ranges over them, and has a poller for each that a target selects."""

    def __init__(self, context: Context, rounds: TargetRounds, settings: SettingsPoller) -> None:
        super().__init__(context)
        self._settings = settings
        #: By name.
        self.pollers: dict[str, RepositoryPoller] = {}
        self._rounds = rounds
        self._listing: Listing[Repository] | None = None
        #: The repositories that exist; None until listed. When the present listing began, and the last one.
        self._existing: frozenset[str] | None = None
        self._began = self._listed_from = 0.0
        #: Names that events add during the present listing, whose pages may be older.
        self._added: set[str] = set()
        #: Globs that matched nothing when last seen.
        self._empty: frozenset[str] = frozenset()

    def configure(self, group: Group, targets: Targets) -> None:
        """Take the targets and the accesses. Repositories are only polled from `begin` on."""
        self._group, self._targets = group, targets
        globs = {target.label: target.settings for target in targets.all if target.settings.is_glob}
        with self._store.lock:
            self._rounds.configure({target.label: target.settings.selection for target in targets.all})
            self._registry.globs = frozenset(globs)
        self.choice.configure(group.named(globs.values()))
        for name, poller in self.pollers.items():
            poller.allow(group.named(target.settings for target in targets.of(name).targets))

    def begin(self) -> None:
        """Poll the repositories of the present targets."""
        if self._targets.need_repositories:
            self._pacing.book(_REPOSITORIES)
        else:
            self._pacing.cancel(_REPOSITORIES)
            self._context.works(_SCOPE)
            self._existing = self._listing = None
        with self._store.lock:
            self._registry.repositories_known = (
                not self._targets.need_repositories or self._existing is not None
            )
        self._select()
        with self._store.lock:
            self._registry.begun = True

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        if self._listing is None:
            self._listing, self._began = Listing("ecr:DescribeRepositories"), self._clock.time()
            self._added.clear()
        return partial(client.repositories, self._listing.token)

    def answered(self, call: Call, answer: Page[Repository]) -> None:
        """Take a page of repositories."""
        if not self._targets.need_repositories:
            return  # asked for a configuration that is gone
        listing = self._listing
        if listing:
            listing.answered(answer)
        if listing is None or not listing.complete:
            self.ask_again(call.job)
            return
        self._existing = frozenset(each.name for each in listing.items) | self._added
        self._listing = None
        self._listed_from = self._began
        self._context.works(_SCOPE)
        self._settings.listed_for_glob(listing.items)
        with self._store.lock:
            self._registry.repositories_known = True
            self._registry.repositories_time = self._clock.time()
        self._select()
        self.ask_again(call.job, due=self._pacing.later(self._pacing.settings.discovery_interval))

    def failed(self, call: Call, error: ECRError) -> None:
        self._listing = None
        self.ask_again(call.job, due=self._context.fail(_SCOPE, error, call))

    def gone(self, name: str) -> bool:
        """Take that a repository is gone; False if a target spells it out, so that it has failed."""
        if name in self._targets.repositories:
            return False
        self._existing = (self._existing or frozenset()) - {name}
        self._added.discard(name)
        self._drop(name)
        return True

    def happened(self, event: Event) -> Outcome:
        """Take that something happened in a repository. One that is new is polled at once."""
        name = event.repository
        if poller := self.pollers.get(name):
            return poller.happened(event)
        arrives = event.place == self._registry.source and event.kind in (EventKind.PUSH, EventKind.REPLICATE)
        if not arrives or self._existing is None or not self._targets.selects(name):
            return Outcome.FOREIGN
        if event.at is not None and event.at + SLACK < self._listed_from:
            return Outcome.OLD
        self._existing |= {name}
        self._added.add(name)
        self._poll(name)
        self._context.targets_changed = True
        return Outcome.USED

    def retire(self) -> None:
        """Poll no repository any more."""
        for name in list(self.pollers):
            self._drop(name)

    def _select(self) -> None:
        """Poll what the targets select of the existing repositories, and nothing else."""
        # Until they are listed, what is polled is known to exist: a reload that adds a glob drops none of it.
        wanted = self._targets.matching(self.pollers if self._existing is None else self._existing)
        for name in self.pollers.keys() - wanted:
            self._drop(name)
        for name in wanted:
            self._poll(name)
        if self._existing is not None:
            empty = self._targets.matching_nothing(self._existing)
            # Once: its repositories may come later, or it is mistyped.
            for label in sorted(empty - self._empty):
                self._context.warned("target_matches_no_repository", target=label)
            self._empty = empty
        self._context.targets_changed = True

    def _poll(self, name: str) -> None:
        """Poll a repository, with the present targets."""
        targets = self._targets.of(name)
        if known := self.pollers.get(name):
            known.retarget(targets)
            return
        accesses = self._group.named(target.settings for target in targets.targets)
        self.pollers[name] = poller = RepositoryPoller(self._context, name, targets, accesses, gone=self.gone)
        with self._store.lock:
            self._store.changed()
            self._registry.repositories[name] = poller.facts

    def _drop(self, name: str) -> None:
        self.pollers.pop(name).retire()
        with self._store.lock:
            self._store.changed()
            del self._registry.repositories[name]
        self._context.targets_changed = True
