"""Whether a registry is within reach, and whether it throttles: seen from the end of every call."""

from __future__ import annotations

from exporter.aws.errors import ECRError
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job
from exporter.polling.context import Context
from exporter.replication.model import FailureScope, Reason

#: So many calls in a row without an answer mean that the registry, not a repository, is out of reach.
OUTAGE_AFTER = 3
#: Longest pause in seconds between probes of a registry that is out of reach.
OUTAGE_CAP = 30.0

REGISTRY = FailureScope("registry")
_THROTTLING = FailureScope("budget")


class Reach:
    """Takes the end of every call, before its meaning is looked at."""

    def __init__(self, context: Context) -> None:
        self._context = context
        #: The jobs that got no answer since the last answer of any.
        self._unanswered: set[Job] = set()
        #: The accesses whose credentials are of no use.
        self._useless: set[Access] = set()

    def answered(self, call: Call) -> None:
        """A call came back with an answer."""
        self._context.pacing.answered(call, throttled=False)
        self._reached(call)

    def failed(self, call: Call, error: ECRError) -> bool:
        """A call came back with an error; True if that is dealt with, and the job is to be booked again.

        A throttled call is no failure. The registry is out of reach if three calls in a row, not all about
        one repository, get no answer, or if the credentials of all accesses are of no use.
        """
        context = self._context
        # STS has limits of its own: its refusals say nothing about the rates of ECR.
        throttled = error.reason is Reason.THROTTLED and not error.everything
        context.pacing.answered(call, throttled=throttled)
        if throttled:
            self._reached(call)
            context.facts.throttled = True
            context.log_failed(_THROTTLING, error)
            return True
        if not error.everything and error.reason is not Reason.UNAVAILABLE:
            self._reached(call)
            return False
        if error.everything:
            self._useless.add(call.access)
            if not self._useless >= context.clients.keys():
                return False
        self._unanswered.add(call.job)
        if not error.everything and not self._out_of_reach():
            return False
        until = context.fail(REGISTRY, error, call, cap=OUTAGE_CAP, reported_from=1)
        context.pacing.pause(until=until)
        return True

    def _out_of_reach(self) -> bool:
        repositories = {job.repository for job in self._unanswered}
        return len(self._unanswered) >= OUTAGE_AFTER and (len(repositories) > 1 or repositories == {""})

    def _reached(self, call: Call) -> None:
        """AWS answered: the registry is within reach, and the credentials are of use."""
        context = self._context
        context.answered = True
        self._unanswered.clear()
        self._useless.discard(call.access)
        context.pacing.resume()
        context.works(REGISTRY)
        self.calm_down()

    def calm_down(self) -> None:
        """End the throttling, if no call was refused for long. There may be no call for as long."""
        context = self._context
        if context.facts.throttled and not context.pacing.throttled:
            context.facts.throttled = False
            context.log_recovered(_THROTTLING)
