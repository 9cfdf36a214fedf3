"""Whether a registry can be reached at all: outages, and throttling that goes on."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.aws.errors import ECRError
from exporter.polling.access import Clients
from exporter.polling.failures import Failures
from exporter.polling.first_rounds import FirstRounds
from exporter.polling.in_flight import InFlight
from exporter.polling.jobs import Call, Clock, Job, Journal
from exporter.polling.pacing import Pacing
from exporter.replication.facts import RegistryFacts
from exporter.replication.model import FailureScope, Reason

#: So many calls in a row without an answer mean that the registry, not a repository, is out of reach.
OUTAGE_AFTER = 3
#: Longest pause in seconds between probes of a registry that is out of reach.
OUTAGE_CAP = 30.0
#: Seconds without a throttled call after which throttling is over.
CALM_AFTER = 300.0

_REGISTRY = FailureScope("registry")
_THROTTLING = FailureScope("budget")


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
        if self.failures.end(scope):
            self.pacing.release(scope)

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
        delay = self._parts.failures.fail(_REGISTRY, error, facts, call=call, cap=OUTAGE_CAP, reported_from=1)
        self._parts.pacing.pause(seconds=delay)
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
