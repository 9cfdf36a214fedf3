"""Whose registry it is, and its replication rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exporter.aws.errors import ECRError
from exporter.polling.access import Access, Choice
from exporter.polling.calls import Call, Job, Kind
from exporter.polling.failures import Parts
from exporter.polling.repository import RepositoryPoller
from exporter.replication.model import FailureScope, Reason, Registry
from exporter.replication.store import Store

_REGISTRY = Job(Kind.REGISTRY)
_ACCOUNT = Job(Kind.ACCOUNT)

#: Takes whose account an access has. It may rename or retire the poller that calls it.
OnAccount = Callable[[Access, str], None]


class RulesPoller:
    """Keeps the rules of one registry, and learns its account where the configuration does not name it."""

    def __init__(
        self,
        parts: Parts,
        *,
        store: Store,
        repositories: Mapping[str, RepositoryPoller],
        begin: Callable[[], None],
        on_account: OnAccount,
    ) -> None:
        self._parts = parts
        self._facts = parts.facts
        self._pacing = parts.pacing
        self._store = store
        #: Told when the rules change.
        self._repositories = repositories
        #: Called when the account is known, and the rules are or cannot be read.
        self._begin = begin
        self._on_account = on_account
        self._choice = Choice(())

    def configure(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses. One to another account's registry cannot read its rules."""
        accesses = tuple(accesses)
        self._choice.configure([a for a in accesses if not a.registry_id] or accesses)

    def ask(self) -> None:
        """Read the rules now."""
        self._pacing.book(_REGISTRY)

    def call(self, job: Job) -> tuple[Access, Callable[[], Any]]:
        """How to make the call of a job, and with which access."""
        access = self._choice.access
        client = self._parts.clients.of(access)
        return access, client.registry if job.kind is Kind.REGISTRY else client.account

    def described(self, call: Call, registry: Registry) -> None:
        """Take the rules, and whose registry they are of."""
        self._choice.worked()
        self._parts.works(FailureScope("rules"))
        foreign = bool(call.access.registry_id)
        if not (foreign or self._has_account(call, registry.registry_id)):
            return
        source, intervals = self._facts.source, self._pacing.intervals
        if not source.registry_id:
            self._pacing.book(_ACCOUNT)
            self._pacing.book(_REGISTRY, due=self._pacing.later(intervals.discovery))
            return
        if foreign and registry.registry_id != source.registry_id:
            # These are the rules of the access's own registry, and say nothing of this one.
            self._pacing.book(_REGISTRY, due=self._pacing.later(intervals.settled))
        else:
            self._take_rules(call, registry)
            self._pacing.book(_REGISTRY, due=self._pacing.later(intervals.discovery))
        self._begin()

    def identified(self, call: Call, account: str) -> None:
        """Take whose account the access has; "" if AWS does not say."""
        self._parts.works(FailureScope("account"))
        if not account:
            self._pacing.book(_ACCOUNT, due=self._pacing.later(self._pacing.intervals.discovery))
        elif self._has_account(call, account):
            self._begin()

    def _has_account(self, call: Call, account: str) -> bool:
        """Take whose account the access has, "" if unknown; whether the access is still one of this registry.

        If another registry has that account, the access is moved there, and this registry may be retired.
        """
        source = self._facts.source
        if account not in ("", source.registry_id):
            self._parts.noted("registry_identified", registry_id=account, region=source.region)
            self._on_account(call.access, account)
        return call.access in self._parts.clients

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. Polling begins without rules if they cannot be read."""
        job, pacing = call.job, self._pacing
        denied = error.reason is Reason.ACCESS_DENIED
        if (denied or error.everything) and self._choice.refused(call.access):
            pacing.book(job)
            return
        if call.access.registry_id and denied:
            pacing.book(job, due=pacing.later(pacing.intervals.settled))
        else:
            scope = FailureScope("rules" if job.kind is Kind.REGISTRY else "account")
            pacing.book(job, due=self._parts.failures.fail(scope, error, self._facts.failures, call=call))
        with self._store.lock:
            # Rules that are too old to be believed count as changed when they can be read again.
            now = self._parts.clock.monotonic()
            self._facts.rules = self._facts.believed_rules(now, pacing.stale_after)
        if error.reason is Reason.UNAVAILABLE and not self._parts.failures.reported(FailureScope("rules")):
            return  # a single time-out; to begin without the rules would mean to ask for everything again
        if self._facts.source.registry_id:
            self._begin()
        elif job.kind is Kind.REGISTRY and error.reason is not Reason.UNAVAILABLE:
            pacing.book(_ACCOUNT)

    def _take_rules(self, call: Call, registry: Registry) -> None:
        before = self._facts.rules
        with self._store.lock:
            self._facts.rules = registry
            self._facts.rules_at = self._parts.clock.monotonic()
            self._facts.rules_time = self._parts.sent_time(call)
        if before != registry:
            changed = before is not None
            self._parts.noted("replication_rules_read", rules=len(registry.rules), changed=changed)
        for name, repository in self._repositories.items():
            expected = registry.destinations(name)
            # Rules that could not be read for long may have changed any number of times.
            if before is None or before.destinations(name) != expected:
                repository.rules_changed(expected=expected)
            else:
                repository.rules_confirmed()
