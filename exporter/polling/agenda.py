"""The agenda of one source registry: what is booked, what is under way, and what is in trouble.

It joins the schedule, the budget, the back-offs and the journal, so that those who know what an
answer means need only say "book this", "that failed", "that works again". Loop thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from random import Random
from typing import NamedTuple, Protocol

from exporter.aws.errors import ECRError
from exporter.aws.timeouts import ANSWER_TIMEOUT
from exporter.config.settings import Settings
from exporter.polling.backoff import Backoff, spread
from exporter.polling.queue import DueQueue, Intervals
from exporter.polling.rate_limit import Operation, RateLimiter
from exporter.replication.model import FailureScope, Reason
from exporter.replication.store import RegistryFacts, Store

#: Calls under way at once in one registry. At 20 ms a call this is where one process is busy anyway.
MAX_IN_FLIGHT = 16
#: With those that wait for a worker when all are busy, so that one that is done need not wait for the loop.
#: Few, because whatever becomes more urgent meanwhile goes behind them.
MAX_HANDED_OUT = MAX_IN_FLIGHT + 4
#: So many calls in a row without any answer mean that the registry, not a repository, is out of reach.
OUTAGE_AFTER = 3
#: Longest pause in seconds between probes of a registry that is out of reach.
OUTAGE_CAP = 30.0
#: Seconds after which a call under way is not waited for: what should have ended it did not, as when
#: something hangs that lends botocore credentials. Its worker is lost until it ends.
LOST_AFTER = ANSWER_TIMEOUT + 60.0
#: Seconds after a probe that told nothing until another one is sent.
PROBE_PAUSE = 1.0
#: Seconds without a refusal after which throttling is over.
CALM_AFTER = 300.0


class Clock(Protocol):
    """The standard library's `time` module is one."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Kind(StrEnum):
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


class Journal(Protocol):
    """Told of failures that begin, go on and end, and folds them into few log lines; and of events."""

    def failed(self, registry: str, scope: FailureScope, error: ECRError) -> None: ...

    def recovered(self, registry: str, scope: FailureScope) -> None: ...

    def noted(self, registry: str, event: str, **fields: object) -> None: ...

    def warned(self, registry: str, event: str, **fields: object) -> None: ...

    def forget(self, registry: str) -> None: ...

    def tick(self) -> None: ...


#: Where facts keep their failures, by scope.
Failures = MutableMapping[FailureScope, Reason]

_EVERYTHING = FailureScope("registry")
_THROTTLING = FailureScope("budget")


_OPERATIONS = {
    Kind.REGISTRY: Operation.REGISTRY,
    Kind.ACCOUNT: Operation.REGISTRY,
    Kind.REPOSITORIES: Operation.REPOSITORIES,
    Kind.IMAGES: Operation.IMAGES,
    Kind.STATUS: Operation.STATUS,
}


@dataclass(slots=True)
class _Trouble:
    failures: Failures
    backoff: Backoff = field(default_factory=Backoff)
    told: bool = False
    #: Monotonic times: when it was counted last, and until when to stay away since.
    at: float = float("-inf")
    until: float = float("-inf")


