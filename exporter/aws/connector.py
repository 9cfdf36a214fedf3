"""Makes the clients of all registries. They share one session, one deadline and one observer of calls."""

from __future__ import annotations

from exporter.aws.ecr import BotoEcrClient, EcrClient, static_registry_id
from exporter.aws.session import Access, SharedSession
from exporter.config.settings import RegistrySettings
from exporter.replication.model import Source


class AwsConnector(SharedSession):
    """Connects to AWS with the credentials and the Region that boto3 finds."""

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
        """A client of one registry. `connections` is how many threads call it at once."""
        source = Source(static_registry_id(settings), settings.region or self.region or "")
        return BotoEcrClient(Access(self, settings, source=source, connections=connections), settings)
