"""The images that may be exported are the same object until one of them changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.facts import image
from support.fakes import HOME, IRELAND, digest_of

from exporter.replication.facts import ImageFacts, RegistryFacts, RepositoryFacts
from exporter.replication.model import ImageState, Replication, Status
from exporter.replication.store import Store

STALE = 100.0


def repository(*good_until: float) -> RepositoryFacts:
    facts = RepositoryFacts(listed_at=0.0)
    for number, end in enumerate(good_until):
        facts.put(replace(image(f"v{number}", Replication(IRELAND, Status.FAILED)), good_until=end))
    return facts


def test_they_are_the_same_object_until_an_image_changes() -> None:
    facts = repository(50.0, 60.0)
    before = facts.visible(0.0, STALE)
    assert facts.visible(49.0, STALE) is before
    facts.put(facts.images[digest_of("v0")])
    assert facts.visible(49.0, STALE) == before
    assert facts.visible(49.0, STALE) is not before
    facts.replace(gone=[digest_of("v0")], new=())
    assert len(facts.visible(49.0, STALE)) == 1


def by_hand(facts: RepositoryFacts, now: float, stale_after: float) -> tuple[ImageFacts, ...]:
    """What may be exported, as docs/metrics.md says."""
    if facts.listed_at is None or now > facts.listed_at + stale_after:
        return ()
    return tuple(
        each if each.replications is None or now <= each.good_until else each.unanswered()
        for each in facts.images.values()
    )


TIMES = st.floats(0, 150)


@given(st.lists(TIMES, max_size=5), st.lists(st.tuples(TIMES, st.sampled_from([40.0, STALE])), max_size=8))
def test_they_depend_on_nothing_but_the_facts_and_the_time(
    ends: list[float], moments: list[tuple[float, float]]
) -> None:
    """Also if time goes back, or a reload changes `stale_after`."""
    facts = repository(*ends)
    for now, stale_after in moments:
        found = facts.visible(now, stale_after)
        assert found == by_hand(facts, now, stale_after)
        until = facts.good_until(now, stale_after)
        if found:
            assert until >= now
            assert facts.visible(min(until, 1e6), stale_after) == found
        assert {each.state for each in found} <= {ImageState.SETTLED, ImageState.UNKNOWN}


CHANGES = st.tuples(
    TIMES,
    st.integers(0, 3),
    st.sampled_from([*ImageState, "unanswered", "gone"]),
    st.sampled_from([30.0, 80.0]),
)


@given(st.lists(CHANGES, max_size=12))
def test_what_is_kept_through_changes_is_that_of_a_new_process(
    changes: list[tuple[float, int, ImageState | str, float]],
) -> None:
    kept = RepositoryFacts(listed_at=0.0)
    for now, number, change, good_until in changes:
        seen = image(f"v{number}", Replication(IRELAND, Status.FAILED if number % 2 else Status.COMPLETE))
        if change == "gone":
            kept.replace(gone={seen.digest} & kept.images.keys(), new=())
        elif isinstance(change, ImageState):
            kept.put(replace(seen, state=change, good_until=good_until))
        else:
            kept.put(image(f"v{number}"))
        fresh = RepositoryFacts(listed_at=0.0, images=dict(kept.images))
        for at in (now, 0.0, STALE + 1):
            assert kept.visible(at, STALE) == fresh.visible(at, STALE)
            assert kept.unfinished(at, STALE) == fresh.unfinished(at, STALE)
            assert states_of(kept, at) == states_of(fresh, at)


def states_of(facts: RepositoryFacts, now: float) -> Mapping[ImageState, int]:
    store = Store()
    store.stale_after = STALE
    store.registries = [RegistryFacts(HOME, repositories={"team/app": facts})]
    return store.states(now)
