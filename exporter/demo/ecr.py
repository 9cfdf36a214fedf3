"""A simulated ECR: registries in memory, with the pages, limits and errors of the real API.

Destinations hold copies. Where AWS documents nothing, the simulation decides: a tag that is added to an image
travels like a new image; an image that is deleted while its copy is under way does not arrive; deletions are
mirrored at once; a look-up by name finds only images of the requested status.

moto's ECR is not used. It has no DescribeImageReplicationStatus, pages or limits, and its look-ups are slow.
"""

from __future__ import annotations

import base64
import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from heapq import heappop, heappush
from itertools import count
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from exporter.demo.events import image_action, replication_action
from exporter.demo.registries import (
    DEFAULT_SETTINGS,
    MANIFEST,
    Arrival,
    Copy,
    Image,
    Refuse,
    Registry,
    Repository,
)
from exporter.replication.model import BACKFILL_PAGE_SIZE, LOOKUP_SIZE, PAGE_SIZE, Destination

#: Seconds from a push until a destination that refuses replicas reports FAILED.
DENIED_AFTER = 2.0
#: The failure code that it reports.
DENIED = "DESTINATION_REGISTRY_ACCESS_DENIED"
#: ECR's pages when maxResults is not given (botocore service model).
DEFAULT_PAGE = 100
DEFAULT_BACKFILL_PAGE = 25

T = TypeVar("T")
#: Seconds until the copy at a destination is COMPLETE; with infinity it stays IN_PROGRESS.
Delay = Callable[[Destination], float]


class CallKind(NamedTuple):
    """What identifies a kind of call. The account is the caller's."""

    service: str
    operation: str
    account: str
    region: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request, with its parameters as sent."""

    kind: CallKind
    params: Mapping[str, Any]

    @property
    def operation(self) -> str:
        return self.kind.operation

    @property
    def registry_id(self) -> str:
        """The account of the registry: the parameter registryId, or the caller's account without it."""
        return str(self.params.get("registryId", self.kind.account))


def digest_of(content: bytes) -> str:
    """The digest of the content, as in a registry."""
    return "sha256:" + sha256(content).hexdigest()


