"""What is settled survives a restart, and nothing else comes out of a state file, whatever happens to it."""

from __future__ import annotations

import gzip
import json
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import HOME, IRELAND, OREGON, FakeClock, FakeECR, Rig, digest_of, refusal

from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Reason, Replication, Rule, Source, Status
from exporter.replication.state_file import (
    Repositories,
    Settled,
    StateCache,
    StateFileWriter,
    Unfinished,
    UnusableError,
    read,
    write,
)
from exporter.replication.state_file import (
    remembered as remembered_images,
)
from exporter.replication.store import Store

STATUS = "DescribeImageReplicationStatus"
WORDS = st.text(max_size=5)
DESTINATIONS = st.builds(Destination, WORDS, WORDS)
TIMES = st.floats(0, 4e9)
STATES = st.lists(st.tuples(DESTINATIONS, WORDS, TIMES), min_size=1, max_size=2).map(tuple)
IMAGES = st.dictionaries(
    WORDS,
    st.builds(Settled, st.none() | TIMES, TIMES, st.lists(DESTINATIONS, max_size=2).map(tuple))
    | st.builds(Unfinished, st.none() | TIMES, TIMES, STATES),
    min_size=1,
    max_size=4,
)
REPOSITORIES = st.dictionaries(
    st.tuples(st.builds(Source, WORDS, WORDS), WORDS), IMAGES, min_size=1, max_size=3
)
SAMPLE = {(HOME, "team/app"): {digest_of(str(n)): Settled(1.8e9, 1.8e9 + n, (IRELAND,)) for n in range(3)}}


@dataclass
class Tally:
    """What the metrics are told."""

    written_at: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    moved: int = 0

    def state_written(self, *, at: float) -> None:
        self.written_at.append(at)

    def state_failed(self, operation: str) -> None:
        self.failed.append(operation)

    def state_moved(self) -> None:
        self.moved += 1


def settings(state_file: object = None, **knobs: object) -> Settings:
    base: dict[str, object] = {
        "targets": (TargetSettings(repository="*"),),
        "registries": (RegistrySettings(),),
        "requests_per_second": 100.0,
        "state_file": str(state_file) if state_file else None,
    }
    return Settings(**base | knobs)  # type: ignore[arg-type]


def state_file_writer(path: Path, store: Store | None = None, tally: Tally | None = None) -> StateFileWriter:
    return StateFileWriter(
        settings=settings(path), store=store or Store(), clock=FakeClock(), watcher=tally or Tally()
    )


# -- the file ------------------------------------------------------------------------------------


@given(REPOSITORIES)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, repositories: Repositories
) -> None:
    path = str(tmp_path_factory.mktemp("state") / "state")
    write(path, repositories.items())
    assert read(path) == repositories


def test_many_images_are_written_in_lines_of_bounded_length(tmp_path: Path) -> None:
    images = {digest_of(str(n)): Settled(1.8e9, 1.8e9, (IRELAND,)) for n in range(2500)}
    write(str(tmp_path / "state"), [((HOME, "team/app"), images)])
    assert read(str(tmp_path / "state"))[HOME, "team/app"] == images
    with gzip.open(tmp_path / "state") as file:
        assert len(file.readlines()) == 1 + 3


def test_no_file_is_a_cold_start(tmp_path: Path) -> None:
    assert read(str(tmp_path / "state")) == {}


def test_a_place_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"there is no directory {tmp_path}/nowhere to keep it in"):
        read(f"{tmp_path}/nowhere/state")


def test_a_byte_that_changed_is_noticed(tmp_path: Path) -> None:
    """Every byte, but for those of the header that gzip does not look at: time, flags, system."""
    path = tmp_path / "state"
    write(str(path), SAMPLE.items())
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(bytes(b ^ (0x55 if i == position else 0) for i, b in enumerate(whole)))
        try:
            found = read(str(path))
        except UnusableError:
            continue
        assert found == SAMPLE


