"""The store: what follows from the facts, and what of them may be told."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from support.fakes import ACCOUNT, HOME, IRELAND, OREGON

from exporter.replication.facts import FirstRound, ImageFacts, RegistryFacts, RepositoryFacts, TargetImages
from exporter.replication.model import (
    Destination,
    FailureScope,
    ImageState,
    Name,
    Reason,
    Registry,
    Replication,
    Rule,
    Status,
)
from exporter.replication.status import (
    evaluate_replications,
    image_state,
    missing_only_where_expected,
)
from exporter.replication.store import RegistrySnapshot, Store
from exporter.replication.target_health import SILENT_AFTER, TargetHealth, first_rounds

STALE = 600.0
LISTED = 1000.0  # monotonic
WALL = 1.8e9


def at(destination: Destination, status: str, code: str = "") -> Replication:
    return Replication(destination, status, code)


# -- what ECR reports, and what it owes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "expected", "judged"),
    [
        ([], [], []),
        ([at(IRELAND, "COMPLETE")], [], [at(IRELAND, "COMPLETE")]),
        ([], [IRELAND], [at(IRELAND, "MISSING")]),
        (
            [at(OREGON, "FAILED", "DENIED")],
            [IRELAND, OREGON],
            [at(IRELAND, "MISSING"), at(OREGON, "FAILED", "DENIED")],
        ),
        # one destination reported twice: the gravest counts, in either order
        ([at(IRELAND, "COMPLETE"), at(IRELAND, "IN_PROGRESS")], [], [at(IRELAND, "IN_PROGRESS")]),
        ([at(IRELAND, "IN_PROGRESS"), at(IRELAND, "COMPLETE")], [], [at(IRELAND, "IN_PROGRESS")]),
        ([at(IRELAND, "IN_PROGRESS"), at(IRELAND, "TELEPORTED")], [], [at(IRELAND, "TELEPORTED")]),
        ([at(IRELAND, "FAILED", "X"), at(IRELAND, "TELEPORTED")], [], [at(IRELAND, "FAILED", "X")]),
        # same Region, two accounts: two destinations
        (
            [at(IRELAND, "COMPLETE")],
            [IRELAND, Destination("eu-west-1", "2")],
            [at(IRELAND, "COMPLETE"), at(Destination("eu-west-1", "2"), "MISSING")],
        ),
        # fields that ECR leaves out
        (
            [at(Destination("eu-west-1", ""), "COMPLETE")],
            [IRELAND],
            [at(Destination("eu-west-1", ""), "COMPLETE")],
        ),
        ([at(Destination("", ""), "COMPLETE")], [IRELAND, OREGON], [at(Destination("", ""), "COMPLETE")]),
        (
            [at(Destination("", ACCOUNT), "COMPLETE")],
            [Destination("x", "2")],
            [at(Destination("", ACCOUNT), "COMPLETE"), at(Destination("x", "2"), "MISSING")],
        ),
        (
            [at(Destination("us-west-2", ""), "COMPLETE")],
            [IRELAND],
            [at(IRELAND, "MISSING"), at(Destination("us-west-2", ""), "COMPLETE")],
        ),
        ([at(IRELAND, Status.UNKNOWN)], [IRELAND], [at(IRELAND, "UNKNOWN")]),
    ],
)
def test_there_is_one_state_for_each_destination(
    reported: list[Replication], expected: list[Destination], judged: list[Replication]
) -> None:
    assert evaluate_replications(tuple(reported), frozenset(expected)) == tuple(judged)


@pytest.mark.parametrize(
    ("statuses", "recent", "rules_known", "state"),
    [
        ("COMPLETE", True, True, ImageState.SETTLED),
        ("COMPLETE COMPLETE", False, True, ImageState.SETTLED),
        ("", False, True, ImageState.SETTLED),
        ("", True, True, ImageState.SETTLED),
        ("", False, False, ImageState.SETTLED),
        ("", True, False, ImageState.PENDING),  # it may yet be on its way
        ("COMPLETE", True, False, ImageState.SETTLED),
        ("IN_PROGRESS", True, True, ImageState.PENDING),
        ("IN_PROGRESS", False, True, ImageState.FAILED),
        ("MISSING COMPLETE", True, True, ImageState.PENDING),
        ("MISSING COMPLETE", False, True, ImageState.FAILED),
        ("FAILED", True, True, ImageState.FAILED),
        ("FAILED COMPLETE", False, True, ImageState.FAILED),
        ("FAILED IN_PROGRESS", True, True, ImageState.PENDING),
        ("FAILED TELEPORTED", False, True, ImageState.FAILED),
        ("TELEPORTED", True, True, ImageState.PENDING),
        ("TELEPORTED COMPLETE", False, True, ImageState.UNKNOWN),
        ("UNKNOWN", False, True, ImageState.UNKNOWN),
    ],
)
def test_what_is_expected_next_of_an_image(
    statuses: str, recent: bool, rules_known: bool, state: ImageState
) -> None:
    replications = tuple(at(Destination(str(n), ""), status) for n, status in enumerate(statuses.split()))
    assert image_state(replications, recent=recent, rules_known=rules_known) is state


def image(
    *replications: Replication, state: ImageState = ImageState.SETTLED, good_until: float = 9e9
) -> ImageFacts:
    return ImageFacts(
        digest="sha256:a",
        names=(Name("v1", ""),),
        pushed_at=WALL,
        replicated_from=WALL,
        replications=replications,
        state=state,
        good_until=good_until,
    )


NEVER_ASKED = replace(image(), replications=None, state=ImageState.NEW, good_until=0.0)


def test_an_answer_changes_what_it_tells_and_nothing_else() -> None:
    asked = image(state=ImageState.PENDING, good_until=50.0)
    failed = (at(IRELAND, "FAILED"),)
    facts = asked.answered(failed, ImageState.FAILED, unverified=True, since=(), at=90.0, good_until=95.0)
    assert asdict(facts) == asdict(
        replace(
            asked,
            replications=failed,
            state=ImageState.FAILED,
            unverified=True,
            answered_at=90.0,
            good_until=95.0,
        )
    )


def test_nothing_is_missing_where_nothing_is_owed_any_more() -> None:
    kept = (at(IRELAND, "COMPLETE"), at(OREGON, "MISSING"))
    facts = image(*kept)
    assert missing_only_where_expected(facts, frozenset({IRELAND})).replications == kept[:1]
    assert missing_only_where_expected(facts, frozenset({OREGON})) is facts
    assert missing_only_where_expected(NEVER_ASKED, frozenset()) is NEVER_ASKED


# -- what may be told ------------------------------------------------------------------------------

RULES = Registry(ACCOUNT, (Rule((IRELAND,)),))


def repository(*images: ImageFacts, listed_at: float | None = LISTED, asked: bool = True) -> RepositoryFacts:
    return RepositoryFacts(
        labels=("one",),
        images={str(n): facts for n, facts in enumerate(images)},
        targets=None if listed_at is None else (TargetImages("one", len(images), complete=True),),
        listed_at=listed_at,
        listed_time=None if listed_at is None else WALL + listed_at,
        asked=asked,
    )


def registry(**repositories: RepositoryFacts) -> RegistryFacts:
    return RegistryFacts(
        HOME,
        labels=("one",),
        rules=RULES,
        rules_at=LISTED,
        begun=True,
        repositories_known=True,
        repositories=repositories,
    )


def store(*registries: RegistryFacts) -> Store:
    store = Store()
    store.registries = list(registries)
    store.stale_after = STALE
    return store


def told(facts: RegistryFacts, now: float = LISTED) -> RegistrySnapshot:
    (snapshot,) = store(facts).snapshot(now).registries
    return snapshot


def in_first_round(facts: RegistryFacts) -> RegistryFacts:
    """As the poller keeps it, of targets that were just added."""
    facts.first_rounds = {label: FirstRound(LISTED) for label in facts.labels}
    facts.first_rounds = first_rounds(facts, LISTED, STALE)
    return facts


def verdict(facts: RegistryFacts, now: float = LISTED, label: str = "one") -> TargetHealth:
    return next(target for target in told(facts, now).targets if target.label == label)


@pytest.mark.parametrize(
    ("now", "shown"), [(LISTED, 1), (LISTED + STALE, 1), (LISTED + STALE + 0.001, 0)], ids=str
)
def test_images_are_told_as_long_as_their_listing_is_believed(now: float, shown: int) -> None:
    ((_, images),) = told(registry(app=repository(image())), now).repositories
    assert len(images) == shown


@pytest.mark.parametrize(("now", "answered"), [(1050, True), (1050.001, False)], ids=str)
def test_an_answer_is_told_as_long_as_it_is_believed(now: float, answered: bool) -> None:
    """That the image exists is what listings say, and they go on."""
    facts = registry(app=repository(image(good_until=1050)))
    ((_, (shown,)),) = told(facts, now).repositories
    assert (shown.replications is not None) is answered
    assert shown.state is (ImageState.SETTLED if answered else ImageState.UNKNOWN)


def test_what_is_told_is_good_until_the_next_answer_is_too_old() -> None:
    images = [image(good_until=1050.0 + n) for n in range(3)]
    facts = registry(app=repository(*images), late=repository(listed_at=LISTED - 2 * STALE))
    assert store(facts).snapshot(1049).good_until == 1050
    assert store(facts).snapshot(1051.5).good_until == 1052


@pytest.mark.parametrize(("now", "known"), [(LISTED + STALE, RULES), (LISTED + STALE + 0.001, None)], ids=str)
def test_rules_are_told_as_long_as_they_are_believed(now: float, known: Registry | None) -> None:
    assert told(registry(), now).rules == known


def test_an_image_that_was_never_asked_about_is_told_without_states() -> None:
    ((_, images),) = told(registry(app=repository(NEVER_ASKED))).repositories
    assert images == (NEVER_ASKED,)


def test_images_are_counted_by_state_and_stale_ones_are_unknown() -> None:
    facts = registry(
        app=repository(image(), image(state=ImageState.FAILED), NEVER_ASKED, image(good_until=LISTED - 1)),
        old=repository(image(), listed_at=LISTED - STALE - 1),
    )
    states = store(facts).states(LISTED)
    assert [states[state] for state in ImageState] == [1, 0, 1, 1, 2]


def test_a_target_succeeds_when_all_it_names_was_found_and_asked() -> None:
    facts = registry(app=repository(image()), api=repository(image(), image()))
    assert verdict(facts) == TargetHealth("one", True, frozenset(), 3)


def test_a_target_without_repositories_selects_nothing_and_succeeds() -> None:
    assert verdict(registry()) == TargetHealth("one", True, frozenset(), 0)


def test_nothing_is_told_of_a_target_before_its_first_round() -> None:
    unlisted = repository(listed_at=None, asked=False)
    assert verdict(in_first_round(registry(app=unlisted))) == TargetHealth("one", None, frozenset(), None)
    unasked = repository(image(), asked=False)
    facts = in_first_round(registry(app=repository(), api=unasked))
    assert verdict(facts) == TargetHealth("one", None, frozenset(), 1)


def test_a_target_that_had_its_first_round_succeeds_while_a_new_repository_is_not_asked_yet() -> None:
    facts = in_first_round(registry(app=repository(image())))
    facts.repositories["new"] = repository(listed_at=None, asked=False)
    assert verdict(facts) == TargetHealth("one", True, frozenset(), None)


def test_a_first_round_that_failed_stays_failed_until_it_is_over() -> None:
    app = repository(listed_at=None, asked=False)
    facts = registry(app=app)
    scope = FailureScope("images", "app")
    app.failures[scope] = Reason.ACCESS_DENIED
    in_first_round(facts)
    del app.failures[scope]
    denied = frozenset({Reason.ACCESS_DENIED})
    assert verdict(facts) == verdict(facts) == TargetHealth("one", False, denied, None)
    facts.repositories["app"] = repository(image())
    facts.first_rounds = first_rounds(facts, LISTED, STALE)
    assert verdict(facts) == TargetHealth("one", True, frozenset(), 1)


def test_a_registry_that_gives_no_answer_fails_its_targets_and_two_reads_are_equal() -> None:
    """Every call is throttled from the start, say. The order of the reads does not matter."""
    facts = registry(app=repository(listed_at=None, asked=False))
    facts.since, facts.throttled = LISTED, True
    in_first_round(facts)
    book = store(facts)
    times = [LISTED + SILENT_AFTER + seconds for seconds in (-60, 0, 0.1, 10, 10_000)]
    first = [book.snapshot(now, images=False).registries for now in times]
    assert [r[0].targets[0].success for r in first] == [None, None, False, False, False]
    assert [bool(book.unheard(now)) for now in times] == [True, True, False, False, False]
    assert [book.snapshot(now, images=False).registries for now in reversed(times)] == first[::-1]
    facts.heard_at = LISTED
    assert book.unheard(LISTED) == []
    assert verdict(facts, LISTED + SILENT_AFTER + 1).success is None


def test_a_name_that_does_not_exist_fails_its_target() -> None:
    app = repository(image())
    app.targets = (TargetImages("one", 1, complete=False),)
    assert verdict(registry(app=app)) == TargetHealth("one", False, frozenset({Reason.IMAGE_NOT_FOUND}), 1)


@pytest.mark.parametrize(
    ("kind", "failing"),
    [("rules", {"one", "glob"}), ("registry", {"one", "glob"}), ("repositories", {"glob"})],
)
def test_a_failure_of_the_registry_concerns_those_who_need_what_failed(kind: str, failing: set[str]) -> None:
    facts = registry()
    facts.labels, facts.globs = ("one", "glob"), frozenset({"glob"})
    facts.failures[FailureScope(kind)] = Reason.UNAVAILABLE
    assert {target.label for target in told(facts).targets if target.reasons} == failing


def test_a_failure_in_a_repository_concerns_the_targets_that_apply_to_it() -> None:
    app, api = repository(image()), repository(image())
    api.labels = ("other",)
    api.targets = (TargetImages("other", 1, complete=True),)
    api.failures = {
        FailureScope("images", "api"): Reason.ACCESS_DENIED,
        FailureScope("status", "api", "d"): Reason.INVALID,
    }
    facts = registry(app=app, api=api)
    facts.labels = ("one", "other")
    assert verdict(facts).success is True
    both = frozenset({Reason.ACCESS_DENIED, Reason.INVALID})
    assert verdict(facts, label="other") == TargetHealth("other", False, both, 1)


def test_no_target_is_judged_before_its_repositories_are_watched() -> None:
    facts = registry()
    facts.begun = False
    in_first_round(facts)
    assert verdict(facts) == TargetHealth("one", None, frozenset(), None)


def test_a_repository_that_does_not_exist_fails_those_who_spell_it_out() -> None:
    gone = repository()
    gone.labels = ("one", "glob")
    gone.failures[FailureScope("images", "gone")] = Reason.REPOSITORY_NOT_FOUND
    facts = registry(gone=gone)
    facts.labels, facts.globs = gone.labels, frozenset({"glob"})
    assert verdict(facts).reasons == {Reason.REPOSITORY_NOT_FOUND}
    assert verdict(facts, label="glob").success is True


def test_a_glob_waits_until_the_repositories_are_known() -> None:
    facts = registry(app=repository(image()))
    facts.labels, facts.globs, facts.repositories_known = ("one", "glob"), frozenset({"glob"}), False
    in_first_round(facts)
    assert verdict(facts, label="glob") == TargetHealth("glob", None, frozenset(), None)
    assert verdict(facts) == TargetHealth("one", True, frozenset(), 1)


@pytest.mark.parametrize(
    "late",
    [repository(image(), listed_at=LISTED - STALE - 1), repository(image(), image(good_until=LISTED - 1))],
    ids=["its listing", "an answer"],
)
def test_what_went_stale_without_a_failure_was_not_reached_or_throttled(late: RepositoryFacts) -> None:
    facts = registry(app=late)
    assert verdict(facts) == TargetHealth("one", False, frozenset({Reason.UNAVAILABLE}), None)
    facts.throttled = True
    assert verdict(facts) == TargetHealth("one", False, frozenset({Reason.THROTTLED}), None)
    facts.failures[FailureScope("registry")] = Reason.ACCESS_DENIED
    assert verdict(facts) == TargetHealth("one", False, frozenset({Reason.ACCESS_DENIED}), None)


def test_what_went_stale_because_of_a_failure_is_not_called_throttled() -> None:
    late = repository(image(), listed_at=LISTED - STALE - 1)
    late.failures[FailureScope("images", "app")] = Reason.ACCESS_DENIED
    assert verdict(registry(app=late)) == TargetHealth("one", False, frozenset({Reason.ACCESS_DENIED}), None)


def test_a_repository_may_name_a_target_that_a_reload_took_away() -> None:
    facts = registry(app=repository(image()))
    facts.labels = ()
    assert told(facts).targets == ()


# -- the last complete listing ---------------------------------------------------------------------


def test_all_is_listed_as_of_the_oldest_of_the_last_listings() -> None:
    facts = registry(app=repository(listed_at=900), api=repository(listed_at=800))
    assert told(facts).complete_time == WALL + 800


def test_nothing_is_listed_until_everything_is() -> None:
    assert told(registry()).complete_time is None
    assert told(registry(app=repository(), api=repository(listed_at=None))).complete_time is None


def test_where_globs_are_the_listing_of_repositories_counts_too() -> None:
    facts = registry(app=repository(listed_at=900))
    facts.globs = frozenset({"one"})
    assert told(facts).complete_time is None
    facts.repositories_time = WALL + 700
    assert told(facts).complete_time == WALL + 700
    facts.repositories.clear()
    assert told(facts).complete_time == WALL + 700
