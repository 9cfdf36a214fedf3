"""Lines that parse back, and failures that are said once, now and then, and when they are over."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import logs

HOSTILE = 'he said "no"\n\tTraceback\r\n a=b \\ \x1b[31m \x7f \u2028 \u202e \udcff naïve 🐳'


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("exporter")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before
    logging.getLogger().setLevel(before[1])


def parse(line: str) -> dict[str, str]:
    """A logfmt line, by the grammar of go-logfmt."""
    fields = {}
    for key, bare, quoted in re.findall(r'([^\s="]+)=(?:([^\s="]+)|("(?:[^"\\]|\\.)*"))(?: |$)', line):
        assert key not in fields
        fields[key] = json.loads(quoted) if quoted else bare
    assert fields, line
    return fields


def logged(format_: str = "logfmt", level: str = "debug") -> tuple[io.StringIO, logs.Logger]:
    stream = io.StringIO()
    logs.setup(level, format_, stream)
    return stream, logs.get("poller")


class Masked:
    def __str__(self) -> str:
        return "<secret>"


def test_a_line_begins_as_prometheus_writes_it() -> None:
    stream, logger = logged()
    logger.info("listening", addresses="[::]:10042", targets=3, ok=True, line=None)
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info logger=poller msg=listening"
        r" addresses=\[::\]:10042 targets=3 ok=true\n",
        stream.getvalue(),
    )


def test_json_keeps_the_types_that_it_has() -> None:
    stream, logger = logged("json")
    logger.warning("slow", seconds=1.5, nan=float("nan"), targets=3, ok=False, key=Masked(), none=None)
    fields = json.loads(stream.getvalue())
    del fields["time"]
    assert fields == {
        "level": "warn",
        "logger": "poller",
        "msg": "slow",
        "seconds": 1.5,
        "nan": "nan",
        "targets": 3,
        "ok": False,
        "key": "<secret>",
    }


@pytest.mark.parametrize("value", [HOSTILE, "", " ", '"', "a=b", "\\", "\\n", "null", "…", "\x85"])
def test_whatever_comes_in_is_one_line_and_parses_back(value: str) -> None:
    for format_, read in (("logfmt", parse), ("json", json.loads)):
        stream, logger = logged(format_)
        logger.error("broke", error=value, after="x")
        assert stream.getvalue().splitlines() == [stream.getvalue()[:-1]]
        fields = read(stream.getvalue()[:-1])
        assert (fields["error"], fields["after"]) == (value, "x")


@given(st.text().filter(lambda text: "@" not in text))  # a password before it is masked
def test_any_text_parses_back(value: str) -> None:
    stream, logger = logged()
    logger.info("said", text=value)
    line = stream.getvalue()
    assert line.removesuffix("\n").isprintable()
    assert parse(line[:-1])["text"] == value


def test_fields_do_not_overwrite_the_head() -> None:
    stream, logger = logged("json")
    logger.info("read", msg="x", level=3)
    fields = json.loads(stream.getvalue())
    assert (fields["msg"], fields["msg_"], fields["level"], fields["level_"]) == ("read", "x", "info", 3)


@pytest.mark.parametrize("format_", logs.FORMATS)
def test_a_traceback_is_one_field_of_the_line(format_: str) -> None:
    stream, logger = logged(format_)
    try:
        int(HOSTILE)
    except ValueError as error:
        logger.broken("broke", error)
        logging.getLogger("botocore.hooks").warning("went %s", "wrong", exc_info=True)
    ours, theirs = stream.getvalue().split("\n")[:-1]
    read = parse if format_ == "logfmt" else json.loads
    assert read(ours)["traceback"].startswith("Traceback")
    assert read(theirs)["msg"] == "went wrong"
    assert read(theirs)["logger"] == "botocore.hooks"


def test_others_are_quiet_below_warning_and_one_line_above() -> None:
    stream, _ = logged()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("botocore").info("credentials found")
        logging.getLogger("urllib3").debug("new connection")
        logging.getLogger("urllib3").warning("two\nlines")
        logging.getLogger("urllib3").warning("%d arguments", "no")
        logging.getLogger("urllib3").critical("end")
        logging.captureWarnings(capture=True)
        warnings.warn("old Python", DeprecationWarning, stacklevel=1)
    lines = [parse(line) for line in stream.getvalue().splitlines()]
    assert [line["msg"] for line in lines[:3]] == ["two\nlines", "%d arguments ('no',)", "end"]
    assert [line["level"] for line in lines] == ["warn", "warn", "error", "warn"]
    assert "old Python" in lines[3]["msg"]


def test_what_libraries_repeat_is_folded_and_their_tracebacks_are_not_shown() -> None:
    stream, logger = logged(level="info")
    library = logging.getLogger("some.package")
    for period in ("advisory", "mandatory") * 500:
        error = ValueError("vault token s.PLANTED refused")
        library.warning("failed during %s refresh", period, exc_info=error)
    library.warning("another matter")
    logger.broken("broke", ValueError("ours"))
    logger.broken("broke", ValueError("ours"))
    lines = [parse(line) for line in stream.getvalue().splitlines()]
    assert [line["msg"] for line in lines] == [
        "failed during advisory refresh",
        "another matter",
        "broke",
        "broke",
    ]
    assert "traceback" not in lines[0]
    assert "PLANTED" not in stream.getvalue()
    assert "traceback" in lines[2]


def test_what_libraries_repeat_is_said_again_after_a_minute() -> None:
    clock = Clock()
    filter_ = logs.LibraryFilter(clock=clock)
    record = logging.LogRecord("urllib3", logging.WARNING, "", 0, "slow", None, None)
    said = []
    for _ in range(130):
        said.append(filter_.filter(record))
        clock.now += 1
    assert [second for second, let in enumerate(said) if let] == [0, 60, 120]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["a", "b", "c", "d"]),
        ("info", ["b", "c", "d"]),
        ("warn", ["c", "d"]),
        ("error", ["d"]),
    ],
)
def test_levels(level: str, events: list[str]) -> None:
    stream, logger = logged(level=level)
    logger.debug("a")
    logger.info("b")
    logger.warning("c")
    logger.error("d")
    assert [parse(line)["msg"] for line in stream.getvalue().splitlines()] == events


def test_a_lost_stream_is_no_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    stream, logger = logged()
    stream.close()
    logger.error("broke")
    assert capsys.readouterr().err == ""


# -- a log without a reader ---------------------------------------------------------------------


@dataclass
class Pipe:
    """What the exporter logs to, here as small as Linux has them."""

    reads: int
    writes: int

    def read(self, until: str) -> list[str]:
        text = ""
        while until not in text:
            text += os.read(self.reads, 65536).decode()
        return text.splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reads, writes = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    yield Pipe(reads, writes)
    os.close(reads)
    os.close(writes)


def behind(pipe: Pipe, dropped: Callable[[], None] = lambda: None) -> logs.BackgroundHandler:
    logs.setup("info", "logfmt", io.StringIO())
    handler = logs.BackgroundHandler(pipe.writes, dropped=dropped)
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    logging.basicConfig(handlers=[handler], force=True)
    return handler


def test_a_log_that_is_not_read_holds_up_nobody_and_says_what_it_lost(pipe: Pipe) -> None:
    dropped: list[None] = []
    handler = behind(pipe, lambda: dropped.append(None))
    logger = logs.get("main")
    for i in range(3000):
        logger.info("said", number=i)
    began = time.monotonic()
    handler.flush()
    assert time.monotonic() - began < 10
    lines = [parse(line) for line in pipe.read("log_lines_dropped")]
    assert dropped
    assert [int(line["number"]) for line in lines[:-1]] == list(range(3000 - len(dropped)))
    assert (lines[-1]["level"], lines[-1]["lines"]) == ("warn", str(len(dropped)))
    logger.info("said", number="after")
    handler.flush()
    assert parse(pipe.read("after")[-1])["number"] == "after"
    assert len(dropped) < 3000


def test_lines_arrive_in_order_before_the_end(pipe: Pipe) -> None:
    handler = behind(pipe)
    for i in range(20):
        logs.get("main").info("said", number=i)
    handler.flush()
    assert [parse(line)["number"] for line in pipe.read("number=19")] == [str(i) for i in range(20)]


def test_a_reader_that_left_is_no_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    dropped: list[None] = []
    reads, writes = os.pipe()
    os.close(reads)
    handler = behind(Pipe(reads, writes), lambda: dropped.append(None))
    logs.get("main").info("said")
    handler.flush()
    assert len(dropped) == 1
    assert capsys.readouterr().err == ""
    os.close(writes)


# -- folding -------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Refused:
    reason: str
    text: str = "ecr:DescribeImages: AccessDenied"

    def __str__(self) -> str:
        return self.text


class Story:
    """A log and a clock to tell it by."""

    def __init__(self) -> None:
        self._stream, logger = logged()
        self.clock = Clock()
        self.folds = logs.Folds(logger, clock=self.clock)
        self.journal = logs.Journal(logger, clock=self.clock)

    def lines(self) -> list[dict[str, str]]:
        """What was logged since the last look."""
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return [
            {k: v for k, v in parse(line).items() if k not in ("time", "logger")}
            for line in text.splitlines()
        ]

    def fail(self, scope: str = "a", *, key: str = "k") -> None:
        self.folds.failed(key, scope, "call_failed", error="boom")


@pytest.fixture
def story() -> Story:
    return Story()


def test_the_first_failure_is_said_at_once(story: Story) -> None:
    story.fail()
    assert story.lines() == [{"level": "warn", "msg": "call_failed", "error": "boom", "scope": "a"}]


def test_repetitions_are_counted_and_said_ever_more_rarely(story: Story) -> None:
    said = []
    for second in range(3 * 3600):
        story.clock.now = 1000.0 + second
        story.fail()
        said += [(second, line.get("failures")) for line in story.lines()]
    assert said == [
        (second, None if second == 0 else str(second + 1))
        for second in (0, 60, 180, 420, 900, 1860, 3780, 7380)
    ]


def test_recovery_is_said_with_count_and_duration(story: Story) -> None:
    story.fail()
    story.clock.now += 12.5
    story.fail()
    story.folds.recovered("k", "a")
    assert story.lines()[1:] == [
        {"level": "info", "msg": "recovered", "failure": "call_failed", "failures": "2", "seconds": "12.5"}
    ]


def test_a_key_fails_as_long_as_one_of_its_scopes_does(story: Story) -> None:
    story.fail("a")
    story.fail("b")
    story.folds.recovered("k", "a")
    assert [line["msg"] for line in story.lines()] == ["call_failed"]
    story.folds.recovered("k", "b")
    assert [line["msg"] for line in story.lines()] == ["recovered"]


def test_a_scope_that_joins_late_is_said_within_a_minute(story: Story) -> None:
    for _ in range(500):
        story.fail("old")
        story.clock.now += 1
    story.lines()
    story.fail("new")
    story.clock.now += 60
    story.folds.tick()
    (line,) = story.lines()
    assert (line["scope"], line["failing"]) == ("old, new", "2")


def test_at_most_five_scopes_are_named_the_newest(story: Story) -> None:
    for i in range(1000):
        story.fail(f"repository-{i}")
    story.clock.now += 60
    story.folds.tick()
    line = story.lines()[-1]
    assert line["scope"] == ", ".join(f"repository-{i}" for i in range(995, 1000))
    assert line["failing"] == "1000"


def test_what_comes_and_goes_takes_few_lines(story: Story) -> None:
    for _ in range(600):
        story.fail()
        story.folds.recovered("k", "a")
        story.clock.now += 1
    assert len(story.lines()) <= 20


def test_keys_do_not_know_each_other(story: Story) -> None:
    story.fail(key="one")
    story.fail(key="two")
    story.folds.recovered("one", "a")
    assert [line["msg"] for line in story.lines()] == ["call_failed", "call_failed", "recovered"]


def test_silence_is_kept_about_what_is_unknown_or_forgotten(story: Story) -> None:
    story.folds.recovered("k", "a")
    story.fail()
    story.folds.forget("k")
    story.folds.recovered("k", "a")
    assert len(story.lines()) == 1


def test_the_journal_folds_by_registry_and_reason(story: Story) -> None:
    journal = story.journal
    for repository in ("a", "b", "c"):
        journal.failed("prod", f"images {repository}", Refused("access_denied"))
    journal.failed("dr", "images a", Refused("access_denied"))
    assert [(line["registry"], line["reason"], line["error"]) for line in story.lines()] == [
        ("prod", "access_denied", "ecr:DescribeImages: AccessDenied"),
        ("dr", "access_denied", "ecr:DescribeImages: AccessDenied"),
    ]
    for repository in ("a", "b", "c"):
        journal.recovered("prod", f"images {repository}")
    assert [(line["msg"], line["registry"]) for line in story.lines()] == [("recovered", "prod")]


def test_a_new_reason_replaces_the_one_before_which_is_no_recovery(story: Story) -> None:
    story.journal.failed("prod", "rules", Refused("unavailable"))
    story.journal.failed("prod", "rules", Refused("access_denied"))
    story.journal.recovered("prod", "rules")
    assert [(line["msg"], line["reason"]) for line in story.lines()] == [
        ("aws_request_failed", "unavailable"),
        ("aws_request_failed", "access_denied"),
        ("recovered", "access_denied"),
    ]


def test_reasons_that_alternate_take_few_lines_and_one_recovery_ends_them(story: Story) -> None:
    for second in range(600):
        story.clock.now = 1000.0 + second
        story.journal.failed("prod", "rules", Refused(("unavailable", "throttled")[second % 2]))
    story.clock.now += 1
    story.journal.failed("prod", "rules", Refused("access_denied"))
    story.journal.failed("prod", "rules", Refused("throttled"))
    story.journal.recovered("prod", "rules")
    events = [line["msg"] for line in story.lines()]
    assert events[-1] == "recovered"
    assert events.count("recovered") == 1
    assert 3 <= len(events) <= 25


def test_a_reason_stays_while_others_fail_for_it(story: Story) -> None:
    for scope in ("rules", "images"):
        story.journal.failed("prod", scope, Refused("unavailable"))
    story.journal.failed("prod", "rules", Refused("access_denied"))
    story.journal.recovered("prod", "images")
    story.journal.recovered("prod", "rules")
    assert [(line["msg"], line["reason"]) for line in story.lines()] == [
        ("aws_request_failed", "unavailable"),
        ("aws_request_failed", "access_denied"),
        ("recovered", "unavailable"),
        ("recovered", "access_denied"),
    ]


def test_the_journal_forgets_a_registry(story: Story) -> None:
    story.journal.failed("prod", "rules", Refused("unavailable"))
    story.journal.forget("prod")
    story.journal.recovered("prod", "rules")
    story.journal.failed("prod", "rules", Refused("unavailable"))
    assert [line["msg"] for line in story.lines()] == ["aws_request_failed", "aws_request_failed"]


def test_the_journal_notes_events(story: Story) -> None:
    story.journal.noted("prod", "replication_rules_read", rules=2)
    assert story.lines() == [
        {"level": "info", "msg": "replication_rules_read", "registry": "prod", "rules": "2"}
    ]
