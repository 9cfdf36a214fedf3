"""Passes over what a registry holds: page by page, or by name."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import digest_of

from exporter.aws.errors import ECRError
from exporter.config.settings import TargetSettings
from exporter.polling.listing import Listing, Lookup, cheapest
from exporter.replication.model import LOOKUP_SIZE, Image, Name, Page
from exporter.replication.targets import RepositoryTargets, Targets


def of(*settings: TargetSettings, repository: str = "team/app") -> RepositoryTargets:
    return Targets(settings).of(repository)


def look_up(lookup: Lookup, existing: dict[Name, Image]) -> int:
    """Answer as ECR does: one unknown name fails its whole call. Returns the number of calls."""
    calls = 0
    while not lookup.complete:
        calls += 1
        assert 1 <= len(lookup.names) <= LOOKUP_SIZE
        if all(name in existing for name in lookup.names):
            lookup.answered(existing[name] for name in lookup.names)
        else:
            lookup.not_found()
    return calls


NAMES = [Name(f"tag-{number}", "") for number in range(400)]


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES), max_size=30), st.data())
def test_a_look_up_finds_what_exists_whatever_does_not(
    names: set[Name], unknown: set[Name], data: st.DataObject
) -> None:
    existing = {name: Image(digest_of(name.tag), (name.tag,)) for name in names - unknown}
    suspects = frozenset(data.draw(st.sets(st.sampled_from(NAMES), max_size=10)))
    lookup = Lookup(names, suspects=suspects)
    calls = look_up(lookup, existing)
    assert {image.tags[0] for image in lookup.items} == {name.tag for name in existing}
    assert len(lookup.items) == len(existing)
    assert lookup.missing == names & unknown
    unforeseen = len((names & unknown) - suspects)
    assert calls <= Lookup.calls(frozenset(names), suspects) + 2 * ceil(log2(LOOKUP_SIZE)) * unforeseen


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES), max_size=30))
def test_a_second_look_up_costs_what_was_foretold(names: set[Name], unknown: set[Name]) -> None:
    existing = {name: Image(digest_of(name.tag), (name.tag,)) for name in names - unknown}
    first = Lookup(names)
    look_up(first, existing)
    suspects = frozenset(first.missing)
    foretold = Lookup.calls(frozenset(names), suspects)
    assert look_up(Lookup(names, suspects=suspects), existing) == foretold


def test_a_listing_follows_the_tokens_to_the_last_page() -> None:
    listing: Listing[str] = Listing("ecr:Any")
    assert (listing.token, listing.complete) == (None, False)
    listing.answered(Page(("a", "b"), "next"))
    assert (listing.token, listing.complete) == ("next", False)
    listing.answered(Page(()))
    assert listing.complete
    assert (listing.items, listing.pages) == (["a", "b"], 2)


@pytest.mark.parametrize("tokens", [["x", "x"], ["x", "y", "x"]], ids=["still", "round"])
def test_a_listing_notices_that_it_is_led_in_a_circle(tokens: list[str]) -> None:
    listing: Listing[str] = Listing("ecr:Any")
    for token in tokens[:-1]:
        listing.answered(Page((), token))
    with pytest.raises(ECRError, match="ecr:Any: RepeatedToken: a page was repeated"):
        listing.answered(Page((), tokens[-1]))


def named(count: int) -> RepositoryTargets:
    return of(TargetSettings("team/app", tags=tuple(f"v{number}" for number in range(count))))


@pytest.mark.parametrize(
    ("names", "suspects", "pages", "by_name"),
    [
        (100, 0, None, True),
        (101, 0, None, False),  # two calls: a listing may take one
        (101, 0, 2, True),
        (101, 0, 1, False),
        (3, 1, 1, False),
        (3, 1, 2, True),
        (3, 3, 2, False),
    ],
)
def test_the_pass_that_takes_fewer_calls_is_chosen(
    names: int, suspects: int, pages: int | None, by_name: bool
) -> None:
    unknown = frozenset(Name(f"v{number}", "") for number in range(suspects))
    assert isinstance(cheapest(named(names), pages=pages, suspects=unknown), Lookup) is by_name


def test_a_repository_without_names_is_listed() -> None:
    """Also where every tag is excluded again: then there is no name to ask for."""
    for settings in (
        TargetSettings("team/app"),
        TargetSettings("team/app", tags=("a",), exclude_tags=("a",)),
    ):
        assert isinstance(cheapest(of(settings), pages=9, suspects=frozenset()), Listing)


def test_a_name_that_an_answer_leaves_out_is_asked_for_alone_and_then_missing() -> None:
    one, two = Name("v1", ""), Name("v2", "")
    image = Image(digest_of("v1"), ("v1",))
    lookup = Lookup([one, two])
    assert list(lookup.names) == [one, two]
    lookup.answered([image])
    assert list(lookup.names) == [two]
    lookup.answered([])
    assert lookup.complete
    assert (lookup.items, lookup.missing) == ([image], {two})
