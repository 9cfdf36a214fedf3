"""What the pollers of one registry share: its facts, its due calls, and its failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, TypeAlias

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import Settings
from exporter.polling.access import Access, Choice
from exporter.polling.calls import Call, Clock, Job, Journal
from exporter.polling.pacing import Pacing
from exporter.polling.sightings import Sightings
from exporter.polling.transitions import Transitions
from exporter.polling.turns import Turns
from exporter.replication.facts import RegistryFacts
from exporter.replication.model import Destination, FailureScope, Reason, Source
from exporter.replication.newest import Newest
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import Shard

#: Longest pause in seconds after a failure, and the longest that AWS can ask for.
LONGEST_PAUSE = 60.0
LONGEST_REQUESTED_PAUSE = 300.0
#: So many unknown statuses of a registry are logged.
MOST_UNKNOWN_STATUSES = 20


class Outcome(StrEnum):
    """What became of an event."""

    #: It says where to look.
    USED = "used"
    #: Nothing that is watched.
    FOREIGN = "foreign"
    #: It came before.
    DUPLICATE = "duplicate"
    #: It is known already what it says.
    OLD = "old"
    #: It cannot be understood.
    INVALID = "invalid"


#: Takes a replication that ended: where from, where to, and how many seconds it took.
OnComplete: TypeAlias = Callable[[Source, Destination, float], None]
#: Takes that the rules of a registry name a destination.
OnDestination: TypeAlias = Callable[[Source, Destination], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the pollers of all registries share."""

    store: Store
    newest: Newest
    sightings: Sightings
    memory: StateCache
    shard: Shard
    clock: Clock
    random: Random
    journal: Journal
    on_complete: OnComplete
    on_destination: OnDestination
    turns: Turns


@dataclass(slots=True)
class _Failure:
    count: int = 0
    reported: bool = False
    #: Monotonic times: when it was counted last, and until when to stay away since.
    at: float = float("-inf")
    until: float = float("-inf")


