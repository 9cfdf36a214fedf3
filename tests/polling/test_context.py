"""The failures of one registry: how long to stay away, and from which failure on they are reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from support.fakes import ALL, HOME, FakeClock, FakeJournal, refusal, settings

from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings
from exporter.polling.calls import Call, Job
from exporter.polling.context import LONGEST_PAUSE, LONGEST_REQUESTED_PAUSE, Context, Shared
from exporter.polling.rate_limit import Operation
from exporter.polling.sightings import Sightings
from exporter.polling.turns import Turns
from exporter.replication.model import FailureScope, Reason
from exporter.replication.newest import Newest
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE

RULES = FailureScope("rules")
REGISTRY = FailureScope("registry")
DENIED = refusal(Reason.ACCESS_DENIED)
TIMEOUT = refusal(Reason.UNAVAILABLE)


class Highest(Random):
    """Draws the upper end of each range, and the lower one if `lowest` is set."""

    lowest = False

    def uniform(self, a: float, b: float) -> float:
        return a if self.lowest else b


@dataclass
class Registry:
    """A context with the fakes that it stands on."""

    clock: FakeClock = field(default_factory=FakeClock)
    journal: FakeJournal = field(default_factory=FakeJournal)
    random: Highest = field(default_factory=Highest)

    def __post_init__(self) -> None:
        shared = Shared(
            store=Store(),
            newest=Newest(limit=100),
            sightings=Sightings(),
            memory=StateCache(),
            shard=WHOLE,
            clock=self.clock,
            random=self.random,
            journal=self.journal,
            on_complete=lambda *_: None,
            on_destination=lambda *_: None,
            turns=Turns(self.clock),
        )
        self.context = Context(shared, source=HOME, settings=settings(ALL))

    def pause(self, error: ECRError, *, scope: FailureScope = RULES, cap: float = LONGEST_PAUSE) -> float:
        """The pause in seconds after one more failure, which comes when the pause before is over."""
        until = self.context.fail(scope, error, cap=cap)
        pause, self.clock.now = until - self.clock.now, until
        return pause

    def sent(self, *, ago: float) -> Call:
        """A call that was sent some seconds ago."""
        job = Job(Operation.REGISTRY)
        return Call(job, RegistrySettings(), self.clock.now - ago, make=lambda: None)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_the_pause_doubles_from_a_second_to_the_cap(registry: Registry) -> None:
    assert [registry.pause(DENIED) for _ in range(8)] == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    assert [registry.pause(DENIED, scope=REGISTRY, cap=5.0) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_the_cap_holds_after_thousands_of_failures(registry: Registry) -> None:
    assert [registry.pause(DENIED) for _ in range(3000)][-1] == LONGEST_PAUSE


def test_half_of_the_pause_is_random(registry: Registry) -> None:
    registry.random.lowest = True
    assert [registry.pause(DENIED) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("requested", "pauses"),
    [
        (None, [1, 2, 4]),
        (0.1, [1, 2, 4]),
        (3.0, [3, 3, 4]),
        (200.0, [200, 200, 200]),
        (1e9, [LONGEST_REQUESTED_PAUSE] * 3),
    ],
)
def test_aws_can_ask_for_a_longer_pause(
    registry: Registry, requested: float | None, pauses: list[float]
) -> None:
    error = refusal(Reason.THROTTLED, retry_after=requested)
    assert [registry.pause(error) for _ in range(3)] == pauses


def test_calls_that_were_sent_before_the_last_failure_are_not_counted(registry: Registry) -> None:
    until = registry.context.fail(RULES, TIMEOUT, registry.sent(ago=10.0))
    for _ in range(5):
        registry.clock.now += 0.1
        assert registry.context.fail(RULES, TIMEOUT, registry.sent(ago=10.0)) == until
    assert not registry.context.reported(RULES)
    registry.clock.now = until
    assert registry.context.fail(RULES, TIMEOUT, registry.sent(ago=0.5)) == until + 2
    assert registry.context.reported(RULES)


def test_a_call_of_another_scope_is_counted(registry: Registry) -> None:
    registry.context.fail(RULES, DENIED, registry.sent(ago=10.0))
    registry.context.fail(REGISTRY, DENIED, registry.sent(ago=10.0))
    assert registry.context.reported(REGISTRY)


@pytest.mark.parametrize(
    ("error", "reported_from", "reported"),
    [
        (DENIED, None, [True, True, True]),
        (TIMEOUT, None, [False, True, True]),
        (DENIED, 3, [False, False, True]),
        (TIMEOUT, 1, [True, True, True]),
    ],
)
def test_a_time_out_is_reported_from_the_second_in_a_row(
    registry: Registry, error: ECRError, reported_from: int | None, reported: list[bool]
) -> None:
    context = registry.context
    seen = []
    for _ in reported:
        context.fail(RULES, error, reported_from=reported_from)
        facts, log = RULES in context.facts.failures, ("", RULES) in registry.journal.failing
        assert facts == log == context.reported(RULES)
        seen.append(facts)
    assert seen == reported


def test_a_failure_that_is_reported_stays_so_whatever_fails_next(registry: Registry) -> None:
    registry.context.fail(RULES, DENIED)
    registry.context.fail(RULES, TIMEOUT, reported_from=9)
    assert registry.context.facts.failures == {RULES: Reason.UNAVAILABLE}


def test_what_works_in_between_starts_both_counts_again(registry: Registry) -> None:
    assert [registry.pause(TIMEOUT) for _ in range(3)] == [1, 2, 4]
    registry.context.works(RULES)
    assert not registry.context.reported(RULES)
    assert (registry.context.facts.failures, registry.journal.failing) == ({}, {})
    assert registry.pause(TIMEOUT) == 1
    assert not registry.context.reported(RULES)


def test_a_failure_can_be_logged_without_failing_targets(registry: Registry) -> None:
    registry.context.fail(RULES, DENIED, fails_targets=False)
    assert registry.context.facts.failures == {}
    assert registry.journal.failing == {("", RULES): Reason.ACCESS_DENIED}
