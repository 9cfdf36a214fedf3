"""Events of the registry of most tests, and what the simulated AWS does not send."""

from __future__ import annotations

from functools import partial
from typing import Any

from exporter.demo import events
from exporter.replication.model import Destination
from support.fakes import HOME

image_action = partial(events.image_action, account=HOME.registry_id, region=HOME.region)
replication_action = partial(events.replication_action, account=HOME.registry_id, region=HOME.region)


def failed_call(repository: str, to: Destination, *, at: float) -> dict[str, Any]:
    """An event of CloudTrail about a call of replication that failed."""
    detail = {
        "eventSource": "ecr.amazonaws.com",
        "eventName": "ReplicateImage",
        "errorCode": "AccessDenied",
        "requestParameters": {"repositoryName": repository},
    }
    return events.event("AWS API Call via CloudTrail", to.registry_id, to.region, at, detail)
