"""Failures of one registry by scope: how often in a row, how long to stay away, and what is reported."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from exporter.aws.errors import ECRError
from exporter.polling.backoff import Backoff
from exporter.polling.jobs import Call, Clock, Journal
from exporter.replication.facts import RegistryFacts
from exporter.replication.model import FailureScope, Reason
from exporter.replication.store import Store

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
        """Count a failure of the scope; the seconds to stay away, at most `cap`.

        It is reported from the first failure in a row; a time-out or a dropped connection from the second.
        `reported_from` sets another number. A `call` that was sent before the last failure is not counted:
        many calls that fail together are one failure.
        """
        if reported_from is None:
            reported_from = 2 if error.reason is Reason.UNAVAILABLE else 1
        now = self._clock.monotonic()
        failure = self._failures.setdefault(scope, _Failure(facts, Backoff(cap=cap)))
        if call and call.sent_at <= failure.at:
            return max(0.0, failure.until - now)
        delay = failure.backoff.failed(self._random)
        failure.at, failure.until = now, now + delay
        if failure.reported or failure.backoff.failures >= reported_from:
            failure.reported = True
            with self._store.lock:
                facts[scope] = error.reason
                self._facts.heard_at = min(self._facts.heard_at, now)
            self._on_report()
            self._journal.failed(self._registry, scope, error)
        return delay

    def reported(self, scope: FailureScope) -> bool:
        """Whether a failure of the scope is reported now."""
        return scope in self._failures and self._failures[scope].reported

    def end(self, scope: FailureScope) -> bool:
        """The scope works, or nothing in it is watched any more; whether it failed before."""
        failure = self._failures.pop(scope, None)
        if failure is None:
            return False
        if failure.reported:
            with self._store.lock:
                failure.facts.pop(scope, None)
            self._on_report()
            self._journal.recovered(self._registry, scope)
        return True

    def of(self, repository: str) -> list[FailureScope]:
        """The scopes in a repository that fail now."""
        return [scope for scope in self._failures if scope.repository == repository]
