"""The records of the simulated ECR: registries, repositories, images and copies under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from exporter.replication.model import Destination

#: The settings of a repository if its creator chooses none. Replication chooses none (ECR documentation).
DEFAULT_SETTINGS: Mapping[str, Any] = {
    "imageTagMutability": "MUTABLE",
    "imageScanningConfiguration": {"scanOnPush": False},
    "encryptionConfiguration": {"encryptionType": "AES256"},
}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Refuse(Exception):  # noqa: N818 - tests also pass it around as a fault
    """An error answer of AWS."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message


class Copy(NamedTuple):
    """The replication of one image to one destination."""

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
class Image:
    """An image in one repository. A copy is an image of its own, which ECR reports no replication for."""

    #: Number of the push in the registry. It gives the order of listings and the position of page tokens.
    serial: int
    digest: str
    pushed_at: float
    copies: tuple[Copy, ...] = ()
    #: Whether replication brought it. Such an image is never sent on.
    is_copy: bool = False
    media_type: str = MANIFEST
    tags: list[str] = field(default_factory=list)
    archived: bool = False
    activated_at: float | None = None
    pinned: Any = None

    def statuses(self, now: float) -> Any:
        return [copy.status(now) for copy in self.copies] if self.pinned is None else self.pinned

    def matches(self, tag_status: str, image_status: str) -> bool:
        """Whether a listing with these filters of AWS contains the image."""
        by_tag = tag_status == "ANY" or bool(self.tags) == (tag_status == "TAGGED")
        return by_tag and image_status in ("ANY", self.status)

    @property
    def status(self) -> str:
        return "ARCHIVED" if self.archived else "ACTIVE"


class Arrival(NamedTuple):
    """An image on its way to a destination, and the tag of the push. The first that is due sorts first."""

    at: float
    #: The number of the push, so that a tag never goes back to an earlier one.
    number: int
    destination: Destination
    tag: str | None
    source: Repository
    image: Image


@dataclass(slots=True)
class Repository:
    registry_id: str
    region: str
    name: str
    created_at: float
    settings: dict[str, Any] = field(default_factory=lambda: dict(DEFAULT_SETTINGS))
    images: dict[str, Image] = field(default_factory=dict)
    tags: dict[str, Image] = field(default_factory=dict)
    #: The number of the latest push or removal of each tag at the source that has come here.
    replicated: dict[str, int] = field(default_factory=dict)

    def find(self, image_id: Mapping[str, str], *, image_status: str = "ANY") -> Image:
        """The image with the tag, the digest or both. Raises Refuse if none has that status."""
        digest, tag = image_id.get("imageDigest"), image_id.get("imageTag")
        image = self.images.get(digest) if digest else self.tags.get(tag or "")
        if image is None or (tag and tag not in image.tags) or not image.matches("ANY", image_status):
            raise Refuse(400, "ImageNotFoundException", f"{self.name} has no image {dict(image_id)}")
        return image

    def protects(self, tag: str, digest: str | None) -> bool:
        """Whether the tag names an image other than `digest` and may not move."""
        named = self.tags.get(tag)
        immutable = self.settings["imageTagMutability"] == "IMMUTABLE"
        return immutable and named is not None and named.digest != digest

    def name_image(self, tag: str, image: Image) -> None:
        """Tag the image. The image that had the tag before stays without it, as in ECR."""
        if tag in self.tags:
            self.tags[tag].tags.remove(tag)
        self.tags[tag] = image
        image.tags.append(tag)

    def remove(self, image: Image) -> None:
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

    def receive(self, arrival: Arrival, serial: int) -> None:
        """Take a copy. An image that is here is restored and tagged. A protected tag stays where it is."""
        digest, tag = arrival.image.digest, arrival.tag
        image = self.images.get(digest)
        if image is None:
            image = Image(serial, digest, arrival.at, is_copy=True, media_type=arrival.image.media_type)
            self.images[digest] = image
        image.archived = False
        if tag is not None and self._is_newest(tag, arrival.number) and not self.protects(tag, digest):
            self.name_image(tag, image)

    def follow_untag(self, tag: str, digest: str, number: int) -> None:
        """Remove a tag because it was removed at the source."""
        if self._is_newest(tag, number) and tag in self.tags and self.tags[tag].digest == digest:
            self.untag(tag)

    def _is_newest(self, tag: str, number: int) -> bool:
        """Record a change of the tag at the source, unless a later one has come already."""
        newest = number > self.replicated.get(tag, 0)
        if newest:
            self.replicated[tag] = number
        return newest

    def row(self) -> dict[str, Any]:
        return {
            "repositoryArn": f"arn:aws:ecr:{self.region}:{self.registry_id}:repository/{self.name}",
            "registryId": self.registry_id,
            "repositoryName": self.name,
            "repositoryUri": f"{self.registry_id}.dkr.ecr.{self.region}.amazonaws.com/{self.name}",
            "createdAt": self.created_at,
        } | self.settings

    def image_row(self, image: Image) -> dict[str, Any]:
        optional = {"imageTags": list(image.tags), "lastActivatedAt": image.activated_at}
        return {
            "registryId": self.registry_id,
            "repositoryName": self.name,
            "imageDigest": image.digest,
            "imageSizeInBytes": 50_000_000,
            "imagePushedAt": image.pushed_at,
            "imageManifestMediaType": image.media_type,
            "artifactMediaType": "application/vnd.oci.image.config.v1+json",
            "imageStatus": image.status,
        } | {name: value for name, value in optional.items() if value}


@dataclass(slots=True)
class Registry:
    registry_id: str
    region: str
    rules: list[Any] = field(default_factory=list)
    #: The registry policy as JSON; "" without one. It decides nothing: `denied` says who refuses replicas.
    policy: str = ""
    backfills: list[Any] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    pushes: int = 0

    def repository(self, name: str) -> Repository:
        """The repository with the name. Raises Refuse if there is none."""
        if name not in self.repositories:
            raise Refuse(
                400, "RepositoryNotFoundException", f"registry {self.registry_id} has no repository {name}"
            )
        return self.repositories[name]

    def destinations(self, repository: str, *, only_mirrored: bool = False) -> list[Destination]:
        """Where the rules send the images of the repository, or only where they mirror its deletions."""
        found = (
            Destination(to["region"], to["registryId"])
            for rule in self.rules
            if _covers(rule, repository) and (not only_mirrored or _mirrors_deletions(rule))
            for to in rule["destinations"]
        )
        return list(dict.fromkeys(found))

    def receive(self, arrival: Arrival) -> None:
        """Take a copy, in a new repository with the default settings if there is none with the name."""
        name = arrival.source.name
        if name not in self.repositories:
            self.repositories[name] = Repository(self.registry_id, self.region, name, arrival.at)
        self.pushes += 1
        self.repositories[name].receive(arrival, self.pushes)


def _covers(rule: Mapping[str, Any], repository: str) -> bool:
    filters = rule.get("repositoryFilters") or []
    return not filters or repository.startswith(tuple(each["filter"] for each in filters))


def _mirrors_deletions(rule: Mapping[str, Any]) -> bool:
    return bool(rule.get("deleteReplication", {}).get("enabled"))
