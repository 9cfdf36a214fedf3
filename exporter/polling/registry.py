"""The engine of one source registry: whose it is, its rules, its repositories.

No threads and no waiting here: the poller takes a call from `next_call`, has it made somewhere, and
brings the answer back to `answered` or `failed`, all on its loop thread. Here and in `repository` the
circle is closed: what was learnt decides when ECR is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import Settings, TargetSettings
from exporter.polling.agenda import Agenda, Clock, Job, Journal, Kind
from exporter.polling.repository import RepositoryWatch, circle
from exporter.replication.model import Destination, FailureScope, Page, Reason, Registry, Source
from exporter.replication.state_file import StateCache
from exporter.replication.store import RegistryFacts, Store
from exporter.replication.targets import Listing, Newest, Shard, Targets

#: Seconds after which a call about the whole registry that was refused is made again: there is but one
#: of its kind, so that nothing else paces it.
REFUSED_PAUSE = 1.0

_REGISTRY = Job(Kind.REGISTRY)
_ACCOUNT = Job(Kind.ACCOUNT)
_REPOSITORIES = Job(Kind.REPOSITORIES)


class RegistryWatch:
    """Watches one registry."""

    def __init__(
        self,
        *,
        name: str,
        client: EcrClient,
        source: Source,
        foreign: bool,
        shard: Shard,
        store: Store,
        newest: Newest,
        memory: StateCache,
        clock: Clock,
        random: Random,
        journal: Journal,
        settings: Settings,
        on_complete: Callable[[Source, Destination, float], None],
    ) -> None:
        self.facts = RegistryFacts(source, since=clock.monotonic())
        self.agenda = Agenda(
            registry=name,
            facts=self.facts,
            store=store,
            clock=clock,
            random=random,
            journal=journal,
            settings=settings,
        )
        self._client_of = client
        #: Whether somebody else's registry is read, whose rules these credentials may not see.
        self._foreign = foreign
        self._shard = shard
        self._store = store
        self._repositories: dict[str, RepositoryWatch] = {}
        self._watch_repository = partial(
            RepositoryWatch,
            registry=self.facts,
            client=client,
            agenda=self.agenda,
            store=store,
            newest=newest,
            memory=memory,
            on_complete=on_complete,
            unheard_of=set(),
        )
        self._listing: Listing[str] | None = None
        #: The repositories that exist; None until listed.
        self._existing: frozenset[str] | None = None
        #: Globs that matched nothing when last seen.
        self._empty: frozenset[str] = frozenset()
        self._begun = False

    # -- what the poller calls ---------------------------------------------------------------

    def configure(self, settings: Settings, targets: Iterable[TargetSettings]) -> None:
        """Take a configuration, the first or a new one. What is known of what stays is kept."""
        agenda = self.agenda
        before = (agenda.intervals, agenda.stale_after) if self._begun else None
        # Targets that had their first round have had it, whatever is asked anew now.
        self._store.snapshot(self.agenda.clock.monotonic())
        self._wanted = tuple(targets)
        self._aim()
        self.agenda.configure(settings)
        if before is None:
            self.agenda.book(_REGISTRY)
            return
        if before != (agenda.intervals, agenda.stale_after):
            listing = before[0].discovery != agenda.intervals.discovery
            for repository in self._repositories.values():
                repository.rebook(listing=listing)
        self._begin()

    def next_call(self) -> tuple[Job, Callable[[], Any]] | float:
        """A call to be made now, in any thread; or the monotonic time at which there may be one."""
        found = self.agenda.take()
        return (found, self._call(found)) if isinstance(found, Job) else found

    def answered(self, job: Job, answer: Any) -> None:
        """Take what a call gave."""
        if self.agenda.came_late(job):
            return
        self.agenda.answered(job)
        if job.kind is Kind.REGISTRY:
            self._described(answer)
        elif job.kind is Kind.ACCOUNT:
            self._identified(answer)
        elif job.kind is Kind.REPOSITORIES:
            self._repositories_page(answer)
        elif repository := self._repositories.get(job.repository):
            repository.answered(job, answer)

    def failed(self, job: Job, error: ECRError) -> None:
        """Take that a call gave nothing. Nothing known is forgotten; the call is booked again."""
        if not self.agenda.came_late(job):
            self._failed(job, error)

    def give_up(self) -> None:
        """Take that calls give nothing which are under way for too long."""
        for job, error in self.agenda.lost():
            self._failed(job, error)

    def _failed(self, job: Job, error: ECRError) -> None:
        repository = self._repositories.get(job.repository)
        if self.agenda.refused(job, error):
            if repository:
                repository.book_again(job)
            elif not job.repository:
                self.agenda.book(job, due=self.agenda.later(REFUSED_PAUSE))
        elif job.kind is Kind.REGISTRY or job.kind is Kind.ACCOUNT:
            self._registry_failed(job, error)
        elif job.kind is Kind.REPOSITORIES:
            self._listing = None
            delay = self.agenda.fail(FailureScope("repositories"), error, self.facts.failures)
            self.agenda.book(job, due=self.agenda.later(delay))
        elif repository and self._surprises(job, error):
            self._existing = (self._existing or frozenset()) - {job.repository}
            self._drop(job.repository)
        elif repository:
            repository.failed(job, error)

    def admit(self) -> None:
        """Another number of images fits under `max_images`."""
        for repository in self._repositories.values():
            repository.admit()

    def retire(self) -> None:
        """It is watched no longer: leave nothing behind."""
        self.agenda.retire()
        for name in list(self._repositories):
            self._drop(name)

    # -- the registry ------------------------------------------------------------------------

    def _described(self, registry: Registry) -> None:
        self.agenda.works(FailureScope("rules"))
        source = self.facts.source
        if not (source.registry_id or registry.registry_id):
            self.agenda.book(_ACCOUNT)
            return
        if not source.registry_id:
            self._name(registry.registry_id)
        elif registry.registry_id not in ("", source.registry_id) and not self._foreign:
            self._start_over(registry.registry_id)
        if self._foreign and registry.registry_id != source.registry_id:
            # These are the rules of our own registry; they say nothing of the one that is read.
            self.agenda.book(_REGISTRY, due=self.agenda.later(self.agenda.intervals.settled))
        else:
            self._take_rules(registry)
            self.agenda.book(_REGISTRY, due=self.agenda.later(self.agenda.intervals.discovery))
        self._begin_once()

    def _start_over(self, registry_id: str) -> None:
        """The credentials are another account's now: nothing that is known is known of that one."""
        for name in list(self._repositories):
            self._drop(name)
        self._existing = self._listing = None
        self._begun = False
        with self._store.lock:
            self.facts.rules = None
            self.facts.begun = False
            self.facts.judged.clear()
        self._name(registry_id)

    def _identified(self, account: str) -> None:
        self.agenda.works(FailureScope("account"))
        if account:
            self._name(account)
            self._begin_once()
        else:
            self.agenda.book(_ACCOUNT, due=self.agenda.later(self.agenda.intervals.discovery))

    def _name(self, registry_id: str) -> None:
        with self._store.lock:
            self._store.changed()
            self.facts.source = Source(registry_id, self.facts.source.region)
        self._aim()
        self.agenda.noted("registry_identified", registry_id=registry_id, region=self.facts.source.region)

    def _registry_failed(self, job: Job, error: ECRError) -> None:
        if self._foreign and error.reason is Reason.ACCESS_DENIED:
            self.agenda.book(job, due=self.agenda.later(self.agenda.intervals.settled))
        else:
            scope = FailureScope("rules" if job.kind is Kind.REGISTRY else "account")
            delay = self.agenda.fail(scope, error, self.facts.failures)
            self.agenda.book(job, due=self.agenda.later(delay))
        with self._store.lock:
            # Rules that are too old to be believed count as changed when they can be read again.
            now = self.agenda.clock.monotonic()
            self.facts.rules = self.facts.believed_rules(now, self.agenda.stale_after)
        if error.reason is Reason.UNAVAILABLE and not self.agenda.told(FailureScope("rules")):
            return  # a single time-out: without the rules everything would have to be asked anew
        if self.facts.source.registry_id:
            self._begin_once()
        elif job.kind is Kind.REGISTRY and error.reason is not Reason.UNAVAILABLE:
            self.agenda.book(_ACCOUNT)

    def _take_rules(self, registry: Registry) -> None:
        before = self.facts.rules
        with self._store.lock:
            self.facts.rules = registry
            self.facts.rules_at = self.agenda.clock.monotonic()
            self.facts.rules_time = self.agenda.sent_time()
        if before != registry:
            changed = before is not None
            self.agenda.noted("replication_rules_read", rules=len(registry.rules), changed=changed)
        for name, repository in self._repositories.items():
            expected = registry.destinations(name)
            # Rules that could not be read for long may have changed any number of times.
            if before is None or before.destinations(name) != expected:
                repository.rules_changed(expected=expected)
            else:
                repository.rules_confirmed()

    def _aim(self) -> None:
        """Take the targets that are this shard's; all of them while nobody knows whose registry it is."""
        source = self.facts.source
        self._targets = Targets(
            self._wanted, ours=lambda name: not source.registry_id or self._shard.owns(source, name)
        )
        with self._store.lock:
            self.facts.labels = tuple(target.label for target in self._targets.all)
            self.facts.globs = frozenset(
                target.label for target in self._targets.all if target.settings.is_glob
            )
            self.facts.judged &= set(self.facts.labels)

    # -- repositories ------------------------------------------------------------------------

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._begin()

    def _begin(self) -> None:
        if self._targets.need_repositories:
            self.agenda.book(_REPOSITORIES)
        else:
            self.agenda.queue.cancel(_REPOSITORIES)
            self.agenda.works(FailureScope("repositories"))
            self._existing = self._listing = None
        with self._store.lock:
            self.facts.repositories_known = not self._targets.need_repositories or self._existing is not None
        self._watch_repositories()
        with self._store.lock:
            self.facts.begun = True

    def _repositories_page(self, page: Page[str]) -> None:
        if not self._targets.need_repositories:
            return  # asked for a configuration that is gone
        listing = self._listing
        if listing is None:
            self.agenda.book(_REPOSITORIES)  # asked of another account, or for other targets
        elif not listing.answered(page):
            self.failed(_REPOSITORIES, circle("ecr:DescribeRepositories"))
        elif listing.question():
            self.agenda.book(_REPOSITORIES)
        else:
            self._existing = frozenset(listing.items)
            self._listing = None
            self.agenda.works(FailureScope("repositories"))
            with self._store.lock:
                self.facts.repositories_known = True
                self.facts.repositories_time = self.agenda.clock.time()
            self._watch_repositories()
            self.agenda.book(_REPOSITORIES, due=self.agenda.later(self.agenda.intervals.discovery))

    def _watch_repositories(self) -> None:
        """Watch what the targets and the registry's repositories give now, and nothing else."""
        wanted = self._targets.matching(self._existing or ())
        for name in self._repositories.keys() - wanted:
            self._drop(name)
        for name in wanted:
            targets = self._targets.of(name)
            known = self._repositories.get(name)
            if known is None:
                self._repositories[name] = known = self._watch_repository(name, targets)
                with self._store.lock:
                    self._store.changed()
                    self.facts.repositories[name] = known.facts
            elif known.facts.labels != targets.labels:
                known.retarget(targets)
        if self._existing is not None:
            self._warn_of(self._targets.matching_nothing(self._existing))

    def _warn_of(self, empty: frozenset[str]) -> None:
        """A glob that matches nothing may be meant for later, or mistyped: say so, once."""
        for label in sorted(empty - self._empty):
            self.agenda.warned("target_matches_no_repository", target=label)
        self._empty = empty

    def _surprises(self, job: Job, error: ECRError) -> bool:
        """Whether a repository is gone that only globs match: they do not miss it."""
        gone = job.kind is Kind.IMAGES and error.reason is Reason.REPOSITORY_NOT_FOUND
        return gone and job.repository not in self._targets.repositories

    def _drop(self, name: str) -> None:
        self._repositories.pop(name).retire()
        with self._store.lock:
            self._store.changed()
            del self.facts.repositories[name]

    # -- calls -------------------------------------------------------------------------------

    def _call(self, job: Job) -> Callable[[], Any]:
        if job.kind is Kind.REGISTRY:
            return self._client_of.registry
        if job.kind is Kind.ACCOUNT:
            return self._client_of.account
        if job.kind is Kind.REPOSITORIES:
            self._listing = self._listing or Listing()
            question = self._listing.question()
            return partial(self._client_of.repositories, question.token if question else None)
        return self._repositories[job.repository].call(job)
