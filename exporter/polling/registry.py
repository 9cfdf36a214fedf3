"""One source registry: its configuration, its repositories, and who takes each answer.

No threads and no waiting here. The poller takes a call from `next_call`, has it made, and hands the result
to `answered` or `failed`, all on its loop thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import Settings, TargetSettings
from exporter.polling.access import Access, Choice, Clients, Group
from exporter.polling.calls import Call, Clock, InFlight, Job, Journal, Kind, call_lost
from exporter.polling.failures import Failures, FirstRounds, Parts, Reach, requested_pause
from exporter.polling.listing import Listing, circle
from exporter.polling.pacing import Pacing
from exporter.polling.repository import RepositoryPoller
from exporter.polling.rules import OnAccount, RulesPoller
from exporter.polling.statuses import OnComplete
from exporter.replication.facts import RegistryFacts
from exporter.replication.model import FailureScope, Page, Reason
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import Newest, RepositoryTargets, Shard, Targets

#: Seconds until a call about the whole registry that was throttled is made again.
THROTTLED_PAUSE = 1.0

_REPOSITORIES = Job(Kind.REPOSITORIES)


class RegistryPoller:
    """Keeps the facts of one registry."""

    def __init__(
        self,
        *,
        name: str,
        group: Group,
        connect: Callable[[Access], EcrClient],
        shard: Shard,
        store: Store,
        newest: Newest,
        memory: StateCache,
        clock: Clock,
        random: Random,
        journal: Journal,
        settings: Settings,
        on_complete: OnComplete,
        on_account: OnAccount,
    ) -> None:
        self.facts = RegistryFacts(group.source, since=clock.monotonic())
        self._store = store
        self._shard = shard
        self._rounds = FirstRounds(self.facts, store=store, clock=clock)
        self._parts = Parts(
            name=name,
            facts=self.facts,
            pacing=Pacing(clock=clock, random=random, settings=settings),
            failures=Failures(
                registry=name,
                facts=self.facts,
                store=store,
                clock=clock,
                random=random,
                journal=journal,
                on_report=self._rounds.changed,
            ),
            in_flight=InFlight(),
            clients=Clients(connect),
            rounds=self._rounds,
            clock=clock,
            journal=journal,
        )
        self.pacing = self._parts.pacing
        self._reach = Reach(self._parts)
        self._new_repository = partial(
            RepositoryPoller,
            parts=self._parts,
            store=store,
            newest=newest,
            memory=memory,
            on_complete=on_complete,
            unknown_statuses=set(),
        )
        self._repositories: dict[str, RepositoryPoller] = {}
        self._configured: tuple[Settings, Group] | None = None
        self._group = group
        self._wanted: tuple[TargetSettings, ...] = ()
        self._rules = RulesPoller(
            self._parts,
            store=store,
            repositories=self._repositories,
            begin=self._begin_once,
            on_account=on_account,
        )
        self._list_access = Choice(())
        self._listing: Listing[str] | None = None
        #: The repositories that exist; None until listed.
        self._existing: frozenset[str] | None = None
        #: Globs that matched nothing when last seen.
        self._empty: frozenset[str] = frozenset()
        self._begun = False

    # -- configuration -----------------------------------------------------------------------

    def configure(self, settings: Settings, group: Group) -> None:
        """Take a configuration, the first or another. What is known of what stays is kept."""
        if self._configured == (settings, group):
            return
        first, self._configured = self._configured is None, (settings, group)
        pacing = self.pacing
        before = (pacing.intervals, pacing.stale_after)
        pacing.configure(settings)
        self._group, self._wanted = group, group.targets(settings.targets)
        with self._store.lock:
            if self.facts.source != group.source:
                self._store.changed()
                self.facts.source = group.source
        self._aim()
        # Another access may be able to read rules that none could read.
        if self._configure_accesses(group) or first:
            self._rules.ask()
        if before != (pacing.intervals, pacing.stale_after):
            listing = before[0].discovery != pacing.intervals.discovery
            for repository in self._repositories.values():
                repository.intervals_changed(listing=listing)
        if self._begun:
            self._begin()

    def _configure_accesses(self, group: Group) -> bool:
        """Take the accesses; whether they are others."""
        accesses = group.accesses
        changed = self._parts.clients.configure(accesses)
        self._rules.configure(accesses)
        globs = [target for target in self._wanted if target.is_glob]
        self._list_access.configure(group.named(globs) if globs else accesses)
        for repository in self._repositories.values():
            repository.allow(self._accesses(self._targets.of(repository.name)))
        return changed

    def _accesses(self, targets: RepositoryTargets) -> tuple[Access, ...]:
        """The accesses that the targets of a repository name; all if the targets are gone."""
        named = self._group.named(target.settings for target in targets.targets)
        return named or self._group.accesses

    def _aim(self) -> None:
        """Take the targets that are this shard's; all of them while the account is not known."""
        source = self.facts.source
        self._targets = Targets(
            self._wanted, ours=lambda name: not source.registry_id or self._shard.owns(source, name)
        )
        labels = tuple(target.label for target in self._targets.all)
        with self._store.lock:
            self._rounds.configure(self.facts.labels, labels)
            self.facts.labels = labels
            self.facts.globs = frozenset(t.label for t in self._targets.all if t.settings.is_glob)

    def has_access(self, accesses: Iterable[Access]) -> bool:
        """Whether it is reached with one of these."""
        return any(access in self._parts.clients for access in accesses)

    def admit(self) -> None:
        """Take that another number of images fits under `max_images`."""
        for repository in self._repositories.values():
            repository.admit()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        self._parts.journal.forget(self._parts.name)
        self._parts.clients.configure(())
        for name in list(self._repositories):
            self._drop(name)

    # -- calls -------------------------------------------------------------------------------

    def next_call(self) -> Call | float:
        """A call to make now, in any thread; or the monotonic time at which there may be one."""
        found = self.pacing.take(self._parts.in_flight)
        if not isinstance(found, Job):
            return found
        access, make = self._make(found)
        call = Call(found, access, self._parts.clock.monotonic(), make)
        self._parts.in_flight.add(call)
        return call

    def _make(self, job: Job) -> tuple[Access, Callable[[], Any]]:
        """How to make the call of a job, and with which access."""
        if job.repository:
            return self._repositories[job.repository].call(job)
        if job.kind is not Kind.REPOSITORIES:
            return self._rules.call(job)
        self._listing = self._listing or Listing()
        question = self._listing.question()
        access = self._list_access.access
        list_page = self._parts.clients.of(access).repositories
        return access, partial(list_page, question.token if question else None)

    def answered(self, call: Call, answer: Any) -> None:
        """Take an answer. What cannot be understood counts as a failed call."""
        if not self._parts.in_flight.remove(call):
            return
        self._reach.answered(call)
        if self.facts.heard_at == float("inf"):
            with self._store.lock:
                self.facts.heard_at = self._parts.clock.monotonic()
        try:
            self._take(call, answer)
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            self._take_failure(call, unusable(error))

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. What is known is kept, and the job is booked again."""
        if self._parts.in_flight.remove(call):
            self._end(call, error)

    def end_lost_calls(self) -> None:
        """Take that calls failed which are under way for too long."""
        for call in self._parts.in_flight.lost(self._parts.clock.monotonic()):
            self._parts.in_flight.remove(call)
            self._end(call, call_lost())

    def record_first_rounds(self) -> None:
        """Record what the last answers mean for the first rounds of targets."""
        self._rounds.record()

    def _end(self, call: Call, error: ECRError) -> None:
        if not self._reach.failed(call, error):
            self._take_failure(call, error)
            return
        due = self._parts.clock.monotonic() + requested_pause(error)
        if not call.job.repository:
            self.pacing.book(call.job, due=max(due, self.pacing.later(THROTTLED_PAUSE)))
        elif repository := self._repositories.get(call.job.repository):
            repository.ask_again(call.job, due=due)

    def _take(self, call: Call, answer: Any) -> None:
        kind = call.job.kind
        if kind is Kind.REGISTRY:
            self._rules.described(call, answer)
        elif kind is Kind.ACCOUNT:
            self._rules.identified(call, answer)
        elif kind is Kind.REPOSITORIES:
            self._repositories_page(call, answer)
        elif repository := self._repositories.get(call.job.repository):
            repository.answered(call, answer)

    def _take_failure(self, call: Call, error: ECRError) -> None:
        job = call.job
        if job.kind is Kind.REGISTRY or job.kind is Kind.ACCOUNT:
            self._rules.failed(call, error)
        elif job.kind is Kind.REPOSITORIES:
            self._repositories_failed(call, error)
        elif repository := self._repositories.get(job.repository):
            if self._is_gone(job, error):
                self._existing = (self._existing or frozenset()) - {job.repository}
                self._drop(job.repository)
            else:
                repository.failed(call, error)

    # -- repositories ------------------------------------------------------------------------

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._begin()

    def _begin(self) -> None:
        """Poll the repositories of the present targets."""
        if self._targets.need_repositories:
            self.pacing.book(_REPOSITORIES)
        else:
            self.pacing.cancel(_REPOSITORIES)
            self._parts.works(FailureScope("repositories"))
            self._existing = self._listing = None
        with self._store.lock:
            self.facts.repositories_known = not self._targets.need_repositories or self._existing is not None
        self._watch_repositories()
        with self._store.lock:
            self.facts.begun = True

    def _repositories_page(self, call: Call, page: Page[str]) -> None:
        self._list_access.worked()
        if not self._targets.need_repositories:
            return  # asked for a configuration that is gone
        listing = self._listing
        if listing is None:
            self.pacing.book(_REPOSITORIES)  # asked for other targets
        elif not listing.answered(page):
            self._repositories_failed(call, circle("ecr:DescribeRepositories"))
        elif listing.question():
            self.pacing.book(_REPOSITORIES)
        else:
            self._repositories_listed(frozenset(listing.items))

    def _repositories_listed(self, existing: frozenset[str]) -> None:
        self._existing = existing
        self._listing = None
        self._parts.works(FailureScope("repositories"))
        with self._store.lock:
            self.facts.repositories_known = True
            self.facts.repositories_time = self._parts.clock.time()
        self._watch_repositories()
        self.pacing.book(_REPOSITORIES, due=self.pacing.later(self.pacing.intervals.discovery))

    def _repositories_failed(self, call: Call, error: ECRError) -> None:
        self._listing = None
        refused = error.reason is Reason.ACCESS_DENIED or error.everything
        if refused and self._list_access.refused(call.access):
            self.pacing.book(call.job)
            return
        scope = FailureScope("repositories")
        until = self._parts.failures.fail(scope, error, self.facts.failures, call=call)
        self.pacing.book(call.job, due=until)

    def _watch_repositories(self) -> None:
        """Poll what the targets select of the existing repositories, and nothing else."""
        wanted = self._targets.matching(self._existing or ())
        for name in self._repositories.keys() - wanted:
            self._drop(name)
        for name in wanted:
            targets = self._targets.of(name)
            known = self._repositories.get(name)
            if known is None:
                known = self._new_repository(name, targets, self._accesses(targets))
                self._repositories[name] = known
                with self._store.lock:
                    self._store.changed()
                    self.facts.repositories[name] = known.facts
            elif known.facts.labels != targets.labels:
                known.retarget(targets)
        if self._existing is not None:
            self._warn_of(self._targets.matching_nothing(self._existing))
        self._rounds.changed()

    def _warn_of(self, empty: frozenset[str]) -> None:
        """Log once of each glob that matches nothing: its repositories may come later, or it is mistyped."""
        for label in sorted(empty - self._empty):
            self._parts.warned("target_matches_no_repository", target=label)
        self._empty = empty

    def _is_gone(self, job: Job, error: ECRError) -> bool:
        """Whether a repository is gone that only globs match; to them that is no failure."""
        gone = job.kind is Kind.IMAGES and error.reason is Reason.REPOSITORY_NOT_FOUND
        return gone and job.repository not in self._targets.repositories

    def _drop(self, name: str) -> None:
        self._repositories.pop(name).retire()
        with self._store.lock:
            self._store.changed()
            del self.facts.repositories[name]
        self._rounds.changed()


def unusable(error: Exception) -> ECRError:
    """The error of an answer that cannot be understood."""
    return ECRError(
        Reason.INVALID, action="ecr", code=f"UnusableAnswer({type(error).__name__})", message=str(error)
    )
