"""Failures of one registry: counted by scope, reported as facts and in the log, and what they hold back.

`Reach` sees the end of every call first: whether the registry is out of reach, or throttles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from exporter.aws.errors import ECRError
from exporter.polling.access import Clients
from exporter.polling.backoff import Backoff
from exporter.polling.calls import Call, Clock, InFlight, Job, Journal
from exporter.polling.pacing import Pacing
from exporter.replication import target_health
from exporter.replication.facts import FirstRound, RegistryFacts
from exporter.replication.model import FailureScope, Reason
from exporter.replication.store import Store

#: So many calls in a row without an answer mean that the registry, not a repository, is out of reach.
OUTAGE_AFTER = 3
#: Longest pause in seconds between probes of a registry that is out of reach.
OUTAGE_CAP = 30.0
#: Seconds without a throttled call after which throttling is over.
CALM_AFTER = 300.0

_REGISTRY = FailureScope("registry")
_THROTTLING = FailureScope("budget")

#: Longest wait in seconds that AWS can ask for.
LONGEST_REQUESTED_PAUSE = 300.0

#: Where facts keep their failures.
FailureFacts: TypeAlias = MutableMapping[FailureScope, Reason]


@dataclass(slots=True)
class _Failure:
    facts: FailureFacts
    backoff: Backoff = field(default_factory=Backoff)
    reported: bool = False
    #: Monotonic times: when it was counted last, and until when to stay away since.
    at: float = float("-inf")
    until: float = float("-inf")


class Failures:
    """Counts failures, and reports them as facts and in the log."""

    def __init__(
        self,
        *,
        registry: str,
        facts: RegistryFacts,
        store: Store,
        clock: Clock,
        random: Random,
        journal: Journal,
        on_report: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._facts = facts
        self._store = store
        self._clock = clock
        self._random = random
        self._journal = journal
        #: Called when the reported failures changed.
        self._on_report = on_report
        self._failures: dict[FailureScope, _Failure] = {}

    def fail(
        self,
        scope: FailureScope,
        error: ECRError,
        facts: FailureFacts,
        *,
        call: Call | None = None,
        cap: float = 60.0,
        reported_from: int | None = None,
    ) -> float:
        """Count a failure of the scope; the monotonic time until which to stay away.

        That is in at most `cap` seconds, unless AWS asks to wait for longer.
        It is reported from the first failure in a row; a time-out or a dropped connection from the second.
        `reported_from` sets another number. A `call` that was sent before the last failure is not counted:
        many calls that fail together are one failure.
        """
        if reported_from is None:
            reported_from = 2 if error.reason is Reason.UNAVAILABLE else 1
        now = self._clock.monotonic()
        failure = self._failures.setdefault(scope, _Failure(facts, Backoff(cap=cap)))
        if call and call.sent_at <= failure.at:
            return failure.until
        delay = max(failure.backoff.failed(self._random), requested_pause(error))
        failure.at, failure.until = now, now + delay
        if failure.reported or failure.backoff.failures >= reported_from:
            failure.reported = True
            with self._store.lock:
                facts[scope] = error.reason
                self._facts.heard_at = min(self._facts.heard_at, now)
            self._on_report()
            self._journal.failed(self._registry, scope, error)
        return failure.until

    def reported(self, scope: FailureScope) -> bool:
        """Whether a failure of the scope is reported now."""
        return scope in self._failures and self._failures[scope].reported

    def end(self, scope: FailureScope) -> None:
        """The scope works, or nothing in it is watched any more."""
        failure = self._failures.pop(scope, None)
        if failure and failure.reported:
            with self._store.lock:
                failure.facts.pop(scope, None)
            self._on_report()
            self._journal.recovered(self._registry, scope)

    def of(self, repository: str) -> list[FailureScope]:
        """The scopes in a repository that fail now."""
        return [scope for scope in self._failures if scope.repository == repository]


def requested_pause(error: ECRError) -> float:
    """The seconds that AWS asks to wait before another try; 0 if it does not say."""
    return min(error.retry_after or 0.0, LONGEST_REQUESTED_PAUSE)


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


@dataclass(slots=True)
class Parts:
    """What the pollers of one registry and of its repositories share."""

    name: str
    facts: RegistryFacts
    pacing: Pacing
    failures: Failures
    in_flight: InFlight
    clients: Clients
    rounds: FirstRounds
    clock: Clock
    journal: Journal

    def works(self, scope: FailureScope) -> None:
        """The scope works, or nothing in it is watched any more."""
        self.failures.end(scope)

    def noted(self, event: str, **fields: object) -> None:
        self.journal.noted(self.name, event, **fields)

    def warned(self, event: str, **fields: object) -> None:
        self.journal.warned(self.name, event, **fields)

    def sent_time(self, call: Call) -> float:
        """The Unix time at which the call was sent."""
        return self.clock.time() - max(0.0, self.clock.monotonic() - call.sent_at)


class Reach:
    """Takes the end of every call, before its meaning is looked at."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        #: The jobs that got no answer since the last answer of any.
        self._unanswered: set[Job] = set()
        self._throttled_at: float | None = None

    def answered(self, call: Call) -> None:
        """A call came back with an answer."""
        self._parts.pacing.answered(call, throttled=False)
        self._reached(call)

    def failed(self, call: Call, error: ECRError) -> bool:
        """A call came back with an error; True if that is dealt with, and the job is to be booked again.

        A throttled call is no failure. The registry is out of reach if three calls in a row, not all about
        one repository, get no answer, or if the credentials of all accesses are of no use.
        """
        # STS has limits of its own: its refusals say nothing about the rates of ECR.
        throttled = error.reason is Reason.THROTTLED and not error.everything
        self._parts.pacing.answered(call, throttled=throttled)
        if throttled:
            self._reached(call)
            self._throttled(error)
            self._parts.pacing.probe_again(call.job)
            return True
        if error.everything:
            if not self._parts.clients.useless(call.access):
                return False
        elif error.reason is not Reason.UNAVAILABLE:
            self._reached(call)
            return False
        self._unanswered.add(call.job)
        if not (error.everything or self._out_of_reach()):
            return False
        self._parts.pacing.probe_again(call.job)
        facts = self._parts.facts.failures
        until = self._parts.failures.fail(_REGISTRY, error, facts, call=call, cap=OUTAGE_CAP, reported_from=1)
        self._parts.pacing.pause(until=until)
        return True

    def _out_of_reach(self) -> bool:
        repositories = {job.repository for job in self._unanswered}
        return len(self._unanswered) >= OUTAGE_AFTER and (len(repositories) > 1 or repositories == {""})

    def _reached(self, call: Call) -> None:
        """AWS answered: the registry is within reach, and the credentials are of use."""
        parts = self._parts
        self._unanswered.clear()
        parts.clients.works(call.access)
        parts.pacing.resume()
        parts.works(_REGISTRY)
        if self._throttled_at is not None and parts.clock.monotonic() > self._throttled_at + CALM_AFTER:
            self._throttled_at = None
            parts.facts.throttled = False
            parts.journal.recovered(parts.name, _THROTTLING)

    def _throttled(self, error: ECRError) -> None:
        """AWS throttled a call: the log says so, once."""
        self._throttled_at = self._parts.clock.monotonic()
        self._parts.facts.throttled = True
        self._parts.journal.failed(self._parts.name, _THROTTLING, error)
