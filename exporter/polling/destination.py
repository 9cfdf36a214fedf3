"""A destination that is not watched itself: it has a budget, failures and workers of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from exporter.aws.ecr import EcrClient
from exporter.config.settings import Settings
from exporter.polling.access import Access
from exporter.polling.calls import Job
from exporter.polling.context import Asker, Context, Shared
from exporter.polling.dispatcher import Dispatcher
from exporter.polling.rate_limit import Operation
from exporter.polling.replicas import Replicas
from exporter.polling.repository_settings import SettingsPoller
from exporter.replication.model import Source


class DestinationPoller(Dispatcher):
    """Looks at the repositories of one destination."""

    #: Most calls list pages, and a page takes more memory than many status calls.
    most_calls = 4

    def __init__(self, shared: Shared, *, source: Source, settings: Settings) -> None:
        super().__init__(Context(shared, source=source, settings=settings))
        self._context.rename(f"{source.registry_id}/{source.region}")
        self._settings = SettingsPoller(self._context)
        self.replicas = Replicas(self._context, self._settings)

    def configure(
        self,
        settings: Settings,
        repositories: Collection[str],
        accesses: Iterable[Access],
        connect: Callable[[Access], EcrClient],
    ) -> None:
        """Look at these repositories and no others, with these accesses."""
        self.pacing.configure(settings)
        self._context.clients = {access: connect(access) for access in accesses}
        self._settings.choice.configure(self._context.clients)
        self.replicas.configure(repositories, self._context.clients)

    def record(self) -> float:
        return min(self.replicas.record(), self._settings.record({}))

    def reloaded(self) -> None:
        self._settings.ask_if_refused()

    def retire(self) -> None:
        self._context.shared.journal.forget(self._context.name)
        self.replicas.retire()

    def _asker(self, job: Job) -> Asker | None:
        return (
            self._settings
            if job.operation is Operation.SETTINGS
            else self.replicas.pollers.get(job.repository)
        )
