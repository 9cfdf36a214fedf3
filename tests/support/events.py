"""Events as EventBridge sends them for ECR."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import Any

from exporter.replication.model import Destination

ACCOUNT = "111122223333"
REGION = "us-east-1"
_ids = count(1)


def image_action(
    action: str,
    repository: str,
    digest: str | None,
    *,
    at: float,
    tag: str | None = "v1",
    account: str = ACCOUNT,
    region: str = REGION,
) -> dict[str, Any]:
    """An event about an image. `at` is Unix time, of which an event has the whole seconds."""
    detail = {
        "action-type": action,
        "result": "SUCCESS",
        "repository-name": repository,
        "image-digest": digest,
        "image-tag": tag,
    }
    return _event("ECR Image Action", account, region, at, detail)


def replication_action(
    repository: str,
    digest: str,
    to: Destination,
    *,
    at: float,
    result: str = "SUCCESS",
    tag: str | None = "v1",
    account: str = ACCOUNT,
    region: str = REGION,
) -> dict[str, Any]:
    """An event about a copy from the registry of `account` and `region`."""
    detail = {
        "action-type": "REPLICATE",
        "result": result,
        "repository-name": repository,
        "image-digest": digest,
        "image-tag": tag,
        "source-account": account,
        "source-region": region,
    }
    return _event("ECR Replication Action", to.registry_id, to.region, at, detail)


def failed_call(repository: str, to: Destination, *, at: float) -> dict[str, Any]:
    """An event of CloudTrail about a call of replication that failed."""
    detail = {
        "eventSource": "ecr.amazonaws.com",
        "eventName": "ReplicateImage",
        "errorCode": "AccessDenied",
        "requestParameters": {"repositoryName": repository},
    }
    return _event("AWS API Call via CloudTrail", to.registry_id, to.region, at, detail)


def _event(kind: str, account: str, region: str, at: float, detail: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "0",
        "id": f"00000000-0000-4000-8000-{next(_ids):012}",
        "detail-type": kind,
        "source": "aws.ecr",
        "account": account,
        "time": datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": [],
        "detail": {key: value for key, value in detail.items() if value is not None},
    }
