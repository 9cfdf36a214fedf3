"""One source registry: what is asked next, and which of its pollers takes each answer.

No threads and no waiting here. The poller takes a call from `next_call`, has it made, and hands the result
to `answered` or `failed`, all on its loop thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import Settings
from exporter.polling.access import Access, Group
from exporter.polling.backfills import BackfillsPoller
from exporter.polling.calls import LOST_AFTER, Call, Job, call_lost, unusable
from exporter.polling.context import Asker, Context, Shared, requested_pause
from exporter.polling.coverage import Coverage
from exporter.polling.rate_limit import Operation
from exporter.polling.reach import Reach
from exporter.polling.repositories import RepositoriesPoller
from exporter.polling.rounds import TargetRounds
from exporter.polling.rules import AccountPoller, OnAccount, RulesPoller
from exporter.replication.model import Reason
from exporter.replication.targets import Targets

#: All that says how long an answer is good for, and when the next question is due.
_INTERVALS = attrgetter(
    "discovery_interval", "pending_interval", "failed_interval", "settled_interval", "stale_after"
)
#: Seconds until a call about the whole registry that was throttled is made again.
THROTTLED_PAUSE = 1.0


class RegistryPoller:
    """Keeps the facts of one registry."""

    def __init__(self, shared: Shared, *, group: Group, settings: Settings, on_account: OnAccount) -> None:
        self._shared = shared
        self._context = context = Context(shared, source=group.source, settings=settings)
        self.facts = context.facts
        self.pacing = context.pacing
        self._reach = Reach(context)
        self._rounds = TargetRounds(context)
        self._coverage = Coverage(context)
        self._repositories = RepositoriesPoller(context, self._rounds)
        self._account = AccountPoller(context, begin=self._begin, on_account=on_account)
        self._rules = RulesPoller(
            context, account=self._account, repositories=self._repositories.pollers, begin=self._begin
        )
        self._backfills = BackfillsPoller(context)
        self._configured: tuple[Settings, Group] | None = None

    # -- configuration -----------------------------------------------------------------------

    def configure(self, settings: Settings, group: Group, connect: Callable[[Access], EcrClient]) -> None:
        """Take a configuration, the first or another. What is known of what stays is kept."""
        if self._configured == (settings, group):
            return
        before, self._configured = self._configured, (settings, group)
        context, source = self._context, group.source
        context.rename(group.name)
        self.pacing.configure(settings)
        with self._shared.store.lock:
            if self.facts.source != source:
                self._shared.store.changed()
                self.facts.source = source
        # All targets are this shard's while the account is not known.
        targets = Targets(
            group.targets(settings.targets),
            ours=lambda name: not source.registry_id or self._shared.shard.owns(source, name),
        )
        accesses = context.clients.keys()
        context.clients = {access: connect(access) for access in group.accesses}
        for each in (self._rules, self._account, self._backfills):
            each.configure(group.accesses)
        self._repositories.configure(group, targets)
        # Another access may be able to read rules that none could read.
        if before is None or accesses != context.clients.keys():
            self._rules.ask()
        if before and _INTERVALS(before[0]) != _INTERVALS(settings):
            for repository in self._repositories.pollers.values():
                repository.intervals_changed()
        if self.facts.begun:
            self._repositories.begin()

    def has_access(self, accesses: Iterable[Access]) -> bool:
        """Whether it is reached with one of these."""
        return any(access in self._context.clients for access in accesses)

    def admit(self) -> None:
        """Take that another number of images fits under `max_images`."""
        for repository in self._repositories.pollers.values():
            repository.admit()

    def reloaded(self) -> None:
        """Take that the configuration was loaded again, even if it is the same."""
        self._backfills.ask_if_refused()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        self._shared.journal.forget(self._context.name)
        self._context.clients = {}
        self._repositories.retire()

    def _begin(self) -> None:
        if not self.facts.begun:
            self._repositories.begin()
            self._backfills.ask()

    # -- calls -------------------------------------------------------------------------------

    def next_call(self) -> Call | float:
        """A call to make now, in any thread; or the monotonic time at which there may be one."""
        job = self.pacing.take(self._context.in_flight)
        if not isinstance(job, Job):
            return job
        asker = self._asker(job)
        if asker is None:
            raise AssertionError(f"{job} is due, and nothing asks for it")
        access = asker.choice.access
        make = asker.question(job, self._context.clients[access])
        call = Call(job, access, self._shared.clock.monotonic(), make)
        self._context.in_flight[job] = call
        return call

    def answered(self, call: Call, answer: Any) -> None:
        """Take an answer. What cannot be understood counts as a failed call."""
        if not self._came_back(call):
            return
        self._reach.answered(call)
        if self.facts.heard_at == float("inf"):
            with self._shared.store.lock:
                self.facts.heard_at = self._shared.clock.monotonic()
        asker = self._asker(call.job)
        if asker is None:
            return  # the repository is gone
        asker.choice.worked()
        try:
            asker.answered(call, answer)
        except ECRError as error:
            asker.failed(call, error)
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            asker.failed(call, unusable(error))

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. What is known is kept, and the job is booked again."""
        if not self._came_back(call):
            return
        job, dealt_with = call.job, self._reach.failed(call, error)
        asker = self._asker(job)
        if asker is None:
            return  # the repository is gone
        refused = error.reason is Reason.ACCESS_DENIED or error.everything
        if dealt_with:
            pause = requested_pause(error)
            due = self.pacing.later(THROTTLED_PAUSE) if not job.repository else 0.0
            asker.ask_again(job, due=max(due, self._shared.clock.monotonic() + pause))
            self.pacing.probe_again(job)
        elif refused and asker.choice.refused(call.access):
            asker.ask_again(job)
            self.pacing.probe_again(job)
        elif job.operation is Operation.IMAGES and error.reason is Reason.REPOSITORY_NOT_FOUND:
            if not self._repositories.gone(job.repository):
                asker.failed(call, error)
        else:
            asker.failed(call, error)

    def end_lost_calls(self) -> None:
        """Take that calls failed which are in flight for LOST_AFTER."""
        sent_before = self._shared.clock.monotonic() - LOST_AFTER
        # They are in the order in which they were sent.
        while (call := next(iter(self._context.in_flight.values()), None)) and call.sent_at <= sent_before:
            self.failed(call, call_lost())

    def record_targets(self) -> float:
        """Record what the last answers mean for targets and repositories; when to do so again (monotonic)."""
        return min(self._rounds.record(), self._coverage.record())

    def _came_back(self, call: Call) -> bool:
        """Stop to wait for a call; False if it was lost, so that it counted already."""
        if self._context.in_flight.get(call.job) is not call:
            return False
        del self._context.in_flight[call.job]
        return True

    def _asker(self, job: Job) -> Asker | None:
        """What asks for a job and takes the answer; None if the repository is polled no longer."""
        if job.repository:
            repository = self._repositories.pollers.get(job.repository)
            return repository.statuses if repository and job.operation is Operation.STATUS else repository
        return {
            Operation.REPOSITORIES: self._repositories,
            Operation.ACCOUNT: self._account,
            Operation.BACKFILLS: self._backfills,
        }.get(job.operation, self._rules)
