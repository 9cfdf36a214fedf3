"""Events of ECR as EventBridge sends them (ECR documentation, "Amazon ECR events and EventBridge")."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from exporter.replication.model import Destination


def image_action(
    action: str,
    repository: str,
    digest: str | None,
    *,
    at: float,
    tag: str | None = "v1",
    account: str,
    region: str,
) -> dict[str, Any]:
    """An event about an image. `at` is Unix time, of which an event has the whole seconds."""
    detail = {
        "action-type": action,
        "result": "SUCCESS",
        "repository-name": repository,
        "image-digest": digest,
        "image-tag": tag,
    }
    return event("ECR Image Action", account, region, at, detail)


def replication_action(
    repository: str,
    digest: str,
    to: Destination,
    *,
    at: float,
    result: str = "SUCCESS",
    tag: str | None = "v1",
    account: str,
    region: str,
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
    return event("ECR Replication Action", to.registry_id, to.region, at, detail)


def event(kind: str, account: str, region: str, at: float, detail: dict[str, Any]) -> dict[str, Any]:
    """An event of EventBridge. What is None is left out of its detail."""
    return {
        "version": "0",
        "id": str(uuid4()),
        "detail-type": kind,
        "source": "aws.ecr",
        "account": account,
        "time": datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": [],
        "detail": {key: value for key, value in detail.items() if value is not None},
    }
