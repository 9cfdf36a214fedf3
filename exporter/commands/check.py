"""`check`: the configuration against the real AWS.

It changes nothing except the receive count of one SQS message in each events queue.

It reports everything, never only the first problem. It selects images as the exporter does, so it lists as
much as the exporter's first pass, at the same rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

from exporter.aws import sqs
from exporter.aws.connector import partition_of
from exporter.aws.ecr import OwnRegistryClient, TagStatus
from exporter.aws.errors import KEY_DENIED, NOT_ALLOWED, NOT_ENABLED, ECRError
from exporter.aws.sqs import InspectedQueueClient, Message
from exporter.commands.findings import Finding, Level, Permission, listed, policy_findings, role_of
from exporter.commands.verdict import TRANSIENT, named
from exporter.config.settings import DestinationSettings, RegistrySettings, Settings
from exporter.polling.access import Access, Group, access_of, grouped, readers
from exporter.polling.listing import Listing
from exporter.replication.model import Destination, Page, Reason, Registry, Source
from exporter.replication.targets import RepositoryTargets, Selected, Targets

T = TypeVar("T")
#: Makes the client of a registry.
Connect: TypeAlias = Callable[[RegistrySettings], OwnRegistryClient]
#: Makes the client of a queue.
ConnectQueue: TypeAlias = Callable[[RegistrySettings, str], InspectedQueueClient]
#: Asks one thing with a client.
Ask: TypeAlias = Callable[[OwnRegistryClient], T]
#: How often a call is repeated that AWS throttles or does not answer, and the seconds between two attempts.
RETRIES, RETRY_AFTER = 2, 3.0

_REMEDIES: Mapping[Reason, str] = {
    Reason.REPOSITORY_NOT_FOUND: "correct the name, the Region or the account",
    Reason.IMAGE_NOT_FOUND: "correct the tag or the digest",
    Reason.ACCESS_DENIED: "give other credentials: no call works with these",
    Reason.THROTTLED: "try again later, or lower requests_per_second",
    Reason.INVALID: "correct the configuration or the variables of AWS",
    Reason.UNAVAILABLE: "try again; else look at the network, the proxy and the Region",
}
_NO_CREDENTIALS_REMEDY = "give credentials, as by AWS_PROFILE, AWS_ACCESS_KEY_ID or a role of this machine"


@dataclass(slots=True)
class _Registry:
    """A source registry, and what is found in it."""

    group: Group
    subject: str
    targets: Targets
    rules: Registry | None = None
    #: What each target selects, by label and repository.
    selected: dict[str, dict[str, Selected]] = field(default_factory=dict)


class Check:
    """Looks once at all that the settings name. `clock` is Unix time, `pause` waits for seconds."""

    def __init__(
        self,
        settings: Settings,
        *,
        connect: Connect,
        connect_queue: ConnectQueue,
        region: str | None,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._connect_queue = connect_queue
        self._region = region
        self._clock = clock
        self._pause = pause
        self._clients: dict[Access, OwnRegistryClient] = {}
        #: The ARN of the credentials of each access; "" if AWS did not tell.
        self._callers: dict[Access, str] = {}
        #: Why the own credentials do not work: each code, with the Region if the code depends on it.
        self._broken: set[tuple[str, str | None]] = set()
        #: Whether the rules of every registry are read.
        self._knows_rules = True
        #: What each destination is sent, by the registries that send it.
        self._sent: dict[Destination, dict[Source, set[str]]] = {}

    def findings(self) -> Iterator[Finding]:
        """All findings, those about one subject together."""
        accounts: dict[Access, str] = {}
        entries = [replace(entry, region=entry.region or self._region) for entry in self._settings.registries]
        for access in dict.fromkeys(map(access_of, entries)):
            if access not in self._callers:
                yield from self._identify(access, f"credentials for {_described(access)}")
            if not (access.registry_id or access.role_arn) and (arn := self._callers[access]):
                accounts[access] = arn.split(":")[4]
        groups = grouped(entries, accounts=accounts, region=self._region)
        for group in groups:
            targets = Targets(group.targets(self._settings.targets), source=group.source)
            yield from self._registry(_Registry(group, f"registry {group.name}", targets))
        for entry in {entry.events_queue_url: entry for entry in reversed(entries)}.values():
            if entry.events_queue_url:
                yield from self._queue(access_of(entry), entry.events_queue_url.replace("{shard}", "0"))
        for destination in sorted(self._sent):
            yield from self._destination(destination, groups)
        for reader in self._settings.destinations:
            if not any(
                reader.registry_id == to.registry_id and reader.region in (None, to.region)
                for to in self._sent
            ):
                yield from self._unused(reader, groups[0].source.region)

    # -- calls -------------------------------------------------------------------------------

    def _call(self, access: Access, ask: Ask[T]) -> T:
        """The answer, at the rate of the settings. Raises ECRError."""
        client = self._clients.get(access) or self._clients.setdefault(access, self._connect(access))
        for _ in range(RETRIES):
            self._pause(1 / self._settings.requests_per_second)
            try:
                return ask(client)
            except ECRError as error:
                if error.reason not in TRANSIENT:
                    raise
                self._pause(error.retry_after or RETRY_AFTER)
        return ask(client)

    def _every(self, action: str, page: Callable[[OwnRegistryClient, str | None], Page[T]]) -> Ask[list[T]]:
        """Asks for the items of all pages, each page by one call of the IAM action."""

        def ask(client: OwnRegistryClient) -> list[T]:
            listing: Listing[T] = Listing(action)
            listing.answered(page(client, None))
            while not listing.complete:
                self._pause(1 / self._settings.requests_per_second)
                listing.answered(page(client, listing.token))
            return listing.items

        return ask

    def _identify(self, access: Access, subject: str) -> Iterator[Finding]:
        """Whose credentials an access has. What several accesses lack is one finding."""
        self._callers[access] = ""
        try:
            self._callers[access] = arn = self._call(access, lambda client: client.caller())
        except ECRError as error:
            base = RegistrySettings(region=access.region)
            if access.role_arn and base not in self._callers:
                yield from self._identify(base, f"credentials for {_described(base)}")
            regional = error.code in NOT_ENABLED or error.reason in TRANSIENT
            cause = error.code, access.region if regional else None
            failure = self._failure(subject, error, base, [access.role_arn or "*"])
            if account := self._account_without_sts(access):
                self._callers[access] = f"arn:{partition_of(access.region or '')}:iam::{account}:root"
                message = f"{failure.message}; ECR says that they are of account {account}"
                failure = Finding(Level.NOTE, subject, message, "let STS be reached: roles need it")
            if cause in self._broken:
                return
            if not access.role_arn:
                self._broken.add(cause)
            yield failure
        else:
            yield Finding(Level.OK, subject, f"the caller is {arn}")

    def _account_without_sts(self, access: Access) -> str:
        """The account of credentials that STS does not identify; "" if ECR does not know it either.

        The exporter asks STS only if ECR does not name the account, or for a role.
        """
        if access.role_arn:
            return ""
        try:
            return self._call(access, lambda client: client.registry()).registry_id
        except ECRError:
            return ""

    def _first(
        self, subject: str, accesses: Iterable[Access], resource: str, ask: Ask[T], failures: list[Finding]
    ) -> T | None:
        """The answer by the first access that gets one; else None, and why each of them fails."""
        found: list[Finding] = []
        for access in accesses:
            if not self._callers.get(access, "?"):
                continue  # told already
            try:
                return self._call(access, ask)
            except ECRError as error:
                found.append(self._failure(subject, error, access, [resource]))
        failures += found
        return None

    def _failure(self, subject: str, error: ECRError, access: Access, resources: Sequence[str]) -> Finding:
        """The finding about a call that failed, with the statement to add if a permission is missing."""
        message, assumes = f"{error} ({', '.join(resources)})", error.action == "sts:AssumeRole"
        principal = access.role_arn or role_of(self._callers.get(access, ""))
        caller = principal or "the caller"
        if error.code in KEY_DENIED:
            remedy = (
                f"allow {caller} kms:Decrypt on the key of the queue, in its policy and in that of the key"
            )
            return Finding(Level.PROBLEM, subject, message, remedy)
        if error.code not in NOT_ALLOWED or (error.everything and not assumes):
            absent = error.code == "NoCredentialsError"
            remedy = _NO_CREDENTIALS_REMEDY if absent else _REMEDIES[error.reason]
            return Finding(Level.PROBLEM, subject, message, remedy)
        remedy = f"add the statement to the policy of {caller}"
        if assumes:
            remedy += "; and the role must trust it, with the external id if it asks for one"
        elif access.registry_id:
            remedy += f"; and account {access.registry_id} must allow it in the policy of the repository"
        # IAM has no action of its own for a batch of SQS (service authorization reference).
        lacks = Permission(error.action.removesuffix("Batch"), tuple(resources), principal)
        return Finding(Level.PROBLEM, subject, f"{caller} lacks {message}", remedy, lacks)

    def _queue(self, access: Access, url: str) -> Iterator[Finding]:
        """Whether the events queue can be read: by its size, a look at a message, and a deletion of none."""
        subject, client = f"queue {url.rpartition('/')[2]}", self._connect_queue(access, url)
        arn = self._callers[access]
        if not arn:
            yield Finding(Level.NOTE, subject, "it is not looked at: the credentials do not work")
            return
        resource = sqs.arn_of(url, partition=arn.split(":")[1], region=access.region or "")
        failed = False
        for ask in (client.waiting, client.peek, lambda: client.delete([Message("", "none")])):
            try:
                ask()
            except ECRError as error:
                failed = True
                yield self._failure(subject, error, replace(access, registry_id=None), [resource])
                if error.reason is not Reason.ACCESS_DENIED:
                    return
        if not failed:
            yield Finding(Level.OK, subject, "its messages can be received and deleted")

    # -- a source registry -------------------------------------------------------------------

    def _registry(self, registry: _Registry) -> Iterator[Finding]:
        group, subject = registry.group, registry.subject
        failures: list[Finding] = []
        if not any(self._callers[access] for access in group.accesses):
            self._knows_rules = False
            yield Finding(Level.NOTE, subject, "it is not looked at: no credentials for it work")
            return
        yield from self._rules(registry)
        self._knows_rules &= registry.rules is not None
        self._first(subject, group.accesses, "*", lambda client: client.backfills(None), failures)
        yield from (replace(failure, level=Level.NOTE) for failure in failures)
        existing: frozenset[str] = frozenset()
        if registry.targets.need_repositories:
            failures, resource = [], self._arn(group.source, group.accesses, "*")
            ask = self._every("ecr:DescribeRepositories", lambda client, token: client.repositories(token))
            found = self._first(subject, group.accesses, resource, ask, failures)
            existing = frozenset(repository.name for repository in found or ())
            yield from failures or [Finding(Level.OK, subject, f"repositories: {len(existing)}")]
        yield from self._images(registry, sorted(registry.targets.matching(existing)))
        yield from self._selected(registry)

    def _rules(self, registry: _Registry) -> Iterator[Finding]:
        group, subject, failures = registry.group, registry.subject, list[Finding]()
        accesses = [access for access in group.accesses if not access.registry_id] or group.accesses
        found = self._first(subject, accesses, "*", lambda client: client.registry(), failures)
        if found is None:
            yield from failures
        elif found.registry_id != group.source.registry_id:
            message = "its rules are not in reach of another account: nothing is called MISSING"
            yield Finding(Level.NOTE, subject, message, "use a role_arn of its account")
        elif not found.rules:
            message = "it has no replication rules: nothing is sent anywhere"
            yield Finding(Level.PROBLEM, subject, message, "add rules, or look at another Region or account")
            registry.rules = found
        else:
            registry.rules = found
            for (to, prefix), mirrors in sorted(found.routes().items()):
                deletions = ", with deletions" if mirrors else ""
                yield Finding(Level.OK, subject, f"rule: {prefix}* to {named(to)}{deletions}")

    def _images(self, registry: _Registry, repositories: Iterable[str]) -> Iterator[Finding]:
        """List the images of the repositories, and ask for the status of one image in each."""
        failures: list[Finding] = []
        number = asked = 0
        for repository in repositories:
            is_listed, is_asked = self._repository(registry, repository, failures)
            number += is_listed
            asked += is_asked
        yield Finding(Level.OK, registry.subject, f"repositories whose images are listed: {number}")
        if asked:
            message = f"repositories where the status of an image is read: {asked}"
            yield Finding(Level.OK, registry.subject, message)
        elif not failures:
            message = "no image is selected, so ecr:DescribeImageReplicationStatus is not tried"
            yield Finding(Level.NOTE, registry.subject, message)
        yield from _merged(failures)

    def _repository(self, registry: _Registry, repository: str, failures: list[Finding]) -> tuple[bool, bool]:
        """Whether the images of the repository are listed, and whether the status of one of them is read."""
        group, targets = registry.group, registry.targets.of(repository)
        self._note_destinations(registry, repository, targets)
        accesses = group.named(target.settings for target in targets.targets)
        resource = self._arn(group.source, group.accesses, repository)
        tags: TagStatus = "ANY" if targets.untagged else "TAGGED"
        listing = self._every(
            "ecr:DescribeImages", lambda client, token: client.images(repository, token, tags=tags)
        )
        images = self._first(registry.subject, accesses, resource, listing, failures)
        if images is None:
            return False, False
        selection = targets.select(images, now=self._clock())
        for selected in selection.targets:
            registry.selected.setdefault(selected.label, {})[repository] = selected
        if not selection.images:
            return True, False
        digest = next(iter(selection.images))
        reported = self._first(
            registry.subject, accesses, resource, lambda client: client.status(repository, digest), failures
        )
        return True, reported is not None

    def _note_destinations(self, registry: _Registry, repository: str, targets: RepositoryTargets) -> None:
        by_rules = registry.rules.destinations(repository) if registry.rules else frozenset[Destination]()
        for destination in by_rules | targets.required:
            sent = self._sent.setdefault(destination, {})
            sent.setdefault(registry.group.source, set()).add(repository)

    def _selected(self, registry: _Registry) -> Iterator[Finding]:
        """What each target selects, and whether that is sent anywhere."""
        for target in registry.targets.all:
            subject = f"target {target.label} in {registry.group.name}"
            found = registry.selected.get(target.label, {})
            number = sum(selected.images for selected in found.values())
            selecting = [name for name, selected in found.items() if selected.images]
            if not number:
                yield Finding(Level.PROBLEM, subject, "it selects no image", "correct its names or filters")
            else:
                message = f"selected images: {number}, in repositories: {len(selecting)}"
                yield Finding(Level.OK, subject, message)
            missing = [
                f"{repository}:{name.tag}" if name.tag else f"{repository}@{name.digest}"
                for repository, selected in found.items()
                for name in selected.missing
            ]
            if missing:
                message, remedy = f"not found: {listed(missing)}", _REMEDIES[Reason.IMAGE_NOT_FOUND]
                yield Finding(Level.PROBLEM, subject, message, remedy)
            if registry.rules is None:
                continue
            covered = registry.rules.destinations
            if not target.required and (uncovered := [name for name in selecting if not covered(name)]):
                message = f"no rule sends these repositories anywhere: {listed(uncovered)}"
                yield Finding(Level.PROBLEM, subject, message, "add a rule, or narrow the target")
            for to in sorted(target.required):
                if unsent := [name for name in selecting if to not in covered(name)]:
                    message = f"no rule sends these repositories to {named(to)}: {listed(unsent)}"
                    yield Finding(
                        Level.NOTE, subject, message, "add a rule, unless something else copies them"
                    )

    def _arn(self, of: Source | Destination, accesses: Iterable[Access], repository: str) -> str:
        """The resource of a repository in a policy, in the partition of the callers."""
        arns = (self._callers[access] for access in accesses)
        partition = next((arn.split(":")[1] for arn in arns if arn), "aws")
        return f"arn:{partition}:ecr:{of.region}:{of.registry_id}:repository/{repository}"

    # -- a destination -----------------------------------------------------------------------

    def _destination(self, to: Destination, groups: list[Group]) -> Iterator[Finding]:
        """Whether it can be read, and whether its registry policy lets replicas in."""
        subject, failures = f"destination {named(to)}", list[Finding]()
        sources = self._sent[to]
        accesses = readers(to, self._settings.destinations, groups)
        for access in accesses:
            if access not in self._callers:
                found = self._identify(access, subject)
                yield from (finding for finding in found if finding.level is not Level.OK)
        repository = min(name for names in sources.values() for name in names)
        resource = self._arn(to, accesses, "*")
        if not self._settings.replica_interval:
            message = "its copies are not looked at: replica_interval is 0s"
            yield Finding(Level.NOTE, subject, message)
        elif not accesses:
            message = f"its copies are not looked at: nothing says how account {to.registry_id} is read"
            yield Finding(Level.NOTE, subject, message, "add it under destinations, with a role_arn")
        elif not any(self._callers[access] for access in accesses):
            yield Finding(Level.NOTE, subject, "its copies are not looked at: no credentials for it work")
        elif self._first(subject, accesses, resource, partial(_held, repository), failures) is not None:
            yield Finding(Level.OK, subject, "its copies can be looked at")
        yield from failures
        for source in sorted(sources):
            if source.registry_id != to.registry_id:
                arns = [self._arn(to, accesses, name) for name in sorted(sources[source])]
                yield from self._policy(subject, source.registry_id, to, accesses, arns)

    def _unused(self, reader: DestinationSettings, region: str) -> Iterator[Finding]:
        """An entry under `destinations` that nothing is known to be sent to.

        STS is asked in its Region, else in `region`.
        """
        subject = f"destination {reader.registry_id}/{reader.region or '*'}"
        if self._knows_rules:
            message = "no rule and no target sends anything there"
            yield Finding(Level.NOTE, subject, message, "add a rule, or remove the entry")
        access = RegistrySettings(
            region=reader.region or region,
            registry_id=reader.registry_id,
            role_arn=reader.role_arn,
            external_id=reader.external_id,
        )
        yield from self._identify(access, subject)
        if not self._callers[access]:
            yield Finding(Level.NOTE, subject, "it is not looked at: no credentials for it work")

    def _policy(
        self, subject: str, source: str, to: Destination, accesses: Iterable[Access], arns: Sequence[str]
    ) -> Iterator[Finding]:
        """Only credentials of the destination's account can read its registry policy."""
        own = [access for access in accesses if self._callers[access].split(":")[4:5] == [to.registry_id]]
        failures: list[Finding] = []
        policy = self._first(subject, own, "*", lambda client: client.registry_policy(), failures)
        if policy is not None:
            yield from policy_findings(subject, policy, source, arns)
        elif not failures:
            message = "its registry policy cannot be read: that takes credentials of its account"
            yield Finding(Level.NOTE, subject, message, "add a role_arn of its account under destinations")
        yield from (replace(failure, level=Level.NOTE) for failure in failures)


def _described(access: Access) -> str:
    account = access.registry_id or "their own account"
    return f"{account}/{access.region or '?'}" + (f" by {access.role_arn}" if access.role_arn else "")


def _held(repository: str, client: OwnRegistryClient) -> int:
    """How many images the first page of the copies has; a repository that does not exist holds nothing."""
    try:
        return len(client.images(repository, None).items)
    except ECRError as error:
        if error.reason is Reason.REPOSITORY_NOT_FOUND:
            return 0
        raise


def _merged(failures: Iterable[Finding]) -> Iterator[Finding]:
    """One finding for each action that a principal lacks, with all resources; the others as they are."""
    lacking: dict[tuple[str, str], list[Finding]] = {}
    for failure in failures:
        if failure.lacks:
            lacking.setdefault((failure.lacks.action, failure.lacks.principal), []).append(failure)
        else:
            yield failure
    for (action, principal), several in lacking.items():
        resources = tuple(dict.fromkeys(r for each in several if each.lacks for r in each.lacks.resources))
        lacks = Permission(action, resources, principal)
        message = f"{principal or 'the caller'} lacks {action} on {listed(resources)}"
        yield several[0] if len(several) == 1 else replace(several[0], message=message, lacks=lacks)
