"""What an answer of ECR means: pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import IRELAND, OREGON, complete, digest_of

from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Name, Replication, Since, Status
from exporter.replication.status import (
    Evaluation,
    evaluate,
    evaluate_replications,
    missing_only_where_expected,
    states_since,
)

FAILED = Replication(IRELAND, Status.FAILED, "DENIED")
RUNNING = Replication(IRELAND, Status.IN_PROGRESS)
MISSING = Replication(IRELAND, Status.MISSING)
FACTS = ImageFacts(digest_of("x"), (Name("v1", ""),), 1.0, 1.0)


def evaluated(
    *reported: Replication,
    expected: frozenset[Destination] | None = frozenset({IRELAND}),
    rules_apply: bool = True,
    rules_expired: bool = False,
    recent: bool = False,
) -> Evaluation:
    return evaluate(reported, expected, rules_apply=rules_apply, rules_expired=rules_expired, recent=recent)


@pytest.mark.parametrize(
    ("reported", "recent", "state"),
    [
        (complete(), False, ImageState.SETTLED),
        (complete(), True, ImageState.SETTLED),
        (FAILED, True, ImageState.FAILED),
        (RUNNING, True, ImageState.PENDING),
        (RUNNING, False, ImageState.FAILED),
        (Replication(IRELAND, "TELEPORTED"), False, ImageState.UNKNOWN),
        (Replication(IRELAND, Status.UNKNOWN), True, ImageState.PENDING),
    ],
)
def test_the_state_follows_from_the_status_and_the_age(
    reported: Replication, recent: bool, state: ImageState
) -> None:
    assert evaluated(reported, recent=recent) == ((reported,), state, False)


@pytest.mark.parametrize(("recent", "state"), [(True, ImageState.PENDING), (False, ImageState.FAILED)])
def test_what_is_expected_and_not_reported_is_missing(recent: bool, state: ImageState) -> None:
    assert evaluated(recent=recent) == ((MISSING,), state, False)


def test_rules_that_were_read_before_the_push_make_nothing_missing() -> None:
    assert evaluated(rules_apply=False) == ((), ImageState.FAILED, True)
    assert evaluated(complete(), rules_apply=False) == ((complete(),), ImageState.SETTLED, False)


def test_without_rules_nothing_is_missing_and_expired_rules_are_noted() -> None:
    assert evaluated(expected=None) == ((), ImageState.SETTLED, False)
    assert evaluated(expected=None, recent=True) == ((), ImageState.PENDING, False)
    assert evaluated(complete(), expected=None, rules_expired=True).unverified is True


def test_of_several_entries_about_one_destination_the_worst_counts() -> None:
    assert evaluate_replications((complete(), FAILED, RUNNING), frozenset()) == (FAILED,)


@pytest.mark.parametrize("found", [Destination("", IRELAND.registry_id), Destination(IRELAND.region, "")])
def test_an_incomplete_entry_may_mean_any_destination_that_matches_it(found: Destination) -> None:
    entry = Replication(found, Status.COMPLETE)
    assert MISSING not in evaluate_replications((entry,), frozenset({IRELAND}))


def test_a_state_keeps_its_time_and_a_new_one_has_its_own() -> None:
    old = (Since(IRELAND, "IN_PROGRESS", 5.0), Since(OREGON, "MISSING", 6.0))

    def since(*replications: Replication, rules_apply: bool = True) -> tuple[Since, ...]:
        return states_since(old, replications, rules_apply=rules_apply, now=9.0)

    assert since(RUNNING) == old[:1]
    assert since(FAILED) == (Since(IRELAND, "FAILED", 9.0),)
    assert since(complete()) == ()
    assert since(RUNNING, Replication(OREGON, Status.MISSING)) == old
    # without rules nothing is MISSING, and ECR still tells all the rest
    assert since(complete(), rules_apply=False) == (old[1]._replace(shown=False),)
    assert since(complete(), complete(OREGON), rules_apply=False) == ()


def test_changed_rules_leave_missing_only_what_they_expect() -> None:
    elsewhere = Replication(OREGON, Status.MISSING)
    before = replace(FACTS, replications=(MISSING, elsewhere))
    assert missing_only_where_expected(before, frozenset({IRELAND})).replications == (MISSING,)
    assert missing_only_where_expected(before, frozenset({IRELAND, OREGON})) is before
    assert missing_only_where_expected(FACTS, frozenset()) is FACTS


def test_what_is_held_though_ecr_does_not_report_it_is_complete() -> None:
    held = frozenset({IRELAND})
    assert evaluate_replications((), frozenset({IRELAND}), held) == (complete(),)
    assert evaluate_replications((), frozenset({OREGON}), held) == (Replication(OREGON, Status.MISSING),)
    assert evaluate_replications((), frozenset(), held) == (), "it is expected nowhere"
    assert evaluate_replications((FAILED,), frozenset({IRELAND}), held) == (FAILED,)