def _invalid(message: str) -> Refuse:
    return Refuse(400, "InvalidParameterException", message)


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a repository among the parameters of a call."""
    return {name: params[name] for name in DEFAULT_SETTINGS if name in params}


def _page(
    call: Call,
    rows: Sequence[T],
    key: Callable[[T], Any],
    *,
    default: int = DEFAULT_PAGE,
    most: int = PAGE_SIZE,
) -> tuple[Sequence[T], dict[str, str]]:
    """The requested page of `rows`, which are sorted by `key`, and the token of the next page.

    A token contains the key of the next row, so a row that is deleted between two pages hides no other row.
    """
    size = call.params.get("maxResults", default)
    if not 1 <= size <= most:
        raise _invalid(f"maxResults {size} is not within 1..{most}")
    scope = [*call.kind, call.registry_id, call.params.get("repositoryName")]
    token = call.params.get("nextToken")
    start = bisect_left(rows, _position(token, scope), key=key) if token else 0
    following = rows[start + size : start + size + 1]
    tokens = {"nextToken": _token(scope, key(following[0]))} if following else {}
    return rows[start : start + size], tokens


def _token(scope: Sequence[Any], position: Any) -> str:
    return base64.b64encode(json.dumps([scope, position]).encode()).decode()


def _position(token: str, scope: Sequence[Any]) -> Any:
    try:
        issued, position = json.loads(base64.b64decode(token, validate=True))
    except (ValueError, TypeError):
        issued, position = None, None
    if issued != scope:
        raise _invalid("nextToken was not issued for this listing")
    return position


def _arrived(arrival: Arrival) -> dict[str, Any]:
    """The event about a copy that arrived."""
    home = arrival.source
    return replication_action(
        home.name,
        arrival.image.digest,
        arrival.destination,
        at=arrival.at,
        tag=arrival.tag,
        account=home.registry_id,
        region=home.region,
    )


class ECR:
    """The registries of all accounts, in memory. All methods are for any thread.

    A push fixes the replication of the image: the rules at that time give the destinations, and `denied` says
    which of them refuse. After that its status depends only on the clock. A copy that is COMPLETE is an image
    of its destination, where it can be tagged, archived or deleted like any other.
    The methods that change the world raise Refuse like the API if something does not exist.
    """

    def __init__(self, *, clock: Callable[[], float], delay: Delay) -> None:
        self.clock = clock
        self.delay = delay
        #: Takes the events that EventBridge would send.
        self.emit: Callable[[dict[str, Any]], None] = lambda _: None
        #: Registries whose policy refuses replicas. A change affects later pushes only.
        self.denied: set[Destination] = set()
        self._lock = threading.RLock()
        self._registries: dict[tuple[str, str], Registry] = {}
        #: A heap of the copies under way that will arrive.
        self._arrivals: list[Arrival] = []
        self._numbers = count(1)

    # -- changes of the world --

    def create_repository(
        self, registry_id: str, region: str, name: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Create a repository. `settings` are those of CreateRepository, such as imageTagMutability."""
        with self._lock:
            repositories = self._registry(registry_id, region).repositories
            if name in repositories:
                raise Refuse(400, "RepositoryAlreadyExistsException", f"{name} exists already")
            created = Repository(registry_id, region, name, self.clock())
            created.settings |= settings or {}
            repositories[name] = created

    def set_settings(self, registry_id: str, region: str, name: str, settings: Mapping[str, Any]) -> None:
        """Change settings of a repository, in the format of CreateRepository."""
        with self._lock:
            self._repository(registry_id, region, name).settings |= settings

    def delete_repository(self, registry_id: str, region: str, name: str) -> None:
        with self._lock:
            self._repository(registry_id, region, name).images.clear()
            del self._registry(registry_id, region).repositories[name]

    def push(
        self,
        registry_id: str,
        region: str,
        repository: str,
        tag: str | None,
        *,
        pushed_at: float | None = None,
        digest: str | None = None,
        delay: Delay | None = None,
    ) -> str:
        """Push a new image, or tag an existing one (`digest`). Returns the digest.

        A tag that moves leaves its old image in the repository, even without tags. In an immutable repository
        it does not move (ImageTagAlreadyExistsException).
        """
        with self._lock:
            home = self._repository(registry_id, region, repository)
            if tag is not None and home.protects(tag, digest):
                raise Refuse(400, "ImageTagAlreadyExistsException", f"{home.name} has an image {tag}")
            at = self.clock() if pushed_at is None else pushed_at
            takes = delay or self.delay
            image = home.images.get(digest or "")
            if image is None:
                image = self._pushed(home, digest, at, takes)
            elif tag is None or tag in image.tags:
                return image.digest
            if tag is not None:
                home.name_image(tag, image)
            self._send(home, image, tag, at, takes)
            self._acted("PUSH", home, image, tag, at=at)
            return image.digest

    def delete_image(self, registry_id: str, region: str, repository: str, digest: str) -> None:
        with self._lock:
            home = self._repository(registry_id, region, repository)
            self._delete(home, home.find({"imageDigest": digest}))

    def untag(self, registry_id: str, region: str, repository: str, tag: str) -> None:
        """Remove a tag. An image without tags is deleted, as BatchDeleteImage does."""
        with self._lock:
            self._untag(self._repository(registry_id, region, repository), tag)

    def archive_image(self, registry_id: str, region: str, repository: str, digest: str) -> None:
        """Move an image to the archive. Archiving is not mirrored."""
        with self._lock:
            home = self._repository(registry_id, region, repository)
            image = home.find({"imageDigest": digest})
            image.archived = True
            self._acted("UPDATE_STORAGE_CLASS", home, image)

    def restore_image(self, registry_id: str, region: str, repository: str, digest: str) -> None:
        """Restore an image from the archive. It is replicated again, with its tags."""
        with self._lock:
            home = self._repository(registry_id, region, repository)
            image = home.find({"imageDigest": digest})
            image.archived, image.activated_at = False, self.clock()
            image.copies = self._copies(home, image, image.activated_at, self.delay)
            for tag in image.tags or (None,):
                self._send(home, image, tag, image.activated_at, self.delay)
            self._acted("UPDATE_STORAGE_CLASS", home, image)

    def set_rules(self, registry_id: str, region: str, rules: Sequence[Any]) -> None:
        """Replace the rules, in the format of AWS: {"destinations": [...], "repositoryFilters": [...]}."""
        with self._lock:
            self._registry(registry_id, region).rules = list(rules)

    def set_policy(self, registry_id: str, region: str, policy: str) -> None:
        """Replace the registry policy, which is JSON. It decides nothing here: `denied` does."""
        with self._lock:
            self._registry(registry_id, region).policy = policy

    def set_backfills(self, registry_id: str, region: str, backfills: Sequence[Any]) -> None:
        """Replace the backfills, in the format of AWS. Their order is that of the listing."""
        with self._lock:
            self._registry(registry_id, region).backfills = list(backfills)

    def set_status(self, registry_id: str, region: str, repository: str, digest: str, statuses: Any) -> None:
        """Report this JSON as replicationStatuses of the image; with None the real statuses again."""
        with self._lock:
            self._repository(registry_id, region, repository).find({"imageDigest": digest}).pinned = statuses

    def _registry(self, registry_id: str, region: str) -> Registry:
        """The registry at the time of the clock: with the copies that have arrived."""
        now = self.clock()
        while self._arrivals and self._arrivals[0].at <= now:
            arrival = heappop(self._arrivals)
            if arrival.source.images.get(arrival.image.digest) is arrival.image:
                self._at(arrival.destination).receive(arrival)
                self.emit(_arrived(arrival))
        return self._at(Destination(region, registry_id))

    def _at(self, place: Destination) -> Registry:
        key = (place.registry_id, place.region)
        if key not in self._registries:
            self._registries[key] = Registry(*key)
        return self._registries[key]

    def _repository(self, registry_id: str, region: str, name: str) -> Repository:
        return self._registry(registry_id, region).repository(name)

    def _pushed(self, home: Repository, digest: str | None, at: float, delay: Delay) -> Image:
        registry = self._registry(home.registry_id, home.region)
        registry.pushes += 1
        name = f"{home.registry_id}/{home.region}/{home.name}/{registry.pushes}"
        image = Image(registry.pushes, digest or digest_of(name.encode()), at)
        image.copies = self._copies(home, image, at, delay)
        home.images[image.digest] = image
        return image

    def _copies(self, home: Repository, image: Image, at: float, delay: Delay) -> tuple[Copy, ...]:
        """The replications that begin at `at`. A copy is not replicated: replication does not chain."""
        destinations = self._registry(home.registry_id, home.region).destinations(home.name)
        return () if image.is_copy else tuple(self._copy(to, at, delay) for to in destinations)

    def _copy(self, destination: Destination, at: float, delay: Delay) -> Copy:
        if destination in self.denied:
            return Copy(destination, at + DENIED_AFTER, DENIED)
        return Copy(destination, at + delay(destination), None)

    def _send(self, home: Repository, image: Image, tag: str | None, at: float, delay: Delay) -> None:
        """Let the image and its tag arrive where its copies go, with the copy or after another delay."""
        number = next(self._numbers)
        for to, done_at, failure_code in image.copies:
            arrives = done_at if at < done_at else at + delay(to)
            if failure_code is None and isfinite(arrives):
                heappush(self._arrivals, Arrival(arrives, number, to, tag, home, image))

    def _delete(self, home: Repository, image: Image) -> None:
        home.remove(image)
        self._acted("DELETE", home, image)
        for mirror in self._mirrors(home):
            if image.digest in mirror.images:
                mirror.remove(mirror.images[image.digest])

    def _untag(self, home: Repository, tag: str) -> None:
        image = home.find({"imageTag": tag})
        if image.tags == [tag]:
            self._delete(home, image)
            return
        home.untag(tag)
        self._acted("DELETE", home, image, tag)
        number = next(self._numbers)
        for mirror in self._mirrors(home):
            mirror.follow_untag(tag, image.digest, number)

    def _acted(
        self, action: str, home: Repository, image: Image, tag: str | None = None, *, at: float | None = None
    ) -> None:
        """Send the event about an action on an image, now by default."""
        place = {"account": home.registry_id, "region": home.region}
        at = self.clock() if at is None else at
        self.emit(image_action(action, home.name, image.digest, at=at, tag=tag, **place))

    def _mirrors(self, home: Repository) -> list[Repository]:
        """The repositories to which deletions in this one are mirrored."""
        registry = self._registry(home.registry_id, home.region)
        there = [self._at(to).repositories for to in registry.destinations(home.name, only_mirrored=True)]
        return [repositories[home.name] for repositories in there if home.name in repositories]

    # -- the API --

    def serve(self, call: Call) -> dict[str, Any]:
        """The answer to an ECR call. Raises Refuse."""
        operation = self._OPERATIONS.get(call.operation)
        if operation is None:
            raise Refuse(400, "UnknownOperationException", f"the simulated ECR has no {call.operation}")
        with self._lock:
            return operation(self, call)

    def _home(self, call: Call) -> Repository:
        return self._repository(call.registry_id, call.kind.region, call.params["repositoryName"])

    def _describe_registry(self, call: Call) -> dict[str, Any]:
        registry = self._registry(call.kind.account, call.kind.region)
        return {"registryId": registry.registry_id, "replicationConfiguration": {"rules": registry.rules}}

    def _get_registry_policy(self, call: Call) -> dict[str, Any]:
        registry = self._registry(call.kind.account, call.kind.region)
        if not registry.policy:
            raise Refuse(400, "RegistryPolicyNotFoundException", "the registry has no policy")
        return {"registryId": registry.registry_id, "policyText": registry.policy}

    def _put_replication_configuration(self, call: Call) -> dict[str, Any]:
        configuration = call.params["replicationConfiguration"]
        self.set_rules(call.kind.account, call.kind.region, configuration["rules"])
        return {"replicationConfiguration": configuration}

    def _create_repository(self, call: Call) -> dict[str, Any]:
        self.create_repository(
            call.registry_id, call.kind.region, call.params["repositoryName"], _settings(call.params)
        )
        return {"repository": self._home(call).row()}

    def _put_setting(self, call: Call) -> dict[str, Any]:
        home, settings = self._home(call), _settings(call.params)
        home.settings |= settings
        return {"registryId": home.registry_id, "repositoryName": home.name} | settings

    def _delete_repository(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        if home.images and not call.params.get("force"):
            raise Refuse(400, "RepositoryNotEmptyException", f"{home.name} holds images")
        self.delete_repository(call.registry_id, call.kind.region, home.name)
        return {"repository": home.row()}

    def _describe_repositories(self, call: Call) -> dict[str, Any]:
        registry = self._registry(call.registry_id, call.kind.region)
        if names := call.params.get("repositoryNames"):
            return {"repositories": [registry.repository(name).row() for name in names]}
        names, token = _page(call, sorted(registry.repositories), lambda name: name)
        return {"repositories": [registry.repositories[name].row() for name in names]} | token

    def _listed(self, home: Repository, call: Call) -> list[Image]:
        which = call.params.get("filter", {})
        tag_status, image_status = which.get("tagStatus", "ANY"), which.get("imageStatus", "ACTIVE")
        return [image for image in home.images.values() if image.matches(tag_status, image_status)]

    def _describe_images(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        if image_ids := call.params.get("imageIds"):
            images: Sequence[Image] = self._found(home, image_ids, call)
            token: dict[str, str] = {}
        else:
            images, token = _page(call, self._listed(home, call), lambda image: image.serial)
        return {"imageDetails": [home.image_row(image) for image in images]} | token

    def _found(self, home: Repository, image_ids: Sequence[Mapping[str, str]], call: Call) -> list[Image]:
        """Each image once, even if several of its names are given. One unknown name fails the call."""
        if len(image_ids) > LOOKUP_SIZE:
            raise _invalid(f"{len(image_ids)} imageIds; the limit is {LOOKUP_SIZE}")
        if call.params.keys() & {"maxResults", "nextToken"}:
            raise _invalid("maxResults and nextToken are not allowed with imageIds")
        image_status = call.params.get("filter", {}).get("imageStatus", "ACTIVE")
        images = [home.find(image_id, image_status=image_status) for image_id in image_ids]
        return list({image.digest: image for image in images}.values())

    def _list_images(self, call: Call) -> dict[str, Any]:
        names = [
            (image.serial, place, {"imageDigest": image.digest} | ({"imageTag": tag} if tag else {}))
            for image in self._listed(self._home(call), call)
            for place, tag in enumerate(image.tags or [""])
        ]
        page, token = _page(call, names, lambda row: [row[0], row[1]])
        return {"imageIds": [image_id for _, _, image_id in page]} | token

    def _put_image(self, call: Call) -> dict[str, Any]:
        home, manifest, tag = self._home(call), call.params["imageManifest"], call.params.get("imageTag")
        digest = digest_of(manifest.encode())
        if digest in home.images and (tag is None or tag in home.images[digest].tags):
            raise Refuse(400, "ImageAlreadyExistsException", f"{home.name} already has this image")
        self.push(home.registry_id, home.region, home.name, tag, digest=digest)
        home.images[digest].media_type = call.params.get("imageManifestMediaType", MANIFEST)
        image_id = {"imageDigest": digest} | ({"imageTag": tag} if tag else {})
        return {
            "image": {
                "registryId": home.registry_id,
                "repositoryName": home.name,
                "imageId": image_id,
                "imageManifest": manifest,
            }
        }

    def _batch_delete_image(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        deleted, failures = [], []
        for image_id in call.params["imageIds"]:
            try:
                image = home.find(image_id)
            except Refuse as refusal:
                failures.append(
                    {"imageId": image_id, "failureCode": "ImageNotFound", "failureReason": refusal.message}
                )
                continue
            deleted.append({"imageDigest": image.digest} | image_id)
            if "imageTag" in image_id:
                self._untag(home, image_id["imageTag"])
            else:
                self._delete(home, image)
        return {"imageIds": deleted, "failures": failures}

    def _update_image_storage_class(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        image = home.find(call.params["imageId"])
        change = self.archive_image if call.params["targetStorageClass"] == "ARCHIVE" else self.restore_image
        change(home.registry_id, home.region, home.name, image.digest)
        return {"repositoryName": home.name, "imageStatus": image.status}

    def _describe_image_replication_status(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        image = home.find(call.params["imageId"])
        return {
            "repositoryName": home.name,
            "imageId": {"imageDigest": image.digest} | call.params["imageId"],
            "replicationStatuses": image.statuses(self.clock()),
        }

    def _list_replication_backfills(self, call: Call) -> dict[str, Any]:
        registry = self._registry(call.registry_id, call.kind.region)
        rows, token = _page(
            call,
            list(enumerate(registry.backfills)),
            lambda row: row[0],
            default=DEFAULT_BACKFILL_PAGE,
            most=BACKFILL_PAGE_SIZE,
        )
        return {"registryId": registry.registry_id, "backfills": [row for _, row in rows]} | token

    _OPERATIONS: Mapping[str, Callable[[ECR, Call], dict[str, Any]]] = {
        "BatchDeleteImage": _batch_delete_image,
        "CreateRepository": _create_repository,
        "DeleteRepository": _delete_repository,
        "DescribeImageReplicationStatus": _describe_image_replication_status,
        "DescribeImages": _describe_images,
        "DescribeRegistry": _describe_registry,
        "DescribeRepositories": _describe_repositories,
        "GetRegistryPolicy": _get_registry_policy,
        "ListImages": _list_images,
        "ListReplicationBackfills": _list_replication_backfills,
        "PutImage": _put_image,
        "PutImageScanningConfiguration": _put_setting,
        "PutImageTagMutability": _put_setting,
        "PutReplicationConfiguration": _put_replication_configuration,
        "UpdateImageStorageClass": _update_image_storage_class,
    }
