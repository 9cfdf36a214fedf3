"""No more than `max_images`: the newest of all repositories together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import digest_of

from exporter.replication.model import Image, Name
from exporter.replication.newest import Newest
from exporter.replication.steps import finished
from exporter.replication.targets import Watched

NOW = 1_000_000.0


def group(*ages: float | None, names: int = 1) -> dict[str, Watched]:
    images = [Image(digest_of(f"{age}"), ("v",), None if age is None else NOW - age) for age in ages]
    tags = tuple(Name(f"v{number}", "") for number in range(names))
    return {i.digest: Watched(i.digest, tags, i.pushed_at, i.pushed_at) for i in images}


def admitted(newest: Newest, *groups: str) -> set[str]:
    return {digest for name in groups for digest in finished(newest.admitted(name, newest.floor))}


def test_the_newest_of_all_repositories_together_fit() -> None:
    newest = Newest(3)
    finished(newest.put("a", group(1, 5, 9)))
    assert (newest.skipped, len(admitted(newest, "a"))) == (0, 3)
    finished(newest.put("b", group(2, None)))
    assert newest.skipped == 2
    assert admitted(newest, "a", "b") == {digest_of(age) for age in ("1", "2", "5")}


def test_what_is_gone_makes_room() -> None:
    newest = Newest(1)
    finished(newest.put("a", group(1)))
    finished(newest.put("b", group(2)))
    assert admitted(newest, "b") == set()
    finished(newest.put("a", {}))
    finished(newest.put("never there", {}))
    assert (newest.skipped, admitted(newest, "b")) == (0, {digest_of("2")})


def test_each_name_of_an_image_takes_a_place() -> None:
    newest = Newest(5)
    finished(newest.put("a", group(1, names=2)))
    finished(newest.put("b", group(2, names=4)))
    finished(newest.put("c", group(3)))
    assert admitted(newest, "a", "b", "c") == {digest_of("1")}
    assert newest.skipped == 5
    finished(newest.put("b", group(2, names=3)))
    assert admitted(newest, "a", "b", "c") == {digest_of("1"), digest_of("2")}
    assert newest.skipped == 1


@given(st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), max_size=5), st.integers(1, 12))
def test_as_many_fit_as_there_is_room_for(groups: list[list[int]], limit: int) -> None:
    newest = Newest(limit)
    for name, ages in enumerate(groups):
        finished(newest.put(str(name), {f"{name}{d}": w for d, w in group(*ages).items()}))
    total = sum(map(len, groups))
    fit = sum(len(finished(newest.admitted(str(name), newest.floor))) for name in range(len(groups)))
    assert newest.skipped == max(0, total - limit)
    assert fit >= total - newest.skipped


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=6, unique=True)), max_size=8
    ),
    st.integers(1, 12),
)
def test_a_lent_mapping_changes_nothing(steps: list[tuple[str, list[int]]], limit: int) -> None:
    """Its owner drops what does not fit, as the facts do."""
    newest, other, facts = Newest(limit), Newest(limit), {}  # type: ignore[var-annotated]
    for name, ages in steps:
        for each in (newest, other):
            finished(each.put(name, group(*ages)))
        for known in {name, *facts}:
            facts[known] = dict(finished(newest.admitted(known, newest.floor)))
            newest.lend(known, facts[known])
        assert (newest.skipped, newest.floor) == (other.skipped, other.floor)
        assert {k: set(v) for k, v in facts.items()} == {k: admitted(other, k) for k in facts}
        assert all(set(newest.selected(k)) == set(other.selected(k)) for k in facts)


@pytest.mark.parametrize(
    ("shown", "crowded"),
    [((8, 8), True), ((3, 8), False), ((6, 5), False), ((12, 0), True)],
)
def test_far_more_than_fit_are_crowded(shown: tuple[int, int], *, crowded: bool) -> None:
    newest = Newest(10)
    for name, number in zip("ab", shown, strict=True):
        finished(newest.put(name, group(*range(8))))
        newest.shows(name, 8)
        newest.shows(name, number)
    assert newest.crowded is crowded
    finished(newest.put("b", {}))
    assert newest.crowded is False, "all images fit"
