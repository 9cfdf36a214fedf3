"""One source registry: its accounts, rules and repositories, and which of them takes each answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from operator import attrgetter

from exporter.aws.ecr import EcrClient
from exporter.aws.events import Event
from exporter.config.settings import Settings
from exporter.polling.access import Access, Group
from exporter.polling.backfills import BackfillsPoller
from exporter.polling.calls import Job
from exporter.polling.context import Asker, Context, Outcome, Shared
from exporter.polling.coverage import Coverage
from exporter.polling.dispatcher import Dispatcher
from exporter.polling.rate_limit import Operation
from exporter.polling.replicas import Replicas
from exporter.polling.repositories import RepositoriesPoller
from exporter.polling.repository_settings import SettingsPoller
from exporter.polling.rounds import TargetRounds
from exporter.polling.rules import AccountPoller, OnAccount, RulesPoller
from exporter.replication.model import Destination
from exporter.replication.steps import Steps
from exporter.replication.targets import Targets

#: All that says how long an answer is good for, and when the next question is due.
_INTERVALS = attrgetter(
    "discovery_interval", "pending_interval", "failed_interval", "settled_interval", "stale_after"
)


class RegistryPoller(Dispatcher):
    """Keeps the facts of one registry."""

    def __init__(self, shared: Shared, *, group: Group, settings: Settings, on_account: OnAccount) -> None:
        self._shared = shared
        context = Context(shared, source=group.source, settings=settings)
        super().__init__(context)
        self._rounds = TargetRounds(context)
        self._coverage = Coverage(context)
        self._settings = SettingsPoller(context)
        self._repositories = RepositoriesPoller(context, self._rounds, self._settings)
        self._account = AccountPoller(context, begin=self._begin, on_account=on_account)
        self._rules = RulesPoller(
            context, account=self._account, repositories=self._repositories.pollers, begin=self._begin
        )
        #: Looks at it as a destination of other registries, if it is one; made when the account is known.
        self.replicas: Replicas | None = None
        self._backfills = BackfillsPoller(context)
        self._configured: tuple[Settings, Group] | None = None

    # -- configuration -----------------------------------------------------------------------

    def configure(self, settings: Settings, group: Group, connect: Callable[[Access], EcrClient]) -> None:
        """Take a configuration, the first or another. What is known of what stays is kept."""
        if self._configured == (settings, group):
            return
        before, self._configured = self._configured, (settings, group)
        context, source = self._context, group.source
        context.rename(group.name)
        self.pacing.configure(settings)
        with self._shared.store.lock:
            if self.facts.source != source:
                self._shared.store.changed()
                self.facts.source = source
        # All targets are this shard's while the account is not known.
        targets = Targets(
            group.targets(settings.targets),
            source=source,
            ours=lambda name: not source.registry_id or self._shared.shard.owns(source, name),
        )
        accesses = context.clients.keys()
        context.clients = {access: connect(access) for access in group.accesses}
        for each in (self._rules, self._account, self._backfills):
            each.configure(group.accesses)
        self._settings.choice.configure(group.accesses)
        self._repositories.configure(group, targets)
        # Another access may be able to read rules that none could read.
        if before is None or accesses != context.clients.keys():
            self._rules.ask()
        if before and _INTERVALS(before[0]) != _INTERVALS(settings):
            for repository in self._repositories.pollers.values():
                repository.intervals_changed()
        if self.facts.begun:
            self._repositories.begin()

    def has_access(self, accesses: Iterable[Access]) -> bool:
        """Whether it is reached with one of these."""
        return any(access in self._context.clients for access in accesses)

    def admit(self) -> Steps[None]:
        """Watch the images that fit under `max_images` now, in one repository after another."""
        pollers = self._repositories.pollers
        for name in list(pollers):
            if name in pollers:
                pollers[name].admit()
            yield

    def look_at(self, repositories: Collection[str]) -> None:
        """Look at the copies in these repositories, as a destination of other registries."""
        source = self.facts.source
        here = Destination(source.region, source.registry_id)
        if self.replicas and not (repositories and self.replicas.facts.destination == here):
            self.replicas.retire()
            self.replicas = None
        if repositories:
            self.replicas = self.replicas or Replicas(self._context, self._settings)
            self.replicas.configure(repositories, self._context.clients)

    def happened(self, event: Event) -> Outcome:
        """Take that something happened here, or to a copy of what is here."""
        return self._repositories.happened(event)

    def reloaded(self) -> None:
        self._backfills.ask_if_refused()
        self._settings.ask_if_refused()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        self._shared.journal.forget(self._context.name)
        self.look_at(())
        self._context.clients = {}
        self._repositories.retire()

    def _begin(self) -> None:
        if not self.facts.begun:
            self._repositories.begin()
            self._backfills.ask()

    def record(self) -> float:
        looks = self.replicas.record() if self.replicas else float("inf")
        settings = self._settings.record(self._repositories.pollers)
        changes = self._context.transitions.record()
        return min(self._rounds.record(), self._coverage.record(), changes, settings, looks)

    def _asker(self, job: Job) -> Asker | None:
        if job.operation is Operation.REPLICAS:
            return self.replicas.pollers.get(job.repository) if self.replicas else None
        if job.repository:
            repository = self._repositories.pollers.get(job.repository)
            return repository.statuses if repository and job.operation is Operation.STATUS else repository
        return {
            Operation.REPOSITORIES: self._repositories,
            Operation.ACCOUNT: self._account,
            Operation.BACKFILLS: self._backfills,
            Operation.SETTINGS: self._settings,
        }.get(job.operation, self._rules)
