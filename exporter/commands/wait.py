"""`wait`: wait until an image has arrived wherever it is replicated to.

A look asks AWS for the image, the rules, what ECR reports, and what the destinations hold. `verdict` says
what a look means. A failure counts only if the next look confirms it: a FAILED of an earlier push may still
be reported right after a push, and credentials may be renewed between two calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.commands.console import Console
from exporter.commands.image import ImageReference
from exporter.commands.verdict import (
    NOT_FOUND,
    NOT_FOUND_FOR,
    TRANSIENT,
    Copy,
    Look,
    Outcome,
    Result,
    named,
    reason_of,
    verdict,
)
from exporter.config.settings import DestinationSettings, RegistrySettings
from exporter.polling.access import grouped, readers
from exporter.replication.model import (
    Destination,
    Image,
    Name,
    Reason,
    Registry,
    ReplicaState,
    Replication,
    Source,
    Status,
)
from exporter.replication.replicas import Contents
from exporter.replication.status import evaluate, may_mean

#: Seconds between two looks: at first and at most, and how the pause grows.
FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 2.0, 15.0, 1.5
#: Seconds between two drawings of the live line.
DRAW_EVERY = 1.0


#: Makes the client of a registry.
Connect: TypeAlias = Callable[[RegistrySettings], EcrClient]


class UsageError(Exception):
    """The command line names something that makes no sense. Found only once AWS was asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to wait for. `region` is that of the source registry, `timeout` is in seconds.

    `destinations` are `[<account>/]<region>`; none for those that the rules or ECR name. `verify`: whether
    the destinations must hold the image too; None for those that can be read.
    """

    image: ImageReference
    region: str
    destinations: tuple[str, ...] = ()
    role_arn: str | None = None
    timeout: float = 1800.0
    verify: bool | None = None


@dataclass(slots=True)
class _Reader:
    """How the copy at one destination is looked at, and what it showed last."""

    client: EcrClient | None
    contents: Contents | None = None
    #: Why it is not looked at.
    unread: str = ""


@dataclass(slots=True)
class _Origin:
    """What is known of the source registry. `rules` is None if they cannot be read."""

    source: Source
    rules: Registry | None
    wanted: frozenset[Destination]


class Wait:
    """Looks at one image until a verdict or the time-out. `clock` is monotonic; times are in seconds."""

    def __init__(
        self,
        question: Question,
        *,
        connect: Connect,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        console: Console,
    ) -> None:
        self._question = question
        self._connect = connect
        self._clock = clock
        self._sleep = sleep
        self._console = console
        self._began = clock()
        self._access = _access(question)
        self._client = connect(self._access)
        self._image: Image | None = None
        #: Under which name the destinations must hold the image.
        self._name = Name(question.image.tag, "") if question.image.tag else question.image.name
        self._origin: _Origin | None = None
        #: What ECR reported last; None before its first answer.
        self._reported: tuple[Replication, ...] | None = None
        self._readers: dict[Destination, _Reader] = {}
        self._missing_since: float | None = None
        self._notes: list[str] = []

    def run(self) -> Result:
        """Wait. Raises UsageError."""
        pause, before = FIRST_PAUSE, Look()
        while True:
            look = self._look()
            self._console.show(look.states)
            found, late = verdict(look), self._left() <= 0
            if late:
                return self._result(Outcome.TIMED_OUT if found is None else found, look)
            changed = look.copies != before.copies
            certain = found is Outcome.REPLICATED and look.complete
            if found is not None and (certain or (found is verdict(before) and not changed)):
                return self._result(found, look)
            pause = FIRST_PAUSE if changed else min(pause * GROWTH, LONGEST_PAUSE)
            asked = look.error.retry_after if look.error else None
            self._pause(max(pause, asked or 0.0), states=", ".join(" ".join(s) for s in look.states.items()))
            before = look

    def _left(self) -> float:
        """Seconds until the time-out, to the millisecond."""
        return round(self._began + self._question.timeout - self._clock(), 3)

    def _pause(self, seconds: float, *, states: str) -> None:
        """Pause so long, at most until the time-out. Meanwhile the states are drawn."""
        end = self._clock() + min(seconds, self._left())
        while (left := round(end - self._clock(), 3)) > 0:
            self._console.draw(states, seconds=self._clock() - self._began)
            self._sleep(min(left, DRAW_EVERY))

    def _result(self, outcome: Outcome, look: Look) -> Result:
        origin, source = self._origin, self._question.image
        return Result(
            outcome,
            image=source,
            account=origin.source.registry_id if origin else source.account,
            region=self._question.region,
            digest=self._image.digest if self._image else source.digest,
            seconds=self._clock() - self._began,
            reason=reason_of(outcome, look),
            copies=look.copies,
            notes=tuple(self._notes),
        )

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            self._console.note(text)

    # -- one look ----------------------------------------------------------------------------

    def _look(self) -> Look:
        """What AWS says now. What was seen before stays if a call fails."""
        error, fresh = None, False
        try:
            image = self._found()
            origin = self._origin = self._origin or self._identified()
            self._reported = self._client.status(self._question.image.repository, image.digest)
            fresh = True
            for copy in self._copies(origin):
                error = self._read(origin, copy, image.digest) or error
                if error and self._left() <= 0:
                    break  # the next destination may give no answer either
            self._missing_since = None
        except ECRError as failure:
            error = failure
        copies = self._copies(self._origin) if self._origin else ()
        complete = bool(self._origin and (self._origin.rules or self._origin.wanted))
        return Look(copies, fresh, complete, error, self._lost(error))

    def _lost(self, error: ECRError | None) -> bool:
        """Whether the image was not found for so long that it will not appear."""
        if error is None or error.reason not in NOT_FOUND:
            return False
        now = self._clock()
        self._missing_since = now if self._missing_since is None else self._missing_since
        return now - self._missing_since >= NOT_FOUND_FOR or self._left() <= 0

    def _found(self) -> Image:
        """The image. The digest of the first look counts, also after its tag has moved."""
        reference = self._question.image
        if self._image is None:
            self._image = self._find(reference.name)
            self._console.note(f"{reference} is {self._image.digest}")
            if not reference.digest:
                return self._image
        if self._name.tag:
            holder = self._find_or_none(self._name)
            if holder is None or holder.digest != self._image.digest:
                now = f"names {holder.digest}" if holder else "is gone"
                self._note(f"the tag {self._name.tag} {now} at the source; waiting for {self._image.digest}")
                self._name = Name("", self._image.digest)
        return self._image

    def _find(self, name: Name) -> Image:
        for image in self._client.find(self._question.image.repository, [name]):
            if name.tag in image.tags or name.digest == image.digest:
                return image
        raise ECRError(
            Reason.IMAGE_NOT_FOUND, action="ecr:DescribeImages", code="NotFound", message="no such image"
        )

    def _find_or_none(self, name: Name) -> Image | None:
        try:
            return self._find(name)
        except ECRError as error:
            if error.reason is Reason.IMAGE_NOT_FOUND:
                return None
            raise

    def _identified(self) -> _Origin:
        """Whose registry it is, and its rules. They are read after the push, so they apply to the image."""
        rules, account = None, self._question.image.account
        try:
            registry = self._client.registry()
            account = account or registry.registry_id
            rules = registry if registry.registry_id == account else None
            unknown = "" if rules else f"those of {account} are not in reach of the credentials"
        except ECRError as error:
            if error.reason is not Reason.ACCESS_DENIED or error.everything:
                raise
            account, unknown = account or self._client.account(), str(error)
        if unknown:
            self._note(f"the replication rules cannot be read: {unknown}")
        source = Source(account, self._question.region)
        return _Origin(source, rules, self._wanted(source, rules))

    def _wanted(self, source: Source, rules: Registry | None) -> frozenset[Destination]:
        """The destinations of the command line. One without an account is in the account of the source."""
        places = (place.rpartition("/") for place in self._question.destinations)
        wanted = frozenset(
            Destination(region, account or source.registry_id) for account, _, region in places
        )
        if Destination(source.region, source.registry_id) in wanted:
            raise UsageError(f"the destination {source.registry_id}/{source.region} is the source itself")
        sent = rules.destinations(self._question.image.repository) if rules else wanted
        for destination in sorted(wanted - sent):
            self._note(f"no rule sends {self._question.image.repository} to {named(destination)}")
        return wanted

    # -- destinations ------------------------------------------------------------------------

    def _copies(self, origin: _Origin) -> tuple[Copy, ...]:
        """The copies to wait for, by what is known now."""
        if self._image is None or self._reported is None:
            return ()
        digest = self._image.digest
        seen = {to: reader.contents for to, reader in self._readers.items() if reader.contents}
        evaluation = evaluate(
            self._reported,
            origin.rules.destinations(self._question.image.repository) if origin.rules else None,
            required=origin.wanted,
            held=frozenset(to for to, contents in seen.items() if contents.holds(digest)),
            rules_apply=True,
            rules_expired=False,
            recent=True,
        )
        return tuple(
            self._copy(replication, digest)
            for replication in evaluation.replications
            if not origin.wanted or any(may_mean(replication.destination, to) for to in origin.wanted)
        )

    def _copy(self, replication: Replication, digest: str) -> Copy:
        reader = self._readers.get(replication.destination)
        contents = reader and reader.contents
        state = contents.replica(digest, self._name) if contents else None
        return Copy(replication, state[0] if state else None, reader.unread if reader else "")

    def _read(self, origin: _Origin, copy: Copy, digest: str) -> ECRError | None:
        """Look at a destination where the image may be; the error that kept it from being seen."""
        to, status, _ = copy.replication
        if to not in self._readers:
            self._readers[to] = self._reader(origin, to)
        reader = self._readers[to]
        may_hold = status in (Status.COMPLETE, Status.MISSING) and copy.replica is not ReplicaState.PRESENT
        if reader.client is None or not may_hold:
            return None
        try:
            reader.contents = look_up(reader.client, self._question.image.repository, digest, self._name)
        except ECRError as error:
            if error.reason in TRANSIENT or self._question.verify:
                return error
            reader.client, reader.contents, reader.unread = None, None, str(error)
            self._note(f"{named(to)} cannot be read: {error}")
        return None

    def _reader(self, origin: _Origin, to: Destination) -> _Reader:
        """How to look at a destination: as the source, or with the role or the credentials themselves."""
        if self._question.verify is False:
            return _Reader(None, unread="--no-verify")
        account, role = origin.source.registry_id, self._question.role_arn
        reachable = bool(self._question.verify) or (role and role.split(":")[4] == to.registry_id)
        entries = [DestinationSettings(to.registry_id, role_arn=role)] if reachable else []
        groups = grouped([self._access], accounts={self._access: account}, region=origin.source.region)
        accesses = readers(to, entries if to.registry_id != account else [], groups)
        if "" in to or not accesses:
            return _Reader(None, unread="in another account" if all(to) else "ECR does not say where it is")
        return _Reader(self._connect(accesses[0]))


def look_up(client: EcrClient, repository: str, digest: str, name: Name) -> Contents:
    """What the repository holds of an image: under the digest, and under its name. Raises ECRError.

    One unknown name fails a call, so each is asked for alone if they are not all known.
    """
    names = tuple(dict.fromkeys((Name("", digest), name)))
    found: list[Image] = []
    for some in (names, *((each,) for each in names if len(names) > 1)):
        try:
            found += client.find(repository, some)
        except ECRError as error:
            if error.reason is Reason.REPOSITORY_NOT_FOUND:
                return Contents(everything=True)
            if error.reason is not Reason.IMAGE_NOT_FOUND:
                raise
        else:
            if some == names:
                break
    return Contents(found, everything=True, asked=names)


def _access(question: Question) -> RegistrySettings:
    """How the source is reached. The account of a registry URI need not be that of the credentials."""
    access = RegistrySettings(region=question.region, role_arn=question.role_arn)
    account = question.image.account
    return access if account in ("", access.account) else replace(access, registry_id=account)
