"""Calls to ECR: one method of `EcrClient` is one call, and its answer comes back as our nouns.

The caller counts calls against a budget, so a method never makes two, and never retries. Listings return one
page at a time. All methods are called from worker threads, and may be called from several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from exporter.aws import parsing
from exporter.aws.errors import Classified, ECRError
from exporter.aws.session import Access
from exporter.config.settings import RegistrySettings
from exporter.replication.model import (
    BACKFILL_PAGE_SIZE,
    PAGE_SIZE,
    Backfill,
    Image,
    Name,
    Page,
    Registry,
    Replication,
    Repository,
    Source,
)

T = TypeVar("T")
#: Which images a listing has.
TagStatus: TypeAlias = Literal["TAGGED", "UNTAGGED", "ANY"]
#: Without it, ECR lists active images alone (botocore service model).
_ARCHIVED = {"imageStatus": "ANY"}

#: Every operation of ECR that the exporter calls; docs/iam-policy.json grants these, and what docs/iam.md
#: names. The command `check` calls GetRegistryPolicy too.
OPERATIONS = (
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeImages",
    "DescribeImageReplicationStatus",
    "ListReplicationBackfills",
)


class EcrClient(Protocol):
    """What the exporter asks of ECR. Every method raises ECRError and nothing else."""

    def account(self) -> str:
        """The account id of the credentials."""

    def registry(self) -> Registry:
        """The registry of the credentials themselves, whatever `registry_id` says, and its rules."""

    def repositories(self, token: str | None) -> Page[Repository]:
        """One page of the repositories."""

    def images(
        self, repository: str, token: str | None, *, tags: TagStatus = "TAGGED", archived: bool = False
    ) -> Page[Image]:
        """One page of the images with these tags: active ones, and those in the archive if `archived`."""

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        """The images of at most 100 names, `archived` as for `images`.

        IMAGE_NOT_FOUND if a name does not exist; or it is left out.
        """

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        """What ECR reports of the image's replication, one entry for each destination."""

    def backfills(self, token: str | None) -> Page[Backfill]:
        """One page of the backfills from the registry. Those that ended are listed for 90 days."""


class OwnRegistryClient(EcrClient, Protocol):
    """What the command `check` asks too: about the credentials and the registry of their own account."""

    def caller(self) -> str:
        """The ARN of the credentials."""

    def registry_policy(self) -> str:
        """The policy of the registry as JSON; "" if it has none. It has no other input than the caller."""


class BotoEcrClient:
    """OwnRegistryClient on boto3."""

    def __init__(self, access: Access, settings: RegistrySettings) -> None:
        self._access = access
        self._settings = settings

    def account(self) -> str:
        account = self._ask(parsing.account, "sts", "GetCallerIdentity")
        self._learn(account)
        return account

    def caller(self) -> str:
        return self._ask(parsing.caller, "sts", "GetCallerIdentity")

    def registry_policy(self) -> str:
        try:
            return self._ask(parsing.registry_policy, "ecr", "GetRegistryPolicy")
        except ECRError as error:
            if error.code == "RegistryPolicyNotFoundException":
                return ""
            raise

    def registry(self) -> Registry:
        registry = self._ask(parsing.registry, "ecr", "DescribeRegistry")
        self._learn(registry.registry_id)
        return registry

    def repositories(self, token: str | None) -> Page[Repository]:
        page = _page(token)
        return self._ask(parsing.repositories, "ecr", "DescribeRepositories", **page, **self._registry())

    def images(
        self, repository: str, token: str | None, *, tags: TagStatus = "TAGGED", archived: bool = False
    ) -> Page[Image]:
        which = {"tagStatus": tags} | (_ARCHIVED if archived else {})
        return self._ask(
            partial(parsing.images, now=self._access.clock()),
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            filter=which,
            **_page(token),
            **self._registry(),
        )

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        which = {"filter": _ARCHIVED} if archived else {}
        ids = [{"imageTag": n.tag} if n.tag else {"imageDigest": n.digest} for n in names]
        found = self._ask(
            partial(parsing.images, now=self._access.clock()),
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            imageIds=ids,
            **which,
            **self._registry(),
        )
        return found.items

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        return self._ask(
            partial(parsing.replications, repository=repository, digest=digest),
            "ecr",
            "DescribeImageReplicationStatus",
            repositoryName=repository,
            imageId={"imageDigest": digest},
            **self._registry(),
        )

    def backfills(self, token: str | None) -> Page[Backfill]:
        source = self._access.source.registry_id
        return self._ask(
            partial(parsing.backfills, registry_id=source, now=self._access.clock()),
            "ecr",
            "ListReplicationBackfills",
            **_page(token, BACKFILL_PAGE_SIZE),
            **self._registry(),
        )

    def _ask(self, read: Callable[[parsing.Row], T], service: str, operation: str, **parameters: Any) -> T:
        with self._access.long_answers.turn():
            answer = self._access.call(service, operation, **parameters)
            with Classified(f"{service}:{operation}"):
                return read(answer)

    def _registry(self) -> dict[str, str]:
        """The registry that is meant, once it is known.

        If the credentials change to those of another account, ECR refuses the call. Without a registry id it
        means the registry of the credentials (botocore service model).
        """
        known = self._access.source.registry_id
        return {"registryId": known} if known else {}

    def _learn(self, account: str) -> None:
        """Name the account in calls and in their metrics, once it is known."""
        if not self._settings.account:
            self._access.source = Source(account, self._access.source.region)


def _page(token: str | None, size: int = PAGE_SIZE) -> dict[str, Any]:
    return {"maxResults": size} | ({"nextToken": token} if token else {})