class Context:
    """One registry as its pollers see it. Reports failures by scope, as facts and in the log."""

    def __init__(self, shared: Shared, *, source: Source, settings: Settings) -> None:
        self.shared = shared
        #: The name of the registry in the log.
        self.name = ""
        self.facts = RegistryFacts(source, since=shared.clock.monotonic())
        self.pacing = Pacing(clock=shared.clock, random=shared.random, settings=settings)
        self.transitions = Transitions(self.facts, shared.clock, shared.turns, self)
        self.clients: dict[Access, EcrClient] = {}
        #: The calls in flight, at most one for each job, in the order in which they were sent.
        self.in_flight: dict[Job, Call] = {}
        #: Whether AWS ever answered a call.
        self.answered = False
        #: Whether a fact changed that may fail a target or end its first round.
        self.targets_changed = True
        self._failures: dict[FailureScope, _Failure] = {}
        #: What fails as the log has it.
        self._logged: dict[FailureScope, ECRError] = {}
        self._unknown_statuses: set[str] = set()

    def rename(self, name: str) -> None:
        """Take another name. What fails is logged again under it."""
        if self.name and name != self.name:
            self.shared.journal.forget(self.name)
            for scope, error in self._logged.items():
                self.shared.journal.failed(name, scope, error)
        self.name = name

    def fail(
        self,
        scope: FailureScope,
        error: ECRError,
        call: Call | None = None,
        *,
        cap: float = LONGEST_PAUSE,
        reported_from: int | None = None,
        fails_targets: bool = True,
    ) -> float:
        """Count a failure of the scope; the monotonic time until which to stay away.

        The pause doubles from 1 s to `cap`, half of it is random, and AWS can ask for a longer one.
        It is reported from the first failure in a row; a time-out or a dropped connection from the second.
        `reported_from` sets another number. A `call` that was sent before the last failure is not counted:
        many calls that fail together are one failure.
        """
        if reported_from is None:
            reported_from = 2 if error.reason is Reason.UNAVAILABLE else 1
        now = self.shared.clock.monotonic()
        failure = self._failures.setdefault(scope, _Failure())
        if call and call.sent_at <= failure.at:
            return failure.until
        longest = min(cap, 2.0 ** min(failure.count, 32))
        pause = max(longest * self.shared.random.uniform(0.5, 1.0), requested_pause(error))
        failure.at, failure.until = now, now + pause
        failure.count += 1
        if failure.reported or failure.count >= reported_from:
            failure.reported = True
            with self.shared.store.lock:
                if fails_targets:
                    self._failure_facts(scope)[scope] = error.reason
                self.facts.heard_at = min(self.facts.heard_at, now)
            self.targets_changed = True
            self.log_failed(scope, error)
        return failure.until

    def works(self, scope: FailureScope) -> None:
        """The scope works, or nothing in it is watched any more."""
        failure = self._failures.pop(scope, None)
        if failure and failure.reported:
            with self.shared.store.lock:
                self._failure_facts(scope).pop(scope, None)
            self.targets_changed = True
            self.log_recovered(scope)

    def reported(self, scope: FailureScope) -> bool:
        """Whether a failure of the scope is reported now."""
        return scope in self._failures and self._failures[scope].reported

    def forget(self, repository: str) -> None:
        """End all failures in a repository."""
        for scope in [scope for scope in self._failures if scope.repository == repository]:
            self.works(scope)

    def log_failed(self, scope: FailureScope, error: ECRError) -> None:
        """Log that a call of the scope failed."""
        self._logged[scope] = error
        self.shared.journal.failed(self.name, scope, error)

    def log_recovered(self, scope: FailureScope) -> None:
        """Log that the scope works, if the log has it that it fails."""
        if self._logged.pop(scope, None):
            self.shared.journal.recovered(self.name, scope)

    def noted(self, event: str, /, **fields: object) -> None:
        """Log an event of level info."""
        self.shared.journal.noted(self.name, event, **fields)

    def warned(self, event: str, /, **fields: object) -> None:
        """Log a warning."""
        self.shared.journal.warned(self.name, event, **fields)

    def warn_of_status(self, status: str, *, repository: str, digest: str) -> None:
        """Log once that a status is unknown. Only so many of them are logged; the metrics show all."""
        if status not in self._unknown_statuses and len(self._unknown_statuses) < MOST_UNKNOWN_STATUSES:
            self._unknown_statuses.add(status)
            self.warned("unknown_status", status=status, repository=repository, digest=digest)

    def _failure_facts(self, scope: FailureScope) -> MutableMapping[FailureScope, Reason]:
        repository = self.facts.repositories.get(scope.repository)
        return repository.failures if repository else self.facts.failures


def requested_pause(error: ECRError) -> float:
    """The seconds that AWS asks to wait before another try; 0 if it does not say."""
    return min(error.retry_after or 0.0, LONGEST_REQUESTED_PAUSE)


class Asker(ABC):
    """Asks for one kind of facts, and takes the answers. The registry poller calls it on the loop thread."""

    def __init__(self, context: Context, accesses: Iterable[Access] = ()) -> None:
        #: Each kind of call needs other permissions, so each has its own choice.
        self.choice = Choice(accesses)
        self._context = context
        self._registry = context.facts
        self._pacing = context.pacing
        self._store = context.shared.store
        self._clock = context.shared.clock

    @abstractmethod
    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        """How a worker makes the call of a job."""

    @abstractmethod
    def answered(self, call: Call, answer: Any) -> None:
        """Take an answer. Raises ECRError if it cannot be used; the call has failed then."""

    @abstractmethod
    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed and that no other access is left to try."""

    def ask_again(self, job: Job, *, due: float | None = None) -> None:
        """Ask again at a monotonic time, now by default, after a call that gave nothing."""
        self._pacing.book(job, due=due)
