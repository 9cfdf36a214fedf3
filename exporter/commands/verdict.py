"""What a look at an image means for `wait`, and how the end is told. All pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from exporter.aws.errors import ECRError
from exporter.commands.console import plain
from exporter.commands.image import ImageReference
from exporter.replication.model import Destination, Reason, ReplicaState, Replication, Status

#: Seconds in which an image or a repository that does not exist may yet appear.
NOT_FOUND_FOR = 30.0
NOT_FOUND = (Reason.IMAGE_NOT_FOUND, Reason.REPOSITORY_NOT_FOUND)
TRANSIENT = (Reason.THROTTLED, Reason.UNAVAILABLE)


class Outcome(IntEnum):
    """How it ended; the exit code."""

    REPLICATED = 0
    FAILED = 1
    TIMED_OUT = 3
    NOWHERE = 4


@dataclass(frozen=True, slots=True)
class Copy:
    """An image at one destination."""

    replication: Replication
    #: What the destination holds; None if it was not seen.
    replica: ReplicaState | None = None
    #: Why the destination is not looked at; "" if it is.
    unread: str = ""

    @property
    def arrived(self) -> bool:
        """Whether there is nothing left to wait for."""
        complete = self.replication.status == Status.COMPLETE
        return complete and (bool(self.unread) or self.replica is ReplicaState.PRESENT)

    def __str__(self) -> str:
        _, status, code = self.replication
        replica = self.replica.value if self.replica else self.unread and f"not verified: {self.unread}"
        return ", ".join(filter(None, (status, code, replica if status == Status.COMPLETE else "")))


@dataclass(frozen=True, slots=True)
class Look:
    """What one look showed. `error` is what kept it from being complete."""

    copies: tuple[Copy, ...] = ()
    #: Whether ECR said in this look what it reports, so that the copies are not those of an earlier one.
    fresh: bool = False
    #: Whether it is known where the image is sent: by the rules, or because destinations are named.
    complete: bool = False
    error: ECRError | None = None
    #: Whether the image was not found for too long.
    lost: bool = False

    @property
    def refused(self) -> bool:
        """Whether AWS will not answer this question however often it is asked."""
        return self.error is not None and self.error.reason not in (*TRANSIENT, *NOT_FOUND)

    @property
    def states(self) -> Mapping[str, str]:
        """What is told of it on the way, by the name of the thing."""
        states = {named(copy.replication.destination): str(copy) for copy in self.copies}
        if self.error:
            return states | {"AWS": str(self.error)}
        return states or {"ECR": "reports nothing yet"}


def verdict(look: Look) -> Outcome | None:
    """What a look means; None to go on waiting. An empty list of destinations is never a success."""
    if look.refused or look.lost:
        return Outcome.FAILED
    if look.fresh and any(copy.replication.status == Status.FAILED for copy in look.copies):
        return Outcome.FAILED
    if look.error:
        return None
    if not look.copies:
        return Outcome.NOWHERE if look.complete else None
    return Outcome.REPLICATED if all(copy.arrived for copy in look.copies) else None


def named(destination: Destination) -> str:
    return f"{destination.registry_id or '?'}/{destination.region or '?'}"


@dataclass(frozen=True, slots=True)
class Result:
    """The end of the command: `seconds` since its start; `digest` and `account` are "" if not known."""

    outcome: Outcome
    image: ImageReference
    account: str
    region: str
    digest: str
    seconds: float
    reason: str
    copies: tuple[Copy, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """For people: a line about the image, and one for each destination."""
        named_by = f"{self.image} ({self.digest})" if self.digest and not self.image.digest else self.image
        lines = [f"{named_by}: {self.outcome.name.lower()} after {self.seconds:.0f} s: {self.reason}"]
        lines += [f"  {named(copy.replication.destination)}: {copy}" for copy in self.copies]
        return "".join(f"{plain(line)}\n" for line in lines)

    def json(self) -> dict[str, Any]:
        """For programs. What is not known is null."""
        return {
            "result": self.outcome.name.lower(),
            "exit_code": int(self.outcome),
            "reason": plain(self.reason),
            "seconds": round(self.seconds, 1),
            "image": {
                "registry_id": self.account or None,
                "region": self.region,
                "repository": self.image.repository,
                "tag": self.image.tag or None,
                "digest": self.digest or None,
            },
            "destinations": [
                {
                    "registry_id": copy.replication.destination.registry_id,
                    "region": copy.replication.destination.region,
                    "status": copy.replication.status,
                    "failure_code": copy.replication.failure_code or None,
                    "replica": copy.replica and copy.replica.value,
                    "not_verified": copy.unread or None,
                }
                for copy in self.copies
            ],
            "notes": [plain(note) for note in self.notes],
        }


def reason_of(outcome: Outcome, look: Look) -> str:
    """Why it ended so, in one sentence."""
    if outcome is Outcome.REPLICATED:
        return "it has arrived at every destination"
    if outcome is Outcome.NOWHERE:
        return "no replication rule covers the repository, and ECR reports nothing"
    if look.error:
        return str(look.error)
    failed = [copy for copy in look.copies if copy.replication.status == Status.FAILED]
    return _waiting(failed or [copy for copy in look.copies if not copy.arrived])


def _waiting(copies: Iterable[Copy]) -> str:
    """What is not as it should be."""
    states = "; ".join(f"{named(copy.replication.destination)} {copy}" for copy in copies)
    return states or "ECR reports nothing, and its rules cannot be read: name a --destination"
