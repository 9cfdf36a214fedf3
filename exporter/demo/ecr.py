"""A simulated ECR: registries in memory, with the pages, limits and errors of the real API.

moto's ECR is not used. It has no DescribeImageReplicationStatus, pages or limits, and its look-ups are slow.
"""

from __future__ import annotations

import base64
import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from exporter.replication.model import BACKFILL_PAGE_SIZE, LOOKUP_SIZE, PAGE_SIZE, Destination

#: Seconds from a push until a destination that refuses replicas reports FAILED.
DENIED_AFTER = 2.0
#: The failure code that it reports.
DENIED = "DESTINATION_REGISTRY_ACCESS_DENIED"
#: ECR's pages when maxResults is not given (botocore service model).
DEFAULT_PAGE = 100
DEFAULT_BACKFILL_PAGE = 25

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

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


class Refuse(Exception):  # noqa: N818 - tests also pass it around as a fault
    """An error answer of AWS."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message


def digest_of(content: bytes) -> str:
    """The digest of the content, as in a registry."""
    return "sha256:" + sha256(content).hexdigest()


def _invalid(message: str) -> Refuse:
    return Refuse(400, "InvalidParameterException", message)


class _Copy(NamedTuple):
    destination: Destination
    done_at: float
    failure_code: str | None

    def status(self, now: float) -> dict[str, str]:
        place = {"region": self.destination.region, "registryId": self.destination.registry_id}
        if now < self.done_at:
            return place | {"status": "IN_PROGRESS"}
        if self.failure_code:
            return place | {"status": "FAILED", "failureCode": self.failure_code}
        return place | {"status": "COMPLETE"}


@dataclass(slots=True)
class _Image:
    #: Number of the push in the registry. It gives the order of listings and the position of page tokens.
    serial: int
    digest: str
    pushed_at: float
    copies: tuple[_Copy, ...]
    media_type: str = _MANIFEST
    tags: list[str] = field(default_factory=list)
    pinned: Any = None

    def statuses(self, now: float) -> Any:
        return [copy.status(now) for copy in self.copies] if self.pinned is None else self.pinned


@dataclass(slots=True)
class _Repository:
    registry_id: str
    region: str
    name: str
    created_at: float
    images: dict[str, _Image] = field(default_factory=dict)
    tags: dict[str, _Image] = field(default_factory=dict)

    def find(self, image_id: Mapping[str, str]) -> _Image:
        """The image with the tag, the digest or both. Raises Refuse if there is none."""
        digest, tag = image_id.get("imageDigest"), image_id.get("imageTag")
        image = self.images.get(digest) if digest else self.tags.get(tag or "")
        if image is None or (tag and tag not in image.tags):
            raise Refuse(400, "ImageNotFoundException", f"{self.name} has no image {dict(image_id)}")
        return image

    def name_image(self, tag: str, image: _Image) -> None:
        """Tag the image. The image that had the tag before stays without it, as in ECR."""
        if tag in self.tags:
            self.tags[tag].tags.remove(tag)
        self.tags[tag] = image
        image.tags.append(tag)

    def remove(self, image: _Image) -> None:
        del self.images[image.digest]
        for tag in image.tags:
            del self.tags[tag]

    def untag(self, tag: str) -> None:
        """Remove a tag. An image without tags is deleted, as BatchDeleteImage does."""
        image = self.find({"imageTag": tag})
        if image.tags == [tag]:
            self.remove(image)
        else:
            image.tags.remove(tag)
            del self.tags[tag]

    def row(self) -> dict[str, Any]:
        return {
            "repositoryArn": f"arn:aws:ecr:{self.region}:{self.registry_id}:repository/{self.name}",
            "registryId": self.registry_id,
            "repositoryName": self.name,
            "repositoryUri": f"{self.registry_id}.dkr.ecr.{self.region}.amazonaws.com/{self.name}",
            "createdAt": self.created_at,
            "imageTagMutability": "MUTABLE",
        }

    def image_row(self, image: _Image) -> dict[str, Any]:
        return {
            "registryId": self.registry_id,
            "repositoryName": self.name,
            "imageDigest": image.digest,
            "imageSizeInBytes": 50_000_000,
            "imagePushedAt": image.pushed_at,
            "imageManifestMediaType": image.media_type,
            "artifactMediaType": "application/vnd.oci.image.config.v1+json",
            "imageStatus": "ACTIVE",
        } | ({"imageTags": list(image.tags)} if image.tags else {})


@dataclass(slots=True)
class _Registry:
    registry_id: str
    region: str
    rules: list[Any] = field(default_factory=list)
    backfills: list[Any] = field(default_factory=list)
    repositories: dict[str, _Repository] = field(default_factory=dict)
    pushes: int = 0

    def repository(self, name: str) -> _Repository:
        """The repository with the name. Raises Refuse if there is none."""
        if name not in self.repositories:
            raise Refuse(
                400, "RepositoryNotFoundException", f"registry {self.registry_id} has no repository {name}"
            )
        return self.repositories[name]

    def destinations(self, repository: str) -> list[Destination]:
        found = (
            Destination(to["region"], to["registryId"])
            for rule in self.rules
            if _covers(rule, repository)
            for to in rule["destinations"]
        )
        return list(dict.fromkeys(found))


def _covers(rule: Mapping[str, Any], repository: str) -> bool:
    filters = rule.get("repositoryFilters") or []
    return not filters or repository.startswith(tuple(each["filter"] for each in filters))


def _wanted(tag_status: str) -> Callable[[_Image], bool]:
    if tag_status == "ANY":
        return lambda _: True
    return lambda image: bool(image.tags) == (tag_status == "TAGGED")


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


class ECR:
    """The registries of all accounts, in memory. All methods are for any thread.

    A push fixes the replication of the image: the rules at that time give the destinations, and `denied` says
    which of them refuse. After that the state depends only on the clock. Destinations hold no replicas.
    The methods that change the world raise Refuse like the API if something does not exist.
    """

    def __init__(self, *, clock: Callable[[], float], delay: Delay) -> None:
        self.clock = clock
        self.delay = delay
        #: Registries whose policy refuses replicas. A change affects later pushes only.
        self.denied: set[Destination] = set()
        self._lock = threading.RLock()
        self._registries: dict[tuple[str, str], _Registry] = {}

    # -- changes of the world --

    def create_repository(self, registry_id: str, region: str, name: str) -> None:
        with self._lock:
            repositories = self._registry(registry_id, region).repositories
            if name in repositories:
                raise Refuse(400, "RepositoryAlreadyExistsException", f"{name} exists already")
            repositories[name] = _Repository(registry_id, region, name, self.clock())

    def delete_repository(self, registry_id: str, region: str, name: str) -> None:
        with self._lock:
            self._repository(registry_id, region, name)
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

        A tag that moves leaves its old image in the repository, even without tags.
        """
        with self._lock:
            home = self._repository(registry_id, region, repository)
            image = home.images.get(digest or "")
            if image is None:
                at = self.clock() if pushed_at is None else pushed_at
                image = self._arrival(home, digest, at, delay or self.delay)
                home.images[image.digest] = image
            if tag is not None and tag not in image.tags:
                home.name_image(tag, image)
            return image.digest

    def delete_image(self, registry_id: str, region: str, repository: str, digest: str) -> None:
        with self._lock:
            home = self._repository(registry_id, region, repository)
            home.remove(home.find({"imageDigest": digest}))

    def untag(self, registry_id: str, region: str, repository: str, tag: str) -> None:
        """Remove a tag. An image without tags is deleted, as BatchDeleteImage does."""
        with self._lock:
            self._repository(registry_id, region, repository).untag(tag)

    def set_rules(self, registry_id: str, region: str, rules: Sequence[Any]) -> None:
        """Replace the rules, in the format of AWS: {"destinations": [...], "repositoryFilters": [...]}."""
        with self._lock:
            self._registry(registry_id, region).rules = list(rules)

    def set_backfills(self, registry_id: str, region: str, backfills: Sequence[Any]) -> None:
        """Replace the backfills, in the format of AWS. Their order is that of the listing."""
        with self._lock:
            self._registry(registry_id, region).backfills = list(backfills)

    def set_status(self, registry_id: str, region: str, repository: str, digest: str, statuses: Any) -> None:
        """Report this JSON as replicationStatuses of the image; with None the real statuses again."""
        with self._lock:
            self._repository(registry_id, region, repository).find({"imageDigest": digest}).pinned = statuses

    def _registry(self, registry_id: str, region: str) -> _Registry:
        return self._registries.setdefault((registry_id, region), _Registry(registry_id, region))

    def _repository(self, registry_id: str, region: str, name: str) -> _Repository:
        return self._registry(registry_id, region).repository(name)

    def _arrival(self, home: _Repository, digest: str | None, at: float, delay: Delay) -> _Image:
        registry = self._registry(home.registry_id, home.region)
        registry.pushes += 1
        name = f"{home.registry_id}/{home.region}/{home.name}/{registry.pushes}"
        copies = tuple(self._copy(to, at, delay) for to in registry.destinations(home.name))
        return _Image(registry.pushes, digest or digest_of(name.encode()), at, copies)

    def _copy(self, destination: Destination, at: float, delay: Delay) -> _Copy:
        if destination in self.denied:
            return _Copy(destination, at + DENIED_AFTER, DENIED)
        return _Copy(destination, at + delay(destination), None)

    # -- the API --

    def serve(self, call: Call) -> dict[str, Any]:
        """The answer to an ECR call. Raises Refuse."""
        operation = self._OPERATIONS.get(call.operation)
        if operation is None:
            raise Refuse(400, "UnknownOperationException", f"the simulated ECR has no {call.operation}")
        with self._lock:
            return operation(self, call)

    def _home(self, call: Call) -> _Repository:
        return self._repository(call.registry_id, call.kind.region, call.params["repositoryName"])

    def _describe_registry(self, call: Call) -> dict[str, Any]:
        registry = self._registry(call.kind.account, call.kind.region)
        return {"registryId": registry.registry_id, "replicationConfiguration": {"rules": registry.rules}}

    def _put_replication_configuration(self, call: Call) -> dict[str, Any]:
        configuration = call.params["replicationConfiguration"]
        self.set_rules(call.kind.account, call.kind.region, configuration["rules"])
        return {"replicationConfiguration": configuration}

    def _create_repository(self, call: Call) -> dict[str, Any]:
        self.create_repository(call.registry_id, call.kind.region, call.params["repositoryName"])
        return {"repository": self._home(call).row()}

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

    def _listed(self, home: _Repository, call: Call) -> list[_Image]:
        wanted = _wanted(call.params.get("filter", {}).get("tagStatus", "ANY"))
        return [image for image in home.images.values() if wanted(image)]

    def _describe_images(self, call: Call) -> dict[str, Any]:
        home = self._home(call)
        if image_ids := call.params.get("imageIds"):
            images: Sequence[_Image] = self._found(home, image_ids, call)
            token: dict[str, str] = {}
        else:
            images, token = _page(call, self._listed(home, call), lambda image: image.serial)
        return {"imageDetails": [home.image_row(image) for image in images]} | token

    def _found(self, home: _Repository, image_ids: Sequence[Mapping[str, str]], call: Call) -> list[_Image]:
        """Each image once, even if several of its names are given. One unknown name fails the call."""
        if len(image_ids) > LOOKUP_SIZE:
            raise _invalid(f"{len(image_ids)} imageIds; the limit is {LOOKUP_SIZE}")
        if call.params.keys() & {"maxResults", "nextToken"}:
            raise _invalid("maxResults and nextToken are not allowed with imageIds")
        images = [home.find(image_id) for image_id in image_ids]
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
        home.images[digest].media_type = call.params.get("imageManifestMediaType", _MANIFEST)
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
                home.untag(image_id["imageTag"])
            else:
                home.remove(image)
        return {"imageIds": deleted, "failures": failures}

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
        "ListImages": _list_images,
        "ListReplicationBackfills": _list_replication_backfills,
        "PutImage": _put_image,
        "PutReplicationConfiguration": _put_replication_configuration,
    }
