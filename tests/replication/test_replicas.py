"""What a look at a destination says of images: pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import IRELAND, OREGON, complete, digest_of

from exporter.replication.facts import ImageFacts
from exporter.replication.model import (
    Destination,
    Image,
    ImageState,
    Name,
    Replica,
    ReplicaState,
    Replication,
    Status,
)
from exporter.replication.replicas import Contents, looked, only_at, renamed, seen_at, settle

DIGEST, OTHER = digest_of("x"), digest_of("other")
V1, V2, BY_DIGEST = Name("v1", ""), Name("v2", ""), Name("", DIGEST)
NOTHING = Contents(everything=True)
MISSING = Replication(IRELAND, Status.MISSING)
FACTS = ImageFacts(DIGEST, (V1,), 1.0, 1.0)
PRESENT = Replica(IRELAND, ReplicaState.PRESENT, held=True)
ABSENT = Replica(IRELAND, ReplicaState.ABSENT, held=False)


def listing(*images: Image, everything: bool = True) -> Contents:
    return Contents(images, everything=everything)


@pytest.mark.parametrize(
    ("held", "name", "state", "digest_is_there"),
    [
        ([Image(DIGEST, ("v1",))], V1, "present", True),
        ([Image(DIGEST, ("v1", "v2"))], V1, "present", True),
        ([Image(DIGEST, ())], BY_DIGEST, "present", True),
        ([Image(DIGEST, ("v9",))], BY_DIGEST, "present", True),
        ([], V1, "absent", False),
        ([], BY_DIGEST, "absent", False),
        ([Image(OTHER, ("v2",))], V1, "absent", False),
        ([Image(DIGEST, ())], V1, "untagged", True),
        ([Image(DIGEST, ("v2",))], V1, "untagged", True),
        ([Image(OTHER, ("v1",))], V1, "other_image", False),
        ([Image(OTHER, ("v1",)), Image(DIGEST, ())], V1, "other_image", True),
        ([Image(OTHER, ("v1",), archived=True), Image(DIGEST, ())], V1, "other_image", True),
        ([Image(DIGEST, ("v1",), archived=True)], V1, "archived", True),
        ([Image(DIGEST, (), archived=True)], V1, "archived", True),
        ([Image(DIGEST, (), archived=True)], BY_DIGEST, "archived", True),
    ],
)
def test_the_state_of_a_copy(held: list[Image], name: Name, state: str, digest_is_there: bool) -> None:
    assert listing(*held).replica(DIGEST, name) == (state, digest_is_there)


def test_what_an_incomplete_listing_does_not_show_is_unknown() -> None:
    tagged = listing(Image(DIGEST, ("v1",)), Image(OTHER, ("v3",)), everything=False)
    assert tagged.replica(DIGEST, V1) == ("present", True)
    assert tagged.replica(DIGEST, V2) is None
    assert tagged.replica(digest_of("untagged?"), V1) is None
    assert tagged.replica(digest_of("untagged?"), Name("", digest_of("untagged?"))) is None


def test_a_look_up_tells_only_of_the_names_that_it_asked_for() -> None:
    asked = {V1, BY_DIGEST}
    contents = Contents([Image(OTHER, ("v1",))], everything=True, asked=asked)
    assert contents.replica(DIGEST, V1) == ("other_image", False)
    assert contents.replica(DIGEST, BY_DIGEST) == ("absent", False)
    assert contents.replica(DIGEST, V2) is None
    assert contents.replica(digest_of("third"), V1) is None


def test_images_with_equal_looks_share_one_object() -> None:
    one, other = (looked(replace(FACTS, digest=d), IRELAND, NOTHING) for d in (DIGEST, OTHER))
    assert one.replicas == ((ABSENT,),)
    assert one.replicas is other.replicas


def test_a_look_changes_nothing_else() -> None:
    here = listing(Image(DIGEST, ("v1",)))
    first = looked(replace(FACTS, names=(V1, V2)), IRELAND, here)
    untagged = Replica(IRELAND, ReplicaState.UNTAGGED, held=True)
    assert first.replicas == ((PRESENT,), (untagged,))
    assert looked(first, IRELAND, here) is first
    second = looked(first, OREGON, NOTHING)
    absent = Replica(OREGON, ReplicaState.ABSENT, held=False)
    assert second.replicas == ((PRESENT, absent), (untagged, absent))
    assert looked(second, OREGON, None) == first
    assert looked(looked(second, OREGON, None), IRELAND, None).replicas == ()
    assert looked(second, IRELAND, Contents((), everything=False)) is second, "the last word stays"


def test_names_that_stay_keep_what_was_seen() -> None:
    first = looked(FACTS, IRELAND, listing(Image(DIGEST, ("v1",))))
    assert renamed(first, (Name("v0", ""), V1), frozenset()).replicas == ((), (PRESENT,))
    assert renamed(first, (V2,), frozenset()).replicas == ()
    assert renamed(FACTS, (V1, V2), frozenset({OREGON})).required == {OREGON}


def test_what_was_seen_elsewhere_is_dropped() -> None:
    both = looked(looked(FACTS, IRELAND, NOTHING), OREGON, NOTHING)
    assert only_at(both, {IRELAND}).replicas == ((ABSENT,),)
    assert only_at(both, {IRELAND, OREGON}) is both
    assert only_at(both, ()).replicas == ()


@pytest.mark.parametrize(
    ("names", "contents", "expected", "settled"),
    [
        ((V1,), listing(Image(DIGEST, ("v1",))), {IRELAND}, True),
        ((V1,), listing(Image(DIGEST, ("v1",))), {IRELAND, OREGON}, False),
        ((V1, V2), listing(Image(DIGEST, ("v1",))), {IRELAND}, False),
        ((V1,), NOTHING, {IRELAND}, False),
        ((V1,), listing(Image(DIGEST, ("v1",))), set(), False),
    ],
)
def test_an_image_that_is_present_everywhere_need_not_be_asked_for(
    names: tuple[Name, ...], contents: Contents, expected: set[Destination], settled: bool
) -> None:
    image = looked(replace(FACTS, names=names), IRELAND, contents)
    after = settle(image, frozenset(expected), at=7.0)
    if settled:
        assert (after.replications, after.state, after.answered_at) == ((complete(),), "settled", 7.0)
    else:
        assert after is image
    assert after.confirmed is settled


def test_what_ecr_answered_is_not_settled_by_a_look() -> None:
    failed = Replication(IRELAND, Status.FAILED, "DENIED")
    image = replace(FACTS, replications=(failed,), state=ImageState.FAILED)
    seen = looked(image, IRELAND, listing(Image(DIGEST, ("v1",))))
    assert settle(seen, frozenset({IRELAND}), at=1.0) is seen
    assert seen.replications == (failed,)
    assert not seen.confirmed


@pytest.mark.parametrize(
    ("others", "state", "after"),
    [
        ((), ImageState.PENDING, ImageState.SETTLED),
        ((), ImageState.FAILED, ImageState.SETTLED),
        ((Replication(OREGON, Status.MISSING),), ImageState.PENDING, ImageState.PENDING),
        ((Replication(OREGON, Status.MISSING),), ImageState.FAILED, ImageState.FAILED),
        ((Replication(OREGON, Status.FAILED),), ImageState.PENDING, ImageState.FAILED),
    ],
)
def test_an_image_that_is_held_is_not_missing_there(
    others: tuple[Replication, ...], state: ImageState, after: ImageState
) -> None:
    before = replace(FACTS, replications=(MISSING, *others), state=state, replicas=((PRESENT,),))
    assert seen_at(before, IRELAND) == replace(before, replications=(complete(), *others), state=after)


@pytest.mark.parametrize("replications", [None, (), (Replication(IRELAND, Status.FAILED),), (complete(),)])
def test_what_is_not_missing_stays_as_it_is(replications: tuple[Replication, ...] | None) -> None:
    before = replace(FACTS, replications=replications, state=ImageState.PENDING, replicas=((PRESENT,),))
    assert seen_at(before, IRELAND) is before


def test_an_image_that_is_not_held_stays_missing() -> None:
    before = replace(FACTS, replications=(MISSING,), replicas=((ABSENT,),))
    assert seen_at(before, IRELAND) is before