def test_a_file_that_ends_early_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(str(path), SAMPLE.items())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableError):
            read(str(path))


HEAD = b'{"format":"ecr-replication-exporter state","version":3}\n'
LINE: dict[str, object] = {
    "source": ["1", "us-east-1"],
    "repository": "team/app",
    "complete": [],
    "images": {"sha256:0": [None, 1.0]},
}


def packed(text: bytes) -> bytes:
    """The same at any time of day."""
    return gzip.compress(text, mtime=0)


CHANGES: list[dict[str, object]] = [
    {"source": ["1", 7]},
    {"images": []},
    {"images": {"sha256:0": [None]}},
    {"images": {"sha256:0": [None, float("nan")]}},
    {"images": {"sha256:0": ["yesterday", 1.0]}},
    {"complete": [["eu-west-1"]]},
    {"complete": 3},
    {"unfinished": [[["eu-west-1", "1"], "MISSING"]]},
    {"unfinished": [["eu-west-1", "MISSING", 1.0]]},
    {"repository": None},
    {"images": {"sha256:0": [None, 10**400]}},
]


def test_the_line_that_the_changes_are_made_to_is_good(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(packed(HEAD + json.dumps(LINE).encode()))
    assert read(str(path)) == {(Source("1", "us-east-1"), "team/app"): {"sha256:0": Settled(None, 1.0, ())}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"just some text", "it is damaged, or not a state file"),
        (packed(b"just some text\n"), "it is not a state file"),
        (packed(b'{"format": "a shopping list"}\n'), "it is not a state file"),
        (packed(HEAD.replace(b"3", b"2")), "or one of another version"),
        (packed(HEAD + b"\xff\xfe\n"), "a line of it is not that of a state file"),
        (packed(HEAD + b"[]\n"), "a line of it is not that of a state file"),
        (packed(HEAD + b"[" * 100_000), "a line of it is not that of a state file"),
        *(
            (packed(HEAD + json.dumps(LINE | change).encode()), "a line of it is not that of a state file")
            for change in CHANGES
        ),
    ],
)
def test_what_is_no_state_file_is_said_to_be_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(UnusableError, match=complaint):
        read(str(path))


def test_a_writer_that_is_killed_leaves_the_last_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(str(path), SAMPLE.items())
    (tmp_path / f"state.{socket.gethostname()}-{os.getpid()}.new").write_bytes(b"half of")
    assert read(str(path)) == SAMPLE
    write(str(path), SAMPLE.items())
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


# -- its state_file_writer ----------------------------------------------------------------------------------


def test_somebody_elses_file_is_moved_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("do not lose this")
    tally = Tally()
    kept = state_file_writer(path, tally=tally)
    assert (tally.failed, len(kept.memory)) == (["read"], 0)
    kept.write()
    assert read(str(path)) == {}
    (moved,) = tmp_path.glob("notes.unusable-*")
    assert moved.read_text() == "do not lose this"
    assert len(tally.written_at) == 1


