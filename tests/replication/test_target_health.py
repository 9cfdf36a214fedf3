"""How targets fare: pure functions of facts and a time."""

from __future__ import annotations

from support.fakes import HOME

from exporter.replication.facts import FirstRound, RegistryFacts, RepositoryFacts, TargetImages
from exporter.replication.model import FailureScope, Reason
from exporter.replication.target_health import (
    SILENT_AFTER,
    TargetHealth,
    awaits_answer,
    evaluate,
    first_rounds,
)

STALE = 3600.0
NOW = 1000.0


def facts() -> RegistryFacts:
    """A registry with a glob and a target that names a repository; all is well."""
    repository = RepositoryFacts(labels=("team/a", "team/*"), listed_at=NOW, listed_time=NOW, asked=True)
    repository.targets = (
        TargetImages("team/a", 2, complete=True),
        TargetImages("team/*", 3, complete=True),
    )
    return RegistryFacts(
        HOME,
        labels=("team/a", "team/*"),
        globs=frozenset({"team/*"}),
        since=NOW,
        heard_at=NOW,
        begun=True,
        repositories_known=True,
        repositories={"team/a": repository},
    )


def healths(registry: RegistryFacts, now: float = NOW) -> dict[str, TargetHealth]:
    return {health.label: health for health in evaluate(registry, now, STALE)}


def reasons(registry: RegistryFacts, now: float = NOW) -> dict[str, set[Reason]]:
    return {label: set(health.reasons) for label, health in healths(registry, now).items()}


def test_a_target_succeeds_if_nothing_that_concerns_it_fails() -> None:
    assert healths(facts()) == {
        "team/a": TargetHealth("team/a", True, frozenset(), 2),
        "team/*": TargetHealth("team/*", True, frozenset(), 3),
    }


def test_a_failure_of_the_repositories_concerns_globs_alone() -> None:
    registry = facts()
    registry.failures[FailureScope("repositories")] = Reason.ACCESS_DENIED
    assert reasons(registry) == {"team/a": set(), "team/*": {Reason.ACCESS_DENIED}}


def test_a_repository_that_is_gone_fails_only_the_target_that_names_it() -> None:
    registry = facts()
    registry.repositories["team/a"].failures[FailureScope("images", "team/a")] = Reason.REPOSITORY_NOT_FOUND
    assert reasons(registry) == {"team/a": {Reason.REPOSITORY_NOT_FOUND}, "team/*": set()}


def test_a_listing_that_is_too_old_hides_the_number_of_images() -> None:
    late = healths(facts(), NOW + STALE + 1)
    assert late["team/a"] == TargetHealth("team/a", False, frozenset({Reason.UNAVAILABLE}), None)
    throttled = facts()
    throttled.throttled = True
    assert reasons(throttled, NOW + STALE + 1)["team/a"] == {Reason.THROTTLED}


def test_a_name_that_does_not_exist_fails_its_target() -> None:
    registry = facts()
    registry.repositories["team/a"].targets = (TargetImages("team/a", 0, complete=False),)
    assert reasons(registry)["team/a"] == {Reason.IMAGE_NOT_FOUND}


def test_nothing_is_known_of_a_target_in_its_first_round_until_it_fails() -> None:
    registry = facts()
    registry.first_rounds = {"team/a": FirstRound(NOW)}
    assert healths(registry)["team/a"].success is None
    registry.first_rounds = {"team/a": FirstRound(NOW, frozenset({Reason.THROTTLED}))}
    assert healths(registry)["team/a"].success is False
    assert reasons(registry)["team/a"] == {Reason.THROTTLED}


def test_a_first_round_ends_when_all_images_were_asked_for_and_else_keeps_its_reasons() -> None:
    registry = facts()
    begun = {"team/a": FirstRound(NOW)}
    registry.first_rounds = begun
    assert first_rounds(registry, NOW, STALE) == {}
    registry.repositories["team/a"].asked = False
    assert first_rounds(registry, NOW, STALE) == begun
    registry.failures[FailureScope("rules")] = Reason.ACCESS_DENIED
    kept = FirstRound(NOW, frozenset({Reason.ACCESS_DENIED}))
    assert first_rounds(registry, NOW, STALE) == {"team/a": kept}


def test_an_answer_is_awaited_for_a_while() -> None:
    registry = facts()
    assert awaits_answer(registry, NOW, STALE) is False
    registry.heard_at = float("inf")
    assert awaits_answer(registry, NOW + SILENT_AFTER, STALE) is True
    assert awaits_answer(registry, NOW + SILENT_AFTER + 1, STALE) is False
