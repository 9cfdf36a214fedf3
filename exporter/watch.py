"""The engine of one source registry: what each answer means, and what to book next.

No threads and no waiting here: the poller takes a call from `next_call`, has it made somewhere, and
brings the answer back to `answered` or `failed`, all on its loop thread. This is where the circle is
closed: what was learnt decides when ECR is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from random import Random
from typing import Any, NamedTuple, Protocol

from exporter.config import Settings, TargetSettings
from exporter.ecr import ECRError, Gate
from exporter.model import (
    Destination,
    Image,
    Name,
    Page,
    Reason,
    Registry,
    Replication,
    Source,
    Status,
)
from exporter.schedule import Backoff, Budget, Intervals, Lane, Schedule, spread
from exporter.state import (
    RECENT,
    ImageFacts,
    Ledger,
    RegistryFacts,
    RepositoryFacts,
    TargetImages,
    completed,
    image_state,
    judge_replications,
    without_destinations,
)
from exporter.targets import (
    ByName,
    Listing,
    Lookup,
    Newest,
    RepositoryTargets,
    Targets,
    Watched,
    cheapest,
    too_long,
)

#: So many calls in a row without any answer mean that the registry, not a repository, is out of reach.
OUTAGE_AFTER = 3
#: Longest pause in seconds between probes of a registry that is out of reach.
OUTAGE_CAP = 30.0


class Clock(Protocol):
    """The standard library's `time` module is one."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Kind(Enum):
    """What a call is about."""

    REGISTRY = "registry"  # whose registry is it, and what are its rules
    ACCOUNT = "account"  # whose credentials are these: only if the registry may not be described
    REPOSITORIES = "repositories"
    IMAGES = "images"
    STATUS = "status"


class Job(NamedTuple):
    """The key of a booking."""

    kind: Kind
    repository: str = ""
    digest: str = ""


class Scope(NamedTuple):
    """What a failure concerns: a kind of call, in the whole registry, a repository, or for one image."""

    kind: str
    repository: str = ""
    digest: str = ""

    def __str__(self) -> str:
        where = f"{self.repository}@{self.digest}" if self.digest else self.repository
        return f"{self.kind} {where}".strip()


class Journal(Protocol):
    """Told of failures that begin, go on and end, and folds them into few log lines; and of events."""

    def failed(self, registry: str, scope: Scope, error: ECRError) -> None: ...

    def recovered(self, registry: str, scope: Scope) -> None: ...

    def noted(self, registry: str, event: str, **fields: object) -> None: ...


_REGISTRY = Job(Kind.REGISTRY)
_ACCOUNT = Job(Kind.ACCOUNT)
_REPOSITORIES = Job(Kind.REPOSITORIES)
#: The scope of a failure that is the whole registry's.
_EVERYTHING = Scope("registry")


@dataclass(slots=True)
class _Repository:
    """What the engine remembers of a repository beyond the facts."""

    targets: RepositoryTargets
    facts: RepositoryFacts
    listing: Listing[Any] | Lookup | None = None
    pages: int | None = None
    suspects: frozenset[Name] = frozenset()
    #: Digests whose first answer is awaited before the repository's targets can be judged.
    unasked: set[str] | None = None


@dataclass(slots=True)
class _Trouble:
    backoff: Backoff = field(default_factory=Backoff)
    visible: bool = False


