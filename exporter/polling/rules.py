"""Whose registry it is, and its replication rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context
from exporter.polling.rate_limit import Operation
from exporter.polling.reach import REGISTRY
from exporter.polling.repository import RepositoryPoller
from exporter.replication.model import Destination, FailureScope, Reason, Registry

_RULES = Job(Operation.REGISTRY)
_ACCOUNT = Job(Operation.ACCOUNT)
_SCOPE = FailureScope("rules")
#: So many of the changed rules are logged by name.
MOST_ROUTES = 10

#: Takes whose account an access has. It may rename or retire the poller that calls it.
OnAccount = Callable[[Access, str], None]


class AccountPoller(Asker):
    """Keeps to the accesses of one account, where the configuration does not name it.

    That is the access with the exporter's own credentials: a role's ARN and a registry id name the account.
    DescribeRegistry names it too, so STS is asked only if the rules are not read with this access.
    """

    def __init__(self, context: Context, *, begin: Callable[[], None], on_account: OnAccount) -> None:
        super().__init__(context)
        #: Called when the account is known.
        self._begin = begin
        self._on_account = on_account
        self._booked = False

    def configure(self, accesses: Iterable[Access]) -> None:
        """Take the accesses of the registry."""
        self.choice.configure(a for a in accesses if not (a.registry_id or a.role_arn))
        if not self.choice:
            self._cancel()

    def ask(self, *, unless: Access | None = None) -> None:
        """Ask whose account it is: now if it is not known, else later. Not if this access named it."""
        if self.choice and (unless is None or unless not in self.choice):
            known = self._registry.source.registry_id
            wait = self._pacing.settings.discovery_interval if known else 0.0
            if not self._booked:
                self.ask_again(_ACCOUNT, due=self._pacing.later(wait))
        else:
            self._cancel()

    def ask_again(self, job: Job, *, due: float | None = None) -> None:
        self._booked = True
        super().ask_again(job, due=due)

    def _cancel(self) -> None:
        self._booked = False
        self._pacing.cancel(_ACCOUNT)

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        self._booked = False
        return client.account

    def answered(self, call: Call, answer: str) -> None:
        """Take whose account the access has; "" if AWS does not say."""
        self._context.works(FailureScope("account"))
        if self.confirms(call, answer):
            self.ask_again(call.job, due=self._pacing.later(self._pacing.settings.discovery_interval))
            if answer:
                self._begin()

    def failed(self, call: Call, error: ECRError) -> None:
        # A known account is only confirmed.
        unknown = not self._registry.source.registry_id
        due = self._context.fail(FailureScope("account"), error, call, fails_targets=unknown)
        self.ask_again(call.job, due=due)

    def confirms(self, call: Call, account: str) -> bool:
        """Take whose account the access has, "" if unknown; whether the access is still one of this registry.

        If the account is another one, the access is moved to its registry, and this one may be retired.
        """
        source = self._registry.source
        if account not in ("", source.registry_id):
            if source.registry_id:
                self._context.warned(
                    "credentials_of_another_account", registry_id=account, expected=source.registry_id
                )
            else:
                self._context.noted("registry_identified", registry_id=account, region=source.region)
            self._on_account(call.access, account)
        return call.access in self._context.clients


class RulesPoller(Asker):
    """Keeps the rules of one registry."""

    def __init__(
        self,
        context: Context,
        *,
        account: AccountPoller,
        repositories: Mapping[str, RepositoryPoller],
        begin: Callable[[], None],
    ) -> None:
        super().__init__(context)
        self._account = account
        #: Told when the rules change.
        self._repositories = repositories
        #: Called when the account is known, and the rules are or cannot be read.
        self._begin = begin
        #: What the rules said when they were last read. Unlike the facts, it is never too old.
        self._logged: Mapping[tuple[Destination, str], bool] | None = None

    def configure(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses. One to another account's registry cannot read its rules."""
        accesses = tuple(accesses)
        self.choice.configure([a for a in accesses if not a.registry_id] or accesses)

    def ask(self) -> None:
        """Read the rules now."""
        self._pacing.book(_RULES)

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        return client.registry

    def answered(self, call: Call, answer: Registry) -> None:
        """Take the rules, and whose registry they are of."""
        self._context.works(_SCOPE)
        foreign = bool(call.access.registry_id)
        if not (foreign or self._account.confirms(call, answer.registry_id)):
            return
        source, wait = self._registry.source, self._pacing.settings.discovery_interval
        # An access with a registry id shows the rules of its own registry, which may be another one.
        ours = bool(source.registry_id) and (not foreign or answer.registry_id == source.registry_id)
        if ours:
            self._take(call, answer)
        elif foreign:
            wait = self._pacing.settings.settled_interval
        self.ask_again(call.job, due=self._pacing.later(wait))
        self._account.ask(unless=call.access if source.registry_id else None)
        if source.registry_id:
            self._begin()

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. Polling begins without rules if they cannot be read."""
        context, settings = self._context, self._pacing.settings
        denied = error.reason is Reason.ACCESS_DENIED
        unanswered = error.reason is Reason.UNAVAILABLE
        # If nothing was ever answered, it is not the rules that fail.
        scope = REGISTRY if unanswered and not context.answered else _SCOPE
        if call.access.registry_id and denied:
            due = self._pacing.later(settings.settled_interval)
        else:
            # Images that are read by a registry id need no rules.
            readable = denied and any(access.registry_id for access in context.clients)
            due = context.fail(scope, error, call, fails_targets=not readable)
        self.ask_again(call.job, due=due)
        with self._store.lock:
            # Rules that are too old to be believed count as changed when they can be read again.
            now = self._clock.monotonic()
            self._registry.rules = self._registry.believed_rules(now, settings.stale_after)
        if unanswered and not context.reported(scope):
            return  # a single time-out; to begin without the rules would mean to ask for everything again
        if not unanswered:
            self._account.ask()
        if self._registry.source.registry_id:
            self._begin()

    def _take(self, call: Call, registry: Registry) -> None:
        before, now = self._registry.rules, self._clock.monotonic()
        with self._store.lock:
            if before != registry:
                self._store.changed()
            self._registry.rules = registry
            self._registry.rules_at = now
            # The Unix time at which the call was sent.
            self._registry.rules_time = self._clock.time() - max(0.0, now - call.sent_at)
        self._log(registry)
        for destination, _ in registry.routes():
            self._context.shared.on_destination(self._registry.source, destination)
        for name, repository in self._repositories.items():
            expected = registry.destinations(name)
            # Rules that could not be read for long may have changed any number of times.
            if before is None or before.destinations(name) != expected:
                repository.statuses.rules_changed(expected=expected)
            else:
                repository.statuses.rules_confirmed()

    def _log(self, registry: Registry) -> None:
        """Log the rules that are read first, and then each change of what they say."""
        before, after = self._logged, registry.routes()
        self._logged = after
        if before is None:
            self._context.noted("replication_rules_read", rules=len(registry.rules))
        elif before != after:
            self._context.warned(
                "rules_changed",
                went=_listed(route for route in before if route not in after),
                came=_listed(route for route in after if route not in before),
                delete_replication_on=_listed(
                    r for r, mirrors in after.items() if mirrors and not before.get(r)
                ),
                delete_replication_off=_listed(
                    r for r, mirrors in before.items() if mirrors and after.get(r) is False
                ),
            )


def _listed(routes: Iterable[tuple[Destination, str]]) -> str | None:
    """The routes as text, or None if there is none. A few of them if they are many."""
    texts = [f"{prefix}* -> {account}/{region}" for (region, account), prefix in sorted(routes)]
    more = [f"{len(texts) - MOST_ROUTES} more"] if len(texts) > MOST_ROUTES else []
    return ", ".join(texts[:MOST_ROUTES] + more) or None
