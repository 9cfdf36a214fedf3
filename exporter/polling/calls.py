"""What can be asked, the calls under way, and what polling needs from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from exporter.aws.errors import ECRError
from exporter.aws.timeouts import ANSWER_TIMEOUT
from exporter.polling.access import Access
from exporter.polling.rate_limit import Operation
from exporter.replication.model import FailureScope, Reason

#: Seconds after which a call under way counts as failed. Each call has a time limit of its own, so one that
#: takes longer hangs where no limit applies, as in a process that lends credentials. Its worker is not
#: free until it ends.
LOST_AFTER = ANSWER_TIMEOUT + 60.0


class Clock(Protocol):
    """The standard library's `time` module is one."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Kind(StrEnum):
    """What a call asks for."""

    REGISTRY = "registry"  # whose registry it is, and its rules
    ACCOUNT = "account"  # whose credentials these are, where the registry may not be described
    REPOSITORIES = "repositories"
    IMAGES = "images"
    STATUS = "status"


OPERATIONS = {
    Kind.REGISTRY: Operation.REGISTRY,
    Kind.ACCOUNT: Operation.REGISTRY,
    Kind.REPOSITORIES: Operation.REPOSITORIES,
    Kind.IMAGES: Operation.IMAGES,
    Kind.STATUS: Operation.STATUS,
}


class Job(NamedTuple):
    """Something to ask for, now or later; the key under which it is due."""

    kind: Kind
    repository: str = ""
    digest: str = ""


@dataclass(slots=True, eq=False)
class Call:
    """A job under way: with which access, and since when (monotonic)."""

    job: Job
    access: Access
    sent_at: float
    #: Makes the call, in any thread. Raises ECRError.
    make: Callable[[], Any]


class Journal(Protocol):
    """The log of failures that begin, go on and end, and of events."""

    def failed(self, registry: str, scope: FailureScope, error: ECRError) -> None: ...

    def recovered(self, registry: str, scope: FailureScope) -> None: ...

    def noted(self, registry: str, event: str, **fields: object) -> None: ...

    def warned(self, registry: str, event: str, **fields: object) -> None: ...

    def forget(self, registry: str) -> None: ...

    def tick(self) -> None: ...


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