class RegistryWatch:
    """Watches one registry; all methods are called from the poller's loop thread."""

    def __init__(
        self,
        *,
        name: str,
        gate: Gate,
        source: Source,
        foreign: bool,
        ledger: Ledger,
        newest: Newest,
        clock: Clock,
        random: Random,
        journal: Journal,
        on_complete: Callable[[Source, Destination, float], None],
    ) -> None:
        self.name = name
        self.gate = gate
        self.facts = RegistryFacts(source)
        self.schedule: Schedule[Job] = Schedule()
        #: Whether somebody else's registry is read, whose rules these credentials cannot see.
        self._foreign = foreign
        self._ledger = ledger
        self._newest = newest
        self._clock = clock
        self._random = random
        self._journal = journal
        self._on_complete = on_complete
        self._repositories: dict[str, _Repository] = {}
        self._listing: Listing[str] | None = None
        #: The repositories that exist; None until listed.
        self._existing: frozenset[str] | None = None
        self._in_flight: set[Job] = set()
        self._scopes: dict[Scope, _Trouble] = {}
        self._unheard_of: set[str] = set()
        self._in_a_row = 0
        self._begun = False

    # -- what the poller calls ---------------------------------------------------------------

    def configure(self, settings: Settings, targets: Iterable[TargetSettings]) -> None:
        """Take a configuration, the first or a new one. What is known of what stays is kept."""
        now = self._clock.monotonic()
        self._targets = Targets(targets)
        self._stale_after = settings.stale_after
        intervals = Intervals(
            discovery=settings.discovery_interval,
            pending=settings.pending_interval,
            failed=settings.failed_interval,
            settled=settings.settled_interval,
        )
        if self._begun:
            self._rebook(intervals)
        self._intervals = intervals
        self.budget = Budget(settings.requests_per_second, now=now)
        with self._ledger.lock:
            self.facts.labels = tuple(target.label for target in self._targets.all)
            self.facts.globs = frozenset(
                target.label for target in self._targets.all if target.settings.is_glob
            )
            self.facts.judged &= set(self.facts.labels)
        if self._begun:
            self._begin()
        else:
            self.schedule.book(_REGISTRY, due=now, lane=Lane.LISTING)

    def _rebook(self, intervals: Intervals) -> None:
        """Other intervals count from the last answers, not from now: nothing is asked that need not be."""
        if intervals == self._intervals:
            return
        for name, repository in self._repositories.items():
            images = repository.facts.images
            for digest, facts in images.items():
                if facts.replications is None:
                    continue
                interval = intervals.after(facts.state)
                good_until = facts.answered_at + interval + self._stale_after
                with self._ledger.lock:
                    images[digest] = replace(facts, good_until=good_until)
                due = facts.answered_at + spread(interval, self._random)
                self._book(Job(Kind.STATUS, name, digest), due)

    def next_call(self) -> tuple[Job, Callable[[], Any]] | None:
        """A call to be made now, in any thread; None if nothing is due, held, or beyond the budget."""
        now = self._clock.monotonic()
        while self.budget.next_at(now) <= now:
            job = self.schedule.take(now)
            if job is None:
                return None
            # One that is under way is booked anew by its own answer.
            if job not in self._in_flight and (call := self._call(job)):
                self.budget.take(now)
                self._in_flight.add(job)
                return job, call
        return None

    def next_at(self) -> float:
        """The monotonic time at which `next_call` may next have something."""
        now = self._clock.monotonic()
        return max(self.schedule.next_at(now), self.budget.next_at(now))

    def answered(self, job: Job, answer: Any) -> None:
        """Take what a call gave."""
        self._in_flight.discard(job)
        self._reached()
        if job.kind is Kind.REGISTRY:
            self._described(answer)
        elif job.kind is Kind.ACCOUNT:
            self._identified(answer)
        elif job.kind is Kind.REPOSITORIES:
            self._repositories_page(answer)
        elif job.kind is Kind.IMAGES:
            self._images_answer(job.repository, answer)
        else:
            self._status(job, answer)

    def failed(self, job: Job, error: ECRError) -> None:
        """Take that a call gave nothing. Nothing known is forgotten; the call is booked again."""
        self._in_flight.discard(job)
        if error.reason is Reason.THROTTLED:
            # Refused, not failed: it goes back to its place, and what it was part of goes on.
            self._book(job, self._clock.monotonic())
            return
        self._in_a_row = self._in_a_row + 1 if error.reason is Reason.UNAVAILABLE else 0
        if error.everything or self._in_a_row >= OUTAGE_AFTER:
            delay = self._fail(_EVERYTHING, error, cap=OUTAGE_CAP, visible_from=1)
            self.schedule.pause(until=self._clock.monotonic() + delay)
            self._book(job, self._clock.monotonic())
        elif job.kind is Kind.REGISTRY or job.kind is Kind.ACCOUNT:
            self._registry_failed(job, error)
        elif job.kind is Kind.REPOSITORIES:
            self._listing = None
            self._book(job, self._later(self._fail(Scope("repositories"), error)))
        elif job.kind is Kind.IMAGES:
            self._images_failed(job, error)
        else:
            self._status_failed(job, error)

    def retire(self) -> None:
        """Forget all log lines and shares of this registry, as it is watched no longer."""
        for name in list(self._repositories):
            self._drop(name)
        for scope in list(self._scopes):
            self._forget(scope)

    # -- the registry ------------------------------------------------------------------------

    def _described(self, registry: Registry) -> None:
        self._forget(Scope("rules"))
        source = self.facts.source
        if not source.registry_id and not registry.registry_id:
            self._book(_ACCOUNT, self._clock.monotonic())
            return
        if not source.registry_id:
            self._rename(registry.registry_id)
        if self._foreign and registry.registry_id != source.registry_id:
            # These are the rules of our own registry; they say nothing of the one that is read.
            self._book(_REGISTRY, self._later(self._intervals.settled))
        else:
            self._take_rules(registry)
            self._book(_REGISTRY, self._later(self._intervals.discovery))
        self._begin_once()

    def _identified(self, account: str) -> None:
        if account:
            self._rename(account)
            self._begin_once()
        else:
            self._book(_ACCOUNT, self._later(self._intervals.discovery))

    def _rename(self, registry_id: str) -> None:
        with self._ledger.lock:
            self.facts.source = Source(registry_id, self.facts.source.region)
        self._note("registry_identified", registry_id=registry_id, region=self.facts.source.region)

    def _registry_failed(self, job: Job, error: ECRError) -> None:
        if self._foreign and error.reason is Reason.ACCESS_DENIED:
            self._book(job, self._later(self._intervals.settled))
        else:
            self._book(job, self._later(self._fail(Scope("rules"), error)))
        if self.facts.source.registry_id:
            self._begin_once()
        elif job.kind is Kind.REGISTRY and error.reason is not Reason.UNAVAILABLE:
            self._book(_ACCOUNT, self._clock.monotonic())

    def _take_rules(self, registry: Registry) -> None:
        before = self.facts.rules
        if before != registry:
            self._note("replication_rules_read", rules=len(registry.rules), changed=before is not None)
        with self._ledger.lock:
            self.facts.rules = registry
            self.facts.rules_at = self._clock.monotonic()
        for name, repository in self._repositories.items():
            old = before.destinations(name) if before else frozenset()
            if old != registry.destinations(name):
                self._rules_changed(name, repository, gone=old - registry.destinations(name))

    def _rules_changed(self, name: str, repository: _Repository, *, gone: frozenset[Destination]) -> None:
        """Nothing is owed to a destination that is gone; the rest is for ECR to say."""
        images = repository.facts.images
        with self._ledger.lock:
            for digest, facts in images.items():
                images[digest] = without_destinations(facts, gone)
        for digest in images:
            self._book(Job(Kind.STATUS, name, digest), self._clock.monotonic())

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._begin()

    def _begin(self) -> None:
        if self._targets.need_repositories:
            self._book(_REPOSITORIES, self._clock.monotonic())
        else:
            self.schedule.cancel(_REPOSITORIES)
            self._existing = None
        with self._ledger.lock:
            self.facts.repositories_known = not self._targets.need_repositories or self._existing is not None
        self._watch_repositories()

    # -- repositories ------------------------------------------------------------------------

    def _repositories_page(self, page: Page[str]) -> None:
        listing = self._listing or Listing()
        self._listing = listing
        if not listing.answered(page):
            self.failed(_REPOSITORIES, _circle("ecr:DescribeRepositories"))
        elif listing.question():
            self._book(_REPOSITORIES, self._clock.monotonic())
        else:
            self._existing = frozenset(listing.items)
            self._listing = None
            self._forget(Scope("repositories"))
            with self._ledger.lock:
                self.facts.repositories_known = True
                self.facts.repositories_time = self._clock.time()
            self._watch_repositories()
            self._book(_REPOSITORIES, self._later(self._intervals.discovery))

    def _watch_repositories(self) -> None:
        """Watch what the targets and the registry's repositories give now, and nothing else."""
        wanted = self._targets.matching(self._existing or ())
        for name in self._repositories.keys() - wanted:
            self._drop(name)
        for name in wanted:
            targets = self._targets.of(name)
            if name not in self._repositories:
                self._add(name, targets)
            elif self._repositories[name].facts.labels != targets.labels:
                self._retarget(name, targets)

    def _add(self, name: str, targets: RepositoryTargets) -> None:
        facts = RepositoryFacts(labels=targets.labels)
        self._repositories[name] = _Repository(targets, facts)
        with self._ledger.lock:
            self.facts.repositories[name] = facts
        self._book(Job(Kind.IMAGES, name), self._clock.monotonic())

    def _drop(self, name: str) -> None:
        for scope in [scope for scope in self._scopes if scope.repository == name]:
            self._forget(scope)
        repository = self._repositories.pop(name)
        self._newest.put((self, name), None)
        with self._ledger.lock:
            del self.facts.repositories[name]
            self._ledger.skipped = self._newest.skipped
        self.schedule.cancel(Job(Kind.IMAGES, name))
        for digest in repository.facts.images:
            self.schedule.cancel(Job(Kind.STATUS, name, digest))

    def _retarget(self, name: str, targets: RepositoryTargets) -> None:
        """Other targets apply: what they no longer select goes at once, what they add is listed soon."""
        repository = self._repositories[name]
        repository.targets = targets
        with self._ledger.lock:
            repository.facts.labels = targets.labels
            repository.facts.targets = None
        known = [
            replace(_image(facts), tags=tuple(n.tag for n in facts.names if n.tag))
            for facts in repository.facts.images.values()
        ]
        selection = targets.select(known, now=self._clock.time())
        self._show(name, repository, selection.images)
        repository.listing = None
        self._book(Job(Kind.IMAGES, name), self._clock.monotonic())

    # -- images ------------------------------------------------------------------------------

    def _images_answer(self, name: str, answer: Any) -> None:
        repository = self._repositories.get(name)
        job = Job(Kind.IMAGES, name)
        if repository is None or repository.listing is None:
            self._book(job, self._clock.monotonic())  # asked before the targets changed
            return
        listing = repository.listing
        if isinstance(listing, Lookup):
            listing.answered(answer)
        elif not listing.answered(answer):
            self.failed(job, _circle("ecr:DescribeImages"))
            return
        self._go_on(job, repository)

    def _go_on(self, job: Job, repository: _Repository) -> None:
        """Book the next call of a pass, or make use of it when it is complete."""
        listing = repository.listing
        if listing is None or listing.question():
            if isinstance(listing, Listing) and too_long(
                listing, repository.targets, suspects=repository.suspects
            ):
                repository.pages = listing.pages
                repository.listing = None
            self._book(job, self._clock.monotonic())
            return
        if isinstance(listing, Lookup):
            repository.suspects = frozenset(listing.missing)
        else:
            repository.pages = listing.pages
            repository.suspects = frozenset()
        repository.listing = None
        self._forget(Scope("images", job.repository))
        self._listed(job.repository, repository, listing.items)
        self._book(job, self._later(self._intervals.discovery))

    def _listed(self, name: str, repository: _Repository, images: Sequence[Any]) -> None:
        selection = repository.targets.select(images, now=self._clock.time())
        self._newest.put((self, name), selection)
        with self._ledger.lock:
            repository.facts.targets = tuple(
                TargetImages(t.label, t.images, complete=not t.missing) for t in selection.targets
            )
            repository.facts.listed_at = self._clock.monotonic()
            repository.facts.listed_time = self._clock.time()
            self._ledger.skipped = self._newest.skipped
        self._show(name, repository, self._newest.admitted((self, name)))
        if repository.unasked is None:
            repository.unasked = set(repository.facts.images)
        self._asked(repository)

    def _show(self, name: str, repository: _Repository, selected: Mapping[str, Watched]) -> None:
        """Make the facts those of the selected images, and book what is new among them."""
        images = repository.facts.images
        gone = images.keys() - selected.keys()
        for digest in gone:
            self._forget(Scope("status", name, digest))
            self.schedule.cancel(Job(Kind.STATUS, name, digest))
            (repository.unasked or set()).discard(digest)
        with self._ledger.lock:
            for digest in gone:
                del images[digest]
            for digest, watched in selected.items():
                facts = images.get(digest)
                names = tuple(sorted(watched.names))
                if facts is None or facts.replicated_from != watched.image.replicated_from:
                    images[digest] = ImageFacts(
                        digest, names, watched.image.pushed_at, watched.image.replicated_from
                    )
                    self._book(Job(Kind.STATUS, name, digest), self._clock.monotonic())
                elif facts.names != names:
                    images[digest] = replace(facts, names=names)

    def _images_failed(self, job: Job, error: ECRError) -> None:
        repository = self._repositories.get(job.repository)
        if repository is None:
            return
        if error.reason is Reason.IMAGE_NOT_FOUND and isinstance(repository.listing, Lookup):
            repository.listing.not_found()
            self._go_on(job, repository)
        elif error.reason is Reason.REPOSITORY_NOT_FOUND:
            self._repository_gone(job, repository, error)
        else:
            if error.reason is not Reason.UNAVAILABLE:
                repository.listing = None  # its token may be what is wrong
            self._book(job, self._later(self._fail(Scope("images", job.repository), error)))

    def _repository_gone(self, job: Job, repository: _Repository, error: ECRError) -> None:
        name = job.repository
        if name not in self._targets.repositories:
            self._existing = (self._existing or frozenset()) - {name}
            self._drop(name)
            return
        repository.listing = None
        self._listed(name, repository, [])
        with self._ledger.lock:
            # That its images are missing goes without saying.
            repository.facts.targets = tuple(
                replace(target, complete=True) for target in repository.facts.targets or ()
            )
        self._fail(Scope("images", name), error)
        self._book(job, self._later(self._intervals.discovery))

    # -- replication status ------------------------------------------------------------------

    def _status(self, job: Job, reported: tuple[Replication, ...]) -> None:
        repository = self._repositories.get(job.repository)
        before = repository.facts.images.get(job.digest) if repository else None
        if repository is None or before is None:
            return  # deleted, or no longer selected, while the call was under way
        rules = self.facts.rules
        expected = rules.destinations(job.repository) if rules else frozenset()
        replications = judge_replications(reported, expected)
        self._note_unheard_of(job, replications)
        for scope in (Scope("status", job.repository), Scope("status", *job[1:])):
            self.schedule.release(scope)
            self._forget(scope)
        self._observe_completion(before, replications)
        state = image_state(replications, recent=self._recent(before), rules_known=rules is not None)
        interval = self._intervals.after(state)
        now = self._clock.monotonic()
        facts = replace(
            before,
            replications=replications,
            state=state,
            answered_at=now,
            good_until=now + interval + self._stale_after,
        )
        with self._ledger.lock:
            repository.facts.images[job.digest] = facts
        self._book(job, self._later(interval))
        (repository.unasked or set()).discard(job.digest)
        self._asked(repository)

    def _status_failed(self, job: Job, error: ECRError) -> None:
        repository = self._repositories.get(job.repository)
        if repository is None or job.digest not in repository.facts.images:
            return
        (repository.unasked or set()).discard(job.digest)
        if error.reason in (Reason.IMAGE_NOT_FOUND, Reason.REPOSITORY_NOT_FOUND):
            # The listing is what tells whether it is gone: have it made now.
            self._book(job, self._later(self._intervals.failed))
            self._book(Job(Kind.IMAGES, job.repository), self._clock.monotonic())
        elif error.reason is Reason.INVALID:
            self._fail(Scope("status", *job[1:]), error)
            self._book(job, self._later(self._intervals.failed))
        else:
            scope = Scope("status", job.repository)
            self.schedule.hold(scope, until=self._clock.monotonic() + self._fail(scope, error))
            self._book(job, self._clock.monotonic())
        self._asked(repository)

    def _recent(self, facts: ImageFacts) -> bool:
        began = facts.replicated_from
        return began is not None and self._clock.time() - began < RECENT

    def _observe_completion(self, before: ImageFacts, after: tuple[Replication, ...]) -> None:
        if before.replicated_from is None:
            return
        seconds = max(0.0, self._clock.time() - before.replicated_from)
        for destination in completed(before, after):
            self._on_complete(self.facts.source, destination, seconds)

    def _note_unheard_of(self, job: Job, replications: tuple[Replication, ...]) -> None:
        for status in {r.status for r in replications} - set(Status) - self._unheard_of:
            self._unheard_of.add(status)
            self._note("unheard_of_status", status=status, repository=job.repository, digest=job.digest)

    def _note(self, event: str, **fields: object) -> None:
        self._journal.noted(self.name, event, **fields)

    def _asked(self, repository: _Repository) -> None:
        if not repository.facts.asked and repository.unasked is not None and not repository.unasked:
            with self._ledger.lock:
                repository.facts.asked = True

    # -- booking, failing, recovering --------------------------------------------------------

    def _call(self, job: Job) -> Callable[[], Any] | None:
        """How to make the call; None if it has become pointless."""
        if job.kind is Kind.REGISTRY:
            return self.gate.registry
        if job.kind is Kind.ACCOUNT:
            return self.gate.account
        if job.kind is Kind.REPOSITORIES:
            question = self._listing.question() if self._listing else None
            return partial(self.gate.repositories, question.token if question else None)
        if job.kind is Kind.STATUS:
            return partial(self.gate.status, job.repository, job.digest)
        return self._images_call(job.repository)

    def _images_call(self, name: str) -> Callable[[], Any] | None:
        repository = self._repositories.get(name)
        if repository is None:
            return None
        if repository.listing is None:
            repository.listing = cheapest(
                repository.targets, pages=repository.pages, suspects=repository.suspects
            )
        question = repository.listing.question()
        if isinstance(question, ByName):
            return partial(self.gate.find, name, question.names)
        token = question.token if question else None
        return partial(self.gate.images, name, token, untagged=repository.targets.untagged)

    def _later(self, seconds: float) -> float:
        return self._clock.monotonic() + spread(seconds, self._random)

    def _book(self, job: Job, due: float) -> None:
        """Book a call, unless what it is about is no longer watched."""
        repository = self._repositories.get(job.repository)
        if job.kind is Kind.STATUS:
            if repository and (facts := repository.facts.images.get(job.digest)):
                scope = Scope("status", job.repository)
                rank = facts.replicated_from or 0.0
                self.schedule.book(job, due=due, lane=Lane.STATUS, rank=rank, scope=scope)
        elif repository or job.kind is not Kind.IMAGES:
            self.schedule.book(job, due=due, lane=Lane.LISTING)

    def _fail(self, scope: Scope, error: ECRError, *, cap: float = 60.0, visible_from: int = 2) -> float:
        """Count a failure of the scope; how many seconds to stay away.

        A single time-out or dropped connection is tried again in silence; anything else, and the
        second in a row, is told.
        """
        known = self._scopes.setdefault(scope, _Trouble(Backoff(cap=cap)))
        delay = known.backoff.failed(self._random)
        if error.reason is not Reason.UNAVAILABLE or known.backoff.failures >= visible_from:
            known.visible = True
            self._mark(scope, error.reason)
            self._journal.failed(self.name, scope, error)
        return delay

    def _reached(self) -> None:
        """AWS answered, whatever it said: the registry is within reach."""
        self._in_a_row = 0
        self.schedule.resume()
        self._forget(_EVERYTHING)

    def _forget(self, scope: Scope) -> None:
        known = self._scopes.pop(scope, None)
        if known and known.visible:
            self._mark(scope, None)
            self._journal.recovered(self.name, scope)

    def _mark(self, scope: Scope, reason: Reason | None) -> None:
        """Write the scope's failure, or its end, where the facts of the scope are."""
        repository = self._repositories.get(scope.repository)
        failures = repository.facts.failures if repository else self.facts.failures
        key = scope.digest or scope.kind
        with self._ledger.lock:
            if reason is None:
                failures.pop(key, None)
            elif repository or not scope.repository:
                failures[key] = reason


def _image(facts: ImageFacts) -> Image:
    return Image(facts.digest, (), facts.pushed_at, facts.replicated_from)


def _circle(action: str) -> ECRError:
    return ECRError(Reason.INVALID, action=action, code="RepeatedToken", message="the pages lead in a circle")
