"""What can be asked, the calls in flight, and what polling needs from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from exporter.aws.errors import ECRError
from exporter.aws.timeouts import ANSWER_TIMEOUT
from exporter.polling.access import Access
from exporter.polling.rate_limit import Operation
from exporter.replication.model import FailureScope, Reason

#: Seconds after which a call in flight counts as failed. Each call has a time limit of its own. One that
#: takes longer hangs where no limit applies, as in a process that lends credentials. Its worker is not free
#: until it ends.
LOST_AFTER = ANSWER_TIMEOUT + 60.0


class Clock(Protocol):
    """The standard library's `time` module is one."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Job(NamedTuple):
    """Something to ask for, now or later; the key under which it is due."""

    operation: Operation
    repository: str = ""
    digest: str = ""


@dataclass(slots=True, eq=False)
class Call:
    """A job in flight: with which access, and since when (monotonic)."""

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


class Events(Protocol):
    """The log of events of one registry."""

    def noted(self, event: str, /, **fields: object) -> None: ...

    def warned(self, event: str, /, **fields: object) -> None: ...


def call_lost() -> ECRError:
    """The error of a call that does not end. Only what all calls of an access share can hang like this."""
    message = f"no end of the call after {LOST_AFTER:g} s; what lends the credentials may hang"
    return ECRError(Reason.UNAVAILABLE, action="ecr", code="CallLost", message=message, everything=True)


def unusable(error: Exception) -> ECRError:
    """The error of an answer that cannot be understood."""
    code = f"UnusableAnswer({type(error).__name__})"
    return ECRError(Reason.INVALID, action="ecr", code=code, message=str(error))