class Agenda:
    """What is to be asked of one registry, and how asking goes."""

    def __init__(
        self,
        *,
        registry: str,
        facts: RegistryFacts,
        store: Store,
        clock: Clock,
        random: Random,
        journal: Journal,
        settings: Settings,
    ) -> None:
        self.clock = clock
        self.rate_limiter = RateLimiter(settings.requests_per_second, now=clock.monotonic())
        self.queue: DueQueue[Job] = DueQueue()
        self._registry = registry
        self._facts = facts
        self._store = store
        self._random = random
        self._journal = journal
        #: What is under way, and since when.
        self._in_flight: dict[Job, float] = {}
        #: Calls that are waited for no longer, by identity: the same may be under way anew.
        self._lost: dict[int, Job] = {}
        self._troubles: dict[FailureScope, _Trouble] = {}
        #: What got no answer since anything last did.
        self._unanswered: set[Job] = set()
        #: When the call was sent whose end is dealt with now.
        self._sent = float("inf")
        self._throttled_at: float | None = None
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take the intervals and the budget of a configuration."""
        self.rate_limiter.configure(settings.requests_per_second)
        self.stale_after = settings.stale_after
        self.intervals = Intervals(
            discovery=settings.discovery_interval,
            pending=settings.pending_interval,
            failed=settings.failed_interval,
            settled=settings.settled_interval,
        )

    # -- booking -----------------------------------------------------------------------------

    def book(
        self, job: Job, *, due: float | None = None, rank: float | None = 0.0, first: bool = False
    ) -> None:
        """Book a call for a monotonic time, now by default. Newer pushes rank higher; None: in no hurry."""
        del first  # the rank is enough to go before a backlog
        due = self.clock.monotonic() if due is None else due
        scope = FailureScope("status", job.repository) if job.kind is Kind.STATUS else None
        self.queue.book(job, due=due, operation=_OPERATIONS[job.kind], rank=rank, scope=scope)

    def later(self, seconds: float) -> float:
        """The monotonic time at which an interval that begins now is over, or a little earlier."""
        return self.clock.monotonic() + spread(seconds, self._random)

    def some_time(self, seconds: float) -> float:
        """Any monotonic time in the interval that begins now."""
        return self.clock.monotonic() + seconds * self._random.random()

    def take(self) -> Job | float:
        """A call to make now, for which a token of the budget is spent; or the monotonic time at which
        there may be one, if nothing else happens.

        The answer is to come back under the very object that this returns.
        """
        now = self.clock.monotonic()
        tokens = {operation: self.rate_limiter.next_at(operation, now) for operation in self.queue.ready(now)}
        operations = [operation for operation, at in tokens.items() if at <= now]
        while operations and (job := self.queue.take(now, operations)):
            # One that is under way is booked anew by its own answer.
            if job not in self._in_flight:
                self.rate_limiter.take(_OPERATIONS[job.kind], now)
                call = Job(*job)
                self._in_flight[call] = now
                return call
        # What had a token and yet did not go stands in no queue any more: that `now` is given but once.
        return min([self.queue.next_at(now), *tokens.values()])

    # -- how it goes -------------------------------------------------------------------------

    def answered(self, job: Job) -> None:
        """A call came back with an answer."""
        self._returned(job)
        self._reached()

    def refused(self, job: Job, error: ECRError) -> bool:
        """A call came back with an error; True if that is dealt with, and the call is to be booked again.

        A throttled call failed nobody. Three calls in a row about different things, not all of one
        repository, that got no answer at all speak for the whole registry, and so does one whose
        credentials are of no use.
        """
        # STS has limits of its own: its refusals say nothing about the rates of ECR.
        self._returned(
            job, throttled=error.reason is Reason.THROTTLED and not error.action.startswith("sts:")
        )
        if error.reason is not Reason.UNAVAILABLE and not error.everything:
            self._reached()
            if error.reason is Reason.THROTTLED:
                self._throttled(error)
                self._probe_again(job)
                return True
            return False
        self._unanswered.add(job)
        if not (error.everything or self._out_of_reach()):
            return False
        self._probe_again(job)
        delay = self.fail(_EVERYTHING, error, self._facts.failures, cap=OUTAGE_CAP, told_from=1)
        self.queue.pause(until=self.clock.monotonic() + delay)
        return True

    def lost(self) -> Iterable[tuple[Job, ECRError]]:
        """Calls that are under way for too long, each once, and the error that they count as from now on.

        It speaks for the whole registry: nothing but what all its calls have in common can hang so.
        """
        since = self.clock.monotonic() - LOST_AFTER
        # They stand in the order in which they were sent.
        if next(iter(self._in_flight.values()), float("inf")) > since:
            return ()
        lost = [job for job, _ in takewhile(lambda call: call[1] <= since, self._in_flight.items())]
        self._lost.update((id(job), job) for job in lost)
        message = f"no end of the call after {LOST_AFTER:g} s; what lends the credentials may hang"
        error = ECRError(Reason.UNAVAILABLE, action="ecr", code="CallLost", message=message, everything=True)
        return [(job, error) for job in lost]

    def came_late(self, job: Job) -> bool:
        """Whether the call that came back was lost, so that it counted already."""
        return self._lost.pop(id(job), None) is not None

    def fail(
        self,
        scope: FailureScope,
        error: ECRError,
        failures: Failures,
        *,
        cap: float = 60.0,
        told_from: int | None = None,
    ) -> float:
        """Count a failure of the scope; how many seconds to stay away.

        It is told from the first failure in a row, unless `told_from` says another; a single time-out or
        dropped connection is tried again in silence. A call that was under way when the scope failed last
        says nothing new: many that fail together are no reason to stay away for long.
        """
        if told_from is None:
            told_from = 2 if error.reason is Reason.UNAVAILABLE else 1
        now = self.clock.monotonic()
        trouble = self._troubles.setdefault(scope, _Trouble(failures, Backoff(cap=cap)))
        if self._sent <= trouble.at:
            return max(0.0, trouble.until - now)
        delay = trouble.backoff.failed(self._random)
        trouble.at, trouble.until = now, now + delay
        if trouble.told or trouble.backoff.failures >= told_from:
            trouble.told = True
            with self._store.lock:
                failures[scope] = error.reason
            self._journal.failed(self._registry, scope, error)
        return delay

    def sent_time(self) -> float:
        """The Unix time at which the call was sent whose end is dealt with now."""
        return self.clock.time() - max(0.0, self.clock.monotonic() - self._sent)

    def told(self, scope: FailureScope) -> bool:
        """Whether a failure of the scope is known to those who read the metrics."""
        return scope in self._troubles and self._troubles[scope].told

    def under_way(self, job: Job) -> bool:
        """Whether the call is being made."""
        return job in self._in_flight

    def hold(self, scope: FailureScope, *, seconds: float) -> None:
        """Keep back all calls of the scope, but for a probe after so many seconds."""
        self.queue.hold(scope, until=self.clock.monotonic() + seconds)

    def works(self, scope: FailureScope) -> None:
        """The scope works (again), or is nobody's concern any more."""
        trouble = self._troubles.pop(scope, None)
        if trouble is None:
            return
        self.queue.release(scope)
        if trouble.told:
            with self._store.lock:
                trouble.failures.pop(scope, None)
            self._journal.recovered(self._registry, scope)

    def forget(self, repository: str) -> None:
        """Drop the troubles of a repository that is watched no longer."""
        for scope in [s for s in self._troubles if s.repository == repository]:
            self.works(scope)

    def retire(self) -> None:
        """The registry is watched no longer: its failures end without a word."""
        self._journal.forget(self._registry)

    def noted(self, event: str, **fields: object) -> None:
        self._journal.noted(self._registry, event, **fields)

    def warned(self, event: str, **fields: object) -> None:
        self._journal.warned(self._registry, event, **fields)

    def _probe_again(self, job: Job) -> None:
        """If the call was to tell whether its scope works again, it did not: have another one do so soon."""
        soon = self.clock.monotonic() + PROBE_PAUSE
        self.queue.probe_again(FailureScope("status", job.repository), at=soon)

    def _returned(self, job: Job, *, throttled: bool = False) -> None:
        sent = self._in_flight.pop(job, None)
        self._sent = float("inf") if sent is None else sent
        if sent is not None:
            now = self.clock.monotonic()
            self.rate_limiter.answered(_OPERATIONS[job.kind], refused=throttled, sent=sent, now=now)

    def _out_of_reach(self) -> bool:
        repositories = {job.repository for job in self._unanswered}
        return len(self._unanswered) >= OUTAGE_AFTER and (len(repositories) > 1 or repositories == {""})

    def _reached(self) -> None:
        """AWS answered, whatever it said: the registry is within reach."""
        self._unanswered.clear()
        self.queue.resume()
        self.works(_EVERYTHING)
        if self._throttled_at is not None and self.clock.monotonic() > self._throttled_at + CALM_AFTER:
            self._throttled_at = None
            self._facts.throttled = False
            self._journal.recovered(self._registry, _THROTTLING)

    def _throttled(self, error: ECRError) -> None:
        """AWS refused a call for being one too many: the budget is lower now, and the log says so."""
        self._throttled_at = self.clock.monotonic()
        self._facts.throttled = True
        self._journal.failed(self._registry, _THROTTLING, error)
