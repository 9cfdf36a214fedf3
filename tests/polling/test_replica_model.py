"""What is shown of copies, against a world that changes at random."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.copies import HOUR, copied, looking, replicas, world
from support.fakes import FakeECR, Rig, refusal

from exporter.aws.errors import ECRError
from exporter.replication.model import Reason

REPOSITORY = "team/app"
KEPT = ("kept-1", "kept-2")
CHANGED = ("a", "b", "c", "d")


def change(there: FakeECR, tag: str, digest: str, random: Random) -> None:
    """Change the copy of an image at the destination."""
    images = there.repositories[REPOSITORY]
    image = images.get(digest)
    match random.choice(("delete", "push", "untag", "archive", "move")):
        case "delete":
            images.pop(digest, None)
        case "push":
            images.pop(digest, None)
            there.push(REPOSITORY, tag, at=1.8e9, digest=digest)
        case "untag" if image:
            images[digest] = replace(image, tags=())
        case "archive" if image:
            images[digest] = replace(image, archived=not image.archived)
        case "move":
            there.push(REPOSITORY, tag, at=1.8e9)


def really(there: FakeECR, tag: str, digest: str) -> str:
    """The state of the copy, from the definition."""
    images = there.repositories[REPOSITORY]
    image = images.get(digest)
    holder = next((other.digest for other in images.values() if tag in other.tags), None)
    if image and holder == digest:
        return "archived" if image.archived else "present"
    if holder:
        return "other_image"
    if not image:
        return "absent"
    return "archived" if image.archived else "untagged"


@hypothesis_settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.sampled_from([2, 1000]))
def test_after_a_quiet_time_what_is_shown_is_what_is_there(random: Random, page_size: int) -> None:
    home, there = world()
    digests = {tag: copied(home, there, tag) for tag in (*KEPT, *CHANGED)}
    there.page_size = page_size
    failing = False

    def fault(*_: str) -> ECRError | None:
        if failing and random.random() < 0.5:
            return refusal(random.choice((Reason.UNAVAILABLE, Reason.THROTTLED, Reason.ACCESS_DENIED)))
        return None

    there.fault = fault
    rig = Rig(looking(discovery_interval=300.0), home, there)
    for _ in range(8):
        failing = random.random() < 0.5
        tag = random.choice(CHANGED)
        change(there, tag, digests[tag], random)
        rig.run(random.uniform(1, 1200))
        assert {replicas(rig)[tag].get("eu-west-1", "present") for tag in KEPT} == {"present"}
    failing = False
    rig.run(HOUR + 2 * 900)  # why a copy is not present is looked at once an hour
    shown = {tag: states.get("eu-west-1") for tag, states in replicas(rig).items()}
    assert shown == {tag: really(there, tag, digest) for tag, digest in digests.items()}
    there.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig.run(HOUR + 2 * 900)
    assert set(map(str, replicas(rig).values())) == {"{}"}, "what cannot be read is not shown"