def test_a_reload_to_somebody_elses_file_does_not_lose_it_either(tmp_path: Path) -> None:
    tally = Tally()
    kept = state_file_writer(tmp_path / "state", tally=tally)
    (tmp_path / "notes").write_text("do not lose this")
    kept.configure(settings(tmp_path / "notes"))
    kept.configure(settings(tmp_path / "notes"))
    assert tally.moved == 1
    kept.write()
    (moved,) = tmp_path.glob("notes.unusable-*")
    assert moved.read_text() == "do not lose this"
    assert read(str(tmp_path / "notes")) == {}


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        tally = Tally()
        state_file_writer(tmp_path / name, tally=tally).write()
        assert tally == Tally([], ["read", "write"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume" / "state")
    state_file_writer(tmp_path / "link").write()
    assert (tmp_path / "link").is_symlink()
    assert read(str(tmp_path / "volume" / "state")) == {}


def test_a_writing_that_fails_leaves_the_last_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(str(path), SAMPLE.items())
    broken = {(HOME, "team/app"): {"sha256:0": Settled(None, 1.0, object())}}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="complete"):
        write(str(path), broken.items())
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert read(str(path)) == SAMPLE


def test_a_place_that_cannot_be_written_is_told_and_harmless(tmp_path: Path) -> None:
    tally = Tally()
    state_file_writer(tmp_path / "no" / "such" / "place", tally=tally).write()
    assert tally == Tally([], ["read", "write"])


def test_without_a_state_file_nothing_is_written(tmp_path: Path) -> None:
    tally = Tally()
    StateFileWriter(settings=settings(), store=Store(), clock=FakeClock(), watcher=tally).write()
    assert (tally, list(tmp_path.iterdir())) == (Tally(), [])


def test_what_no_repository_took_yet_is_kept_while_it_is_of_use(tmp_path: Path) -> None:
    path = tmp_path / "state"
    now = FakeClock().time()
    write(
        str(path),
        [
            ((HOME, "new"), {"sha256:1": Settled(None, now - 3600, ())}),
            ((HOME, "old"), {"sha256:2": Settled(None, now - 8 * 3600, ())}),
        ],
    )
    state_file_writer(path).write()
    assert [repository for _, repository in read(str(path))] == ["new"]


def test_a_repository_that_is_listed_during_a_write_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(str(path), SAMPLE.items())

    class ListedMeanwhile(Store):
        def listed_images(self) -> dict[tuple[Source, str], tuple[ImageFacts, ...]]:
            before_the_listing = super().listed_images()
            kept.memory.forget(HOME, "team/app")
            return before_the_listing

    clock = FakeClock(wall_ahead=1.8e9)
    kept = StateFileWriter(settings=settings(path), store=ListedMeanwhile(), clock=clock, watcher=Tally())
    kept.write()
    assert read(str(path)) == SAMPLE


def test_it_is_written_in_the_end(tmp_path: Path) -> None:
    kept = state_file_writer(tmp_path / "state")
    kept.start()
    kept.stop()
    kept.join(30)
    assert read(str(tmp_path / "state")) == {}


# -- recalling -----------------------------------------------------------------------------------

ANSWERED = 1_000.0 + FakeClock().wall_ahead
IMAGE = ImageFacts("sha256:0", (), ANSWERED - 60, ANSWERED - 60)
SETTLED = Settled(ANSWERED - 60, ANSWERED, (OREGON, IRELAND))


def recalled(seconds: float, image: ImageFacts = IMAGE, memory: Settled = SETTLED) -> ImageFacts:
    clock = FakeClock(now=5.0, wall_ahead=ANSWERED + seconds - 5.0)
    return memory.recall(image, clock=clock, expected=frozenset(), settled_interval=3600, stale_after=600)


def test_what_is_recalled_is_as_old_as_it_is() -> None:
    image = recalled(100.0)
    assert image.replications == (
        Replication(IRELAND, Status.COMPLETE),
        Replication(OREGON, Status.COMPLETE),
    )
    assert (image.state, image.answered_at, image.good_until) == (ImageState.SETTLED, -95.0, 4105.0)


def test_images_with_equal_answers_share_them() -> None:
    other = Settled(ANSWERED - 60, ANSWERED, (IRELAND, OREGON))
    assert recalled(100.0).replications is recalled(100.0, memory=other).replications


@pytest.mark.parametrize("seconds", [-1.0, 4201.0])
def test_an_answer_that_is_too_old_or_of_the_future_is_not_recalled(seconds: float) -> None:
    assert recalled(seconds) is IMAGE


def test_an_image_that_was_replicated_anew_is_not_recalled() -> None:
    restored = replace(IMAGE, replicated_from=ANSWERED + 1)
    assert recalled(100.0, restored) is restored


# -- the engine, before and after ----------------------------------------------------------------


def world(images: int = 20) -> FakeECR:
    ecr = FakeECR(page_size=100)
    for number in range(images):
        digest = ecr.push("team/app", f"v{number}", at=1.8e9)
        ecr.report("team/app", digest, Replication(IRELAND, Status.COMPLETE))
    return ecr


def remembered(rig: Rig) -> StateCache:
    return StateCache(remembered_images(rig.store, rig.clock))


def restarted(before: Rig, ecr: FakeECR, *, after: float, **knobs: object) -> Rig:
    """The exporter, so many seconds after another one stopped; its monotonic clock began again."""
    ecr.calls.clear()
    clock = FakeClock(now=7.0, wall_ahead=before.clock.time() + after - 7.0)
    return Rig(settings(**knobs), ecr, memory=remembered(before), clock=clock)


def started(ecr: FakeECR, **knobs: object) -> Rig:
    rig = Rig(settings(**knobs), ecr)
    rig.run(100)
    return rig


def test_settled_images_come_back_after_the_listing_alone() -> None:
    ecr = world()
    before = started(ecr)
    assert ecr.calls[STATUS] == 20
    rig = restarted(before, ecr, after=600)
    rig.run(100)
    assert rig.states() == before.states()
    assert rig.target("*").success is True
    assert ecr.calls[STATUS] == 0


def test_they_are_asked_again_when_they_would_have_been() -> None:
    ecr = world()
    rig = restarted(started(ecr, settled_interval=7200.0), ecr, after=600, settled_interval=7200.0)
    rig.run(6300)
    assert ecr.calls[STATUS] == 0
    rig.run(300)
    assert ecr.calls[STATUS] == 20


def test_what_was_settled_too_long_ago_is_asked_at_once() -> None:
    ecr = world()
    rig = restarted(started(ecr), ecr, after=8 * 3600)
    rig.run(10)
    assert ecr.calls[STATUS] == 20


def test_other_rules_make_all_of_it_worth_asking() -> None:
    ecr = world()
    before = started(ecr)
    ecr.rules = (Rule((IRELAND, OREGON)),)
    rig = restarted(before, ecr, after=600)
    rig.run(10)
    assert ecr.calls[STATUS] == 20
    assert {state for states in rig.states().values() for state in states.values()} == {"COMPLETE", "MISSING"}


def test_an_image_that_was_not_asked_since_the_rules_changed_is_asked_after_the_restart() -> None:
    """It still counts as settled when the file is written, under the new rules."""
    ecr = world()
    before = started(ecr, requests_per_second=0.5)
    before.run(200)
    ecr.rules = (Rule((IRELAND, OREGON)),)
    before.run(70)
    assert 20 < ecr.calls[STATUS] < 40
    rig = restarted(before, ecr, after=60)
    rig.run(10)
    assert {s for states in rig.states().values() for s in states.values()} == {"COMPLETE", "MISSING"}
    assert len([s for s in rig.states().values() if s[OREGON] == "MISSING"]) == 20


def test_only_what_is_settled_is_remembered() -> None:
    ecr = world()
    failed = ecr.push("team/app", "broken", at=1.8e9)
    ecr.report("team/app", failed, Replication(IRELAND, Status.FAILED, "DENIED"))
    rig = restarted(started(ecr), ecr, after=1)
    rig.run(10)
    assert ecr.calls[STATUS] == 1
    assert (STATUS, "team/app", failed) in ecr.log[-10:]


def since(rig: Rig) -> dict[str, dict[Destination, float]]:
    """Since when each image is in each of its unfinished states, by digest."""
    return {
        image.digest: {state.destination: state.at for state in image.since if state.shown}
        for registry in rig.snapshot().registries
        for _, images in registry.repositories
        for image in images
    }


def test_since_when_an_image_is_unfinished_survives_restarts() -> None:
    ecr = world(2)
    failed = ecr.push("team/app", "broken", at=1.8e9)
    ecr.report("team/app", failed, Replication(IRELAND, Status.FAILED, "DENIED"))
    missing = ecr.push("team/app", "missing", at=1.8e9)
    rig = started(ecr)
    before = since(rig)
    assert before[failed].keys() == before[missing].keys() == {IRELAND}
    assert sum(map(len, before.values())) == 2
    for after in (60, 3 * 86400, 1):
        rig = restarted(rig, ecr, after=after)
        rig.run(100)
        assert since(rig) == before
    ecr.report("team/app", failed, Replication(IRELAND, Status.IN_PROGRESS))
    rig = restarted(rig, ecr, after=60)
    rig.run(100)
    assert since(rig)[missing] == before[missing]
    assert rig.clock.time() - since(rig)[failed][IRELAND] <= 100


def test_since_is_not_shown_before_ecr_reports_the_state_again_and_survives_another_restart() -> None:
    ecr = world(1)
    missing = ecr.push("team/app", "missing", at=1.8e9)
    first = started(ecr)
    ecr.fault = lambda operation, _: refusal(Reason.THROTTLED) if operation == STATUS else None
    second = restarted(first, ecr, after=60)
    second.run(100)
    assert since(second)[missing] == {}
    ecr.fault = lambda *_: None
    third = restarted(second, ecr, after=60)
    third.run(100)
    assert since(third)[missing] == since(first)[missing]


def test_an_image_that_was_pushed_again_or_a_clock_that_was_set_back_gives_a_new_time() -> None:
    image = ImageFacts("sha256:0", (), 5.0, 5.0)
    known = Unfinished(5.0, ANSWERED, ((IRELAND, "FAILED", ANSWERED),))
    clock = FakeClock(now=5.0, wall_ahead=ANSWERED + 60 - 5.0)
    (kept,) = known.recall(image, clock=clock, expected=frozenset(), settled_interval=1, stale_after=1).since
    assert kept[:3] == (IRELAND, "FAILED", ANSWERED)
    again = replace(image, replicated_from=6.0)
    assert known.recall(again, clock=clock, expected=frozenset(), settled_interval=1, stale_after=1) is again
    clock = FakeClock(now=5.0, wall_ahead=ANSWERED - 60 - 5.0)
    assert (
        known.recall(image, clock=clock, expected=frozenset(), settled_interval=1, stale_after=1).since == ()
    )


def test_an_image_that_was_deleted_meanwhile_does_not_come_back() -> None:
    ecr = world(2)
    before = started(ecr)
    ecr.repositories["team/app"].popitem()
    rig = restarted(before, ecr, after=1)
    rig.run(10)
    assert len(rig.states()) == 1


def test_an_outage_at_the_start_forgets_nothing() -> None:
    ecr = world()
    before = started(ecr)
    rig = restarted(before, ecr, after=1)
    assert remembered(rig).rest() == {}
    assert len(rig.memory) == 20


@given(st.integers(0, 2**32), st.floats(-1e6, 1e6))
def test_a_restart_never_tells_anything_false(seed: int, after: float) -> None:
    """Any change while no exporter ran, and any time of the clocks."""
    random = Random(seed)
    ecr = world(6)
    before = started(ecr)
    for digest in list(ecr.repositories["team/app"]):
        match random.randrange(3):
            case 0:
                del ecr.repositories["team/app"][digest]
            case 1:
                image = ecr.repositories["team/app"][digest]
                again = before.clock.time() + random.random()
                ecr.repositories["team/app"][digest] = replace(image, pushed_at=again)
                ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "DENIED"))
    rig = restarted(before, ecr, after=after)
    for _ in range(20):
        rig.run(1)
        for (repository, tag, _), states in rig.states().items():
            (digest,) = (i.digest for i in ecr.repositories[repository].values() if tag in i.tags)
            truth = {r.destination: str(r.status) for r in ecr.statuses[repository, digest]}
            assert states in ({}, truth)
