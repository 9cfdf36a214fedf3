"""The calls under way in one registry, and those that take too long."""

from __future__ import annotations

from exporter.aws.errors import ECRError
from exporter.aws.timeouts import ANSWER_TIMEOUT
from exporter.polling.jobs import Call, Job
from exporter.replication.model import Reason

#: Seconds after which a call under way counts as failed. Each call has a time limit of its own, so one that
#: takes longer hangs where no limit applies, as in a process that lends credentials. Its worker is not
#: free until it ends.
LOST_AFTER = ANSWER_TIMEOUT + 60.0


class InFlight:
    """The calls that were sent and are waited for, at most one for each job."""

    def __init__(self) -> None:
        #: In the order in which they were sent.
        self._calls: dict[Job, Call] = {}

    def __contains__(self, job: object) -> bool:
        return job in self._calls

    def add(self, call: Call) -> None:
        """Wait for a call."""
        self._calls[call.job] = call

    def remove(self, call: Call) -> bool:
        """Stop to wait for a call that came back; False if it was lost, so that it counted already."""
        if self._calls.get(call.job) is not call:
            return False
        del self._calls[call.job]
        return True

    def lost(self, now: float) -> list[Call]:
        """The calls that are under way for LOST_AFTER at the monotonic time `now`."""
        found = []
        for call in self._calls.values():
            if call.sent_at > now - LOST_AFTER:
                break
            found.append(call)
        return found


def call_lost() -> ECRError:
    """The error of a lost call. Only what all calls of an access have in common can hang like this."""
    message = f"no end of the call after {LOST_AFTER:g} s; what lends the credentials may hang"
    return ECRError(Reason.UNAVAILABLE, action="ecr", code="CallLost", message=message, everything=True)
