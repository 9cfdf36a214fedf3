"""The nouns of polling: what can be asked, a call that is made, and what the poller needs from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from exporter.aws.errors import ECRError
from exporter.polling.grouping import Access
from exporter.polling.rate_limit import Operation
from exporter.replication.model import FailureScope


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
