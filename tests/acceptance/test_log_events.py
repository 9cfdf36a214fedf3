"""Compares docs/logs.md with the code, and with the log of a run with many failures."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import pytest
from support.command import eventually, running
from support.embedded_aws import DropConnection, EmbeddedAWS, Fault, Garbage, Hang
from support.live import PARTNER, Live, living, populated
from support.logfmt import parse

import exporter
from exporter.demo import Call, Refuse

DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"
HEAD = ["time", "level", "logger", "msg"]
_LEVELS = {
    "debug": "debug",
    "info": "info",
    "noted": "info",
    "warning": "warn",
    "warned": "warn",
    "failed": "warn",
    "error": "error",
    "broken": "error",
}
_FOLDED = {"scope", "failing", "failures", "seconds"}
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", re.MULTILINE)


class Event(NamedTuple):
    level: str
    fields: frozenset[str]


def documented() -> dict[str, Event]:
    rows = _ROW.findall(DOCUMENT.read_text())
    found = {name: Event(level, frozenset(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}
    assert len(found) == len(rows)
    return found


def event_of(call: ast.Call) -> tuple[str, Event] | None:
    """The event that a call in the code logs, or None."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _LEVELS:
        return None
    method = call.func.attr
    # The registry or the scope may come first. A call without a constant passes on the event of a caller.
    names = (argument.value for argument in call.args if isinstance(argument, ast.Constant))
    name = next((name for name in names if isinstance(name, str)), None)
    if name is None:
        return None
    fields = {keyword.arg for keyword in call.keywords if keyword.arg}
    fields |= {"registry"} if method in ("noted", "warned") else set()
    fields |= {"error", "traceback"} if method == "broken" else set()
    fields |= _FOLDED if method == "failed" else set()
    return name, Event(_LEVELS[method], frozenset(fields))


def in_the_code() -> Iterator[tuple[str, Event]]:
    for source in Path(exporter.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and (found := event_of(node)):
                yield found


def test_the_document_has_each_event_with_its_level_and_fields() -> None:
    documented_events = documented()
    logged = dict(in_the_code())
    # It also has the fields of the failure.
    recovered = logged.pop("recovered")
    assert recovered.fields < documented_events.pop("recovered").fields
    assert logged == documented_events
    for name, event in in_the_code():
        assert name == "recovered" or documented_events[name] == event
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a",
        "a=",
        "=b",
        "a=b ",
        " a=b",
        "a=b  c=d",
        "a=b c",
        'a="b',
        'a="b"c=d',
        "a=b=c",
        'a=b"c',
        "a=1 a=2",
        "a=\x1b",
    ],
)
def test_the_reader_of_logfmt_is_strict(line: str) -> None:
    with pytest.raises(ValueError, match=r"column|Unterminated|Expecting"):
        parse(line)


def test_the_command_logs_an_image_that_fails(tmp_path: Path) -> None:
    with running(tmp_path, "--demo") as demo:
        lines = eventually(lambda: re.findall(r"^.*msg=replication_failed .*$", demo.log(), re.MULTILINE))
    fields = dict(parse(lines[0]))
    assert str(fields["image"]).startswith("team/worker:build-")
    assert str(fields["digest"]).startswith("sha256:")
    assert fields["destination"] == f"{PARTNER}/us-west-2"
    assert fields["failure_code"] == "DESTINATION_REGISTRY_ACCESS_DENIED"


READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    "logfmt": lambda line: dict(parse(line)),
    "json": json.loads,
}


@pytest.mark.parametrize("format_", READERS)
def test_a_run_with_many_failures_logs_few_lines_that_parse(format_: str) -> None:
    hostile = 'no "quotes", a=b\r\nno second line \x1b[31m \u202e'
    faults: Iterator[Fault | None] = cycle(
        [
            Refuse(400, "AccessDeniedException", hostile),
            Refuse(400, hostile, hostile),
            Refuse(500, "ServerException", hostile),
            Refuse(400, "ThrottlingException", hostile),
            Garbage(hostile.encode()),
            DropConnection(),
            Hang(0.05),
            None,
        ]
    )
    lock, failed = Lock(), 0

    def read(live: Live) -> list[dict[str, object]]:
        return [READERS[format_](line) for line in live.written()]

    def fault(call: Call) -> Fault | None:
        nonlocal failed
        if call.kind.account == PARTNER:
            return None
        with lock:
            failed += 1
            return next(faults)

    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        populated(aws)
        session = aws.session()
        with living(lambda: session, aws.endpoint_url, format_=format_) as live:
            eventually(lambda: len(live.success()) == 3, within=20)
            aws.fault = fault
            eventually(lambda: failed > 60, within=30)
            aws.fault = lambda _: None
            # A registry that is out of reach is probed every 30 s.
            eventually(lambda: any(line["msg"] == "recovered" for line in read(live)), within=60)
            lines = read(live)
    documented_events = documented()
    for line in lines:
        assert list(line)[:4] == HEAD
        event = documented_events[str(line["msg"])]
        assert line["level"] == event.level
        assert line.keys() - set(HEAD) <= event.fields
    failures = [line for line in lines if line["msg"] == "aws_request_failed"]
    assert len(failures) == len({(line["registry"], line["reason"]) for line in failures})
    ended = [line for line in lines if line["msg"] == "recovered"]
    assert {line["failure"] for line in ended} == {"aws_request_failed"}
    assert all(float(str(line["seconds"])) >= 0 for line in ended)
    assert 1 < len(failures) < failed / 10
