"""The backfills of one registry, with which AWS copies what was pushed before a rule existed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.access import Access
from exporter.polling.calls import Job
from exporter.polling.context import Context
from exporter.polling.optional import OptionalListing
from exporter.polling.rate_limit import Operation
from exporter.replication.model import Backfill, BackfillStatus, Destination, Page

#: Seconds between two listings: usually, and while a backfill runs.
INTERVAL = 300.0
RUNNING_INTERVAL = 60.0
#: Seconds for which a backfill that ended is shown. AWS lists it for 90 days.
SHOWN_AFTER_END = 86_400.0


class BackfillsPoller(OptionalListing[Backfill]):
    """Lists the backfills, and logs those that begin and end."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, Job(Operation.BACKFILLS), "ecr:ListReplicationBackfills")
        #: Whether each backfill ended, by id, as the log has it; None before the first listing.
        self._logged: dict[object, bool] | None = None

    def configure(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses."""
        self.choice.configure(accesses)

    def page(self, client: EcrClient, token: str | None) -> Page[Backfill]:
        return client.backfills(token)

    def listed(self, items: Sequence[Backfill]) -> float:
        """Take a complete listing; the seconds until the next one."""
        recent = self._recent(items)
        with self._store.lock:
            self._registry.backfills = _newest(items, among=recent)
            self._registry.backfills_at = self._clock.monotonic()
        self._log(recent)
        wait = INTERVAL if all(backfill.ended for backfill in recent) else RUNNING_INTERVAL
        # What is shown is confirmed before it is too old.
        return min(wait, self._pacing.settings.stale_after / 2)

    def warn_of_refusal(self, error: ECRError) -> None:
        self._context.warned("backfills_not_listed", reason=error.reason, error=str(error))

    def _recent(self, backfills: Iterable[Backfill]) -> list[Backfill]:
        """Those that run, that ended a short time ago, or whose end AWS does not report."""
        oldest = self._clock.time() - SHOWN_AFTER_END
        return [b for b in backfills if not b.ended or b.ended_at is None or b.ended_at >= oldest]

    def _log(self, backfills: Iterable[Backfill]) -> None:
        """Log what began and ended since the last listing. At the first one, log what runs."""
        before = self._logged
        self._logged = {}
        for backfill in backfills:
            key = backfill.id or backfill.destination
            self._logged[key] = backfill.ended
            if not backfill.ended and key not in (before or {}):
                self._context.noted(
                    "backfill_started",
                    backfill=backfill.id,
                    destination=_place(backfill),
                    status=backfill.status,
                )
            elif backfill.ended and before is not None and not before.get(key):
                self._log_end(backfill)

    def _log_end(self, backfill: Backfill) -> None:
        images = dict(backfill.images)
        completed, failed = images.get("completed"), images.get("failed")
        if backfill.status == BackfillStatus.FAILED or failed:
            self._context.warned(
                "backfill_failed",
                backfill=backfill.id,
                destination=_place(backfill),
                status=backfill.status,
                completed=completed,
                failed=failed,
                failure_codes=", ".join(backfill.failure_codes),
            )
        else:
            self._context.noted(
                "backfill_ended",
                backfill=backfill.id,
                destination=_place(backfill),
                status=backfill.status,
                completed=completed,
            )


def _newest(backfills: Iterable[Backfill], *, among: Iterable[Backfill]) -> tuple[Backfill, ...]:
    """The newest backfill to each destination, in the order of destinations, if it is among these."""
    newest: dict[Destination, Backfill] = {}
    for backfill in sorted(backfills, key=lambda b: (b.started_at or 0.0, not b.ended)):
        newest[backfill.destination] = backfill
    shown = set(among)
    return tuple(found for _, found in sorted(newest.items()) if found in shown)


def _place(backfill: Backfill) -> str:
    return f"{backfill.destination.registry_id}/{backfill.destination.region}"
