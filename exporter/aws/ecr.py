"""Calls to ECR: one method of `EcrClient` is one call, and its answer comes back as our nouns.

The caller counts calls against a budget, so a method never makes two, and never retries. Listings return one
page at a time. All methods are called from worker threads, and may be called from several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from exporter.aws import parsing
from exporter.aws.session import Access
from exporter.config.settings import RegistrySettings
from exporter.replication.model import PAGE_SIZE, Image, Name, Page, Registry, Replication, Source

#: Every operation of ECR that is ever called; docs/iam-policy.json grants these, and what docs/iam.md names.
OPERATIONS = (
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeImages",
    "DescribeImageReplicationStatus",
)


class EcrClient(Protocol):
    """What the exporter asks of ECR. Every method raises ECRError and nothing else."""

    def account(self) -> str:
        """The account id of the credentials."""

    def registry(self) -> Registry:
        """The registry of the credentials themselves, whatever `registry_id` says, and its rules."""

    def repositories(self, token: str | None) -> Page[str]:
        """One page of the names of the repositories."""

    def images(self, repository: str, token: str | None, *, untagged: bool) -> Page[Image]:
        """One page of the images; only tagged ones unless `untagged`."""

    def find(self, repository: str, names: Sequence[Name]) -> tuple[Image, ...]:
        """The images of at most 100 names. IMAGE_NOT_FOUND if a name does not exist; or it is left out."""

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        """What ECR reports of the image's replication, one entry for each destination."""


class BotoEcrClient:
    """EcrClient on boto3. `clock` is wall time in Unix seconds."""

    def __init__(self, access: Access, settings: RegistrySettings, *, clock: Callable[[], float]) -> None:
        self._access = access
        self._settings = settings
        self._clock = clock

    def account(self) -> str:
        account = parsing.account(self._access.call("sts", "GetCallerIdentity"))
        self._learn(account)
        return account

    def registry(self) -> Registry:
        registry = parsing.registry(self._access.call("ecr", "DescribeRegistry"))
        self._learn(registry.registry_id)
        return registry

    def repositories(self, token: str | None) -> Page[str]:
        return parsing.repositories(self._access.call("ecr", "DescribeRepositories", **self._page(token)))

    def images(self, repository: str, token: str | None, *, untagged: bool) -> Page[Image]:
        answer = self._access.call(
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            filter={"tagStatus": "ANY" if untagged else "TAGGED"},
            **self._page(token),
        )
        return parsing.images(answer, now=self._clock())

    def find(self, repository: str, names: Sequence[Name]) -> tuple[Image, ...]:
        answer = self._access.call(
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            imageIds=[{"imageTag": n.tag} if n.tag else {"imageDigest": n.digest} for n in names],
            **self._registry_id(),
        )
        return parsing.found(answer, now=self._clock())

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        answer = self._access.call(
            "ecr",
            "DescribeImageReplicationStatus",
            repositoryName=repository,
            imageId={"imageDigest": digest},
            **self._registry_id(),
        )
        return parsing.replications(answer, repository=repository, digest=digest)

    def _learn(self, account: str) -> None:
        """Count calls under the account once it is known, as all metrics do."""
        if not static_registry_id(self._settings):
            self._access.source = Source(account, self._access.source.region)

    def _registry_id(self) -> dict[str, Any]:
        return {"registryId": self._settings.registry_id} if self._settings.registry_id else {}

    def _page(self, token: str | None) -> dict[str, Any]:
        where = {"nextToken": token} if token else {}
        return {"maxResults": PAGE_SIZE} | where | self._registry_id()


def static_registry_id(settings: RegistrySettings) -> str:
    """The account id of the registry as the configuration alone gives it; "" if it does not."""
    if settings.registry_id:
        return settings.registry_id
    return settings.role_arn.split(":")[4] if settings.role_arn else ""
