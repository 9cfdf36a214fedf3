"""Makes the clients of all registries. They share one session, one deadline and one observer of calls."""

from __future__ import annotations

from botocore.loaders import create_loader

from exporter.aws import sqs
from exporter.aws.ecr import BotoEcrClient
from exporter.aws.session import Access, SharedSession
from exporter.aws.sqs import BotoQueueClient
from exporter.config.settings import RegistrySettings
from exporter.config.validators import queue_region
from exporter.replication.model import Source


class AwsConnector(SharedSession):
    """Connects to AWS with the credentials and the Region that boto3 finds."""

    def ecr(self, settings: RegistrySettings, *, connections: int) -> BotoEcrClient:
        """A client of one registry. `connections` is how many threads call it at once."""
        source = Source(settings.account, settings.region or self.region or "")
        return BotoEcrClient(Access(self, settings, source=source, connections=connections), settings)

    def queue(self, settings: RegistrySettings, url: str) -> BotoQueueClient:
        """A client of the queue with this URL, with the credentials of the entry. For one thread."""
        region = queue_region(url) or settings.region or self.region or ""
        source, endpoints = Source(sqs.account_of(url), region), {"sqs": sqs.endpoint_of(url)}
        access = Access(self, settings, source=source, connections=1, endpoints=endpoints)
        return BotoQueueClient(access, url)


def known_regions() -> frozenset[str]:
    """The Regions of all partitions.

    `get_available_regions("ecr")` is not used: it lacks sa-west-1 and me-west-1 (botocore 1.44.5).
    """
    return frozenset(_partitions())


def partition_of(region: str) -> str:
    """The partition of a Region, for ARNs; "aws" for a Region that botocore does not know."""
    return _partitions().get(region, "aws")


def _partitions() -> dict[str, str]:
    """The partition of each Region in botocore's `partitions.json`."""
    partitions = create_loader().load_data("partitions")["partitions"]
    return {region: partition["id"] for partition in partitions for region in partition["regions"]}
