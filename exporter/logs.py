"""Writes one event a line to stderr, and folds repeated failures into few lines.

An event has a stable snake_case name and fields. A line begins with time, level, logger and msg, as in
Prometheus's own components. Line ends and other unprintable characters are escaped as in JSON, in logfmt too,
so an event never takes two lines.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partialmethod
from queue import Queue
from typing import Protocol, TextIO

from exporter.redaction import redacted

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_SHORT = {logging.WARNING: "warn", logging.CRITICAL: "error"}
LEVELS = tuple(_LEVELS)
FORMATS = ("logfmt", "json")

_ROOT = "exporter"
#: Seconds between two lines about one failure; the pause doubles up to the longest.
SHORTEST_PAUSE = 60.0
LONGEST_PAUSE = 3600.0
#: How many failing scopes a line names.
_NAMED = 5
#: Lines that wait while stderr is blocked. Further lines are dropped.
_WAITING = 1000
#: Seconds that the end of the process waits for these lines.
_FLUSH = 1.0


def setup(
    level: str,
    format: str,  # noqa: A002 - the flag's name
    stream: TextIO | None = None,
    *,
    dropped: Callable[[], None] = lambda: None,
) -> None:
    """Send all logs of the process to the stream; those of libraries from warnings on.

    Without a stream, a thread writes them to stderr, so that a blocked stderr blocks no other thread.
    `dropped` is called for each lost line. `level` is one of LEVELS, `format` one of FORMATS. May be called
    again. Raises RuntimeError if the system refuses the thread.
    """
    handler: logging.Handler
    if stream is None and sys.__stderr__ is not None:
        handler = BackgroundHandler(sys.__stderr__.fileno(), dropped=dropped)
    else:
        handler = logging.StreamHandler(stream)
    if level != "debug":
        handler.addFilter(LibraryFilter())
    handler.setFormatter(_Line(_json if format == "json" else _logfmt))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(_ROOT).setLevel(_LEVELS[level])
    logging.captureWarnings(capture=True)
    # A line that cannot be written is lost; its traceback would only be the next one.
    logging.raiseExceptions = False


def get(name: str) -> Logger:
    """The logger of a module."""
    return Logger(logging.getLogger(f"{_ROOT}.{name}"))


class Logger:
    """Writes events. A field that is None is left out."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def _write(self, level: int, event: str, /, **fields: object) -> None:
        self._logger.log(level, event, extra={"fields": fields})

    debug = partialmethod(_write, logging.DEBUG)
    info = partialmethod(_write, logging.INFO)
    warning = partialmethod(_write, logging.WARNING)
    error = partialmethod(_write, logging.ERROR)

    def broken(self, event: str, error: BaseException, /, **fields: object) -> None:
        """Log an unexpected error with its traceback."""
        self._logger.error(event, exc_info=error, extra={"fields": {"error": repr(error), **fields}})


# -- the writer ----------------------------------------------------------------------------------


class BackgroundHandler(logging.Handler):
    """Writes lines in order from a thread of its own. A caller never waits.

    It writes to the descriptor, because Python aborts at its end if a thread holds the lock of `sys.stderr`.
    If too many lines wait, further lines are dropped until all waiting lines are written. One line then gives
    their number.
    """

    def __init__(self, descriptor: int, *, dropped: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = dropped
        self._lines: Queue[bytes] = Queue(_WAITING)
        #: Dropped lines that no line has counted yet.
        self._lost = 0
        #: Guards it. The handler's own lock does not, because logging holds that one while it flushes.
        self._counting = threading.Lock()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Any thread."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        with self._counting:
            if not self._lost and not self._lines.full():
                self._lines.put_nowait(line)
                return
            self._lost += 1
        self._dropped()

    def flush(self) -> None:
        """Wait until all lines are written, for at most one second."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH)

    def _write_all(self) -> None:
        while True:
            self._write(self._lines.get())
            self._lines.task_done()
            with self._counting:
                lost = self._lost if self._lines.empty() else 0
                self._lost -= lost
            if lost:
                get("log").warning("log_lines_dropped", lines=lost)

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            self._dropped()


class LibraryFilter(logging.Filter):
    """Lets each message of a library through at most once a minute, without its traceback.

    botocore logs a traceback for each failed refresh of credentials. It quotes the output of a credential
    process. The journal logs the failed calls.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        #: When each message was last logged, by logger and format string. Needs no lock: at worst a message
        #: appears twice.
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == _ROOT:
            return True
        now = self._clock()
        key = record.name, str(record.msg)
        if now - self._said.get(key, -math.inf) < SHORTEST_PAUSE:
            return False
        if len(self._said) >= _WAITING:
            self._said.clear()
        self._said[key] = now
        record.exc_info = record.exc_text = None
        return True


# -- lines ---------------------------------------------------------------------------------------


class _Line(logging.Formatter):
    def __init__(self, render: Callable[[Mapping[str, object]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),
            "level": _SHORT.get(record.levelno, record.levelname.lower()),
            "logger": record.name.removeprefix(f"{_ROOT}."),
            "msg": _message(record),
        }
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0]:
            fields["traceback"] = self.formatException(record.exc_info)
        for key, value in fields.items():
            if value is not None:
                line[f"{key}_" if key in line else key] = value
        return self._render({key: redacted(value) for key, value in line.items()})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - other people's format strings
        return f"{record.msg} {record.args}"


def _logfmt(fields: Mapping[str, object]) -> str:
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in fields.items())


def _logfmt_value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    bare = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if bare else _json(text)


def _json(value: object) -> str:
    """As JSON. All becomes ASCII if a character could break the line or a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


# -- folding -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fold:
    """One failure and its repetitions. Times are monotonic seconds."""

    event: str
    fields: Mapping[str, object]
    since: float
    said_at: float
    #: Whether the last line about it says that it fails.
    said: bool = False
    pause: float = SHORTEST_PAUSE
    failures: int = 0
    unsaid: int = 0
    #: The scopes that fail now, in the order of their first failure; `joined`: one of them is new.
    scopes: dict[str, None] = field(default_factory=dict)
    joined: bool = False

    def restart(self) -> None:
        """Begin again with the next failure."""
        self.said, self.pause, self.failures, self.unsaid = False, SHORTEST_PAUSE, 0, 0

    def due_at(self) -> float:
        return self.said_at + (self.pause if self.said and not self.joined else SHORTEST_PAUSE)


class Folds:
    """Folds repeated failures. Not thread-safe.

    The first failure of a key is logged at once. Reminders with the count follow, first after a minute, then
    at doubling pauses. One line says that it is over. A key fails as long as one of its scopes fails. A key
    that fails again within a minute is logged again with the next reminder.
    """

    def __init__(self, logger: Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger
        self._clock = clock
        self._folds: dict[Hashable, _Fold] = {}

    def failed(
        self, key: Hashable, scope: str, event: str, instead_of: Hashable = None, /, **fields: object
    ) -> None:
        """Record a failure. The fields appear in the next line about it.

        `instead_of` is the key under which the scope failed before. That it fails otherwise is no recovery.
        """
        now = self._clock()
        ended = self._ended(instead_of, scope)
        fold = self._folds.get(key)
        if fold is None:
            fold = self._folds[key] = _Fold(event, fields, since=now, said_at=now - SHORTEST_PAUSE)
        if not fold.failures:
            fold.since = now
        if ended:
            ended.restart()
            fold.said = True
        fold.fields = fields
        fold.failures += 1
        fold.unsaid += 1
        fold.joined = fold.joined or scope not in fold.scopes
        fold.scopes[scope] = None
        self.tick()

    def recovered(self, key: Hashable, scope: str) -> None:
        """Record that the scope works. It need not have failed before."""
        if ended := self._ended(key, scope):
            self._log_recovered(ended)
        self.tick()

    def _ended(self, key: Hashable, scope: str) -> _Fold | None:
        """Take the scope out of the key; the failure of which the log must tell the end now, if any."""
        fold = self._folds.get(key)
        if fold is None or scope not in fold.scopes:
            return None
        del fold.scopes[scope]
        return None if fold.scopes or not fold.said else fold

    def forget(self, key: Hashable) -> None:
        """Drop the key without a line, because it is no longer watched."""
        self._folds.pop(key, None)

    def tick(self) -> None:
        """Log the reminders that are due. Call it regularly; the other methods do so too."""
        now = self._clock()
        for key, fold in list(self._folds.items()):
            if now < fold.due_at():
                continue
            if not fold.scopes:
                del self._folds[key]
            elif fold.unsaid:
                self._log_failing(fold, now)

    def _log_failing(self, fold: _Fold, now: float) -> None:
        fields = {**fold.fields, "scope": ", ".join(list(fold.scopes)[-_NAMED:])}
        if fold.failures > 1:
            fields |= {
                "failing": len(fold.scopes),
                "failures": fold.failures,
                "seconds": round(now - fold.since, 1),
            }
        self._log.warning(fold.event, **fields)
        if not fold.said:
            fold.pause = SHORTEST_PAUSE
        elif not fold.joined:
            fold.pause = min(2 * fold.pause, LONGEST_PAUSE)
        fold.said, fold.said_at, fold.unsaid, fold.joined = True, now, 0, False

    def _log_recovered(self, fold: _Fold) -> None:
        now = self._clock()
        fields = {key: value for key, value in fold.fields.items() if key != "error"}
        fields |= {"failures": fold.failures, "seconds": round(now - fold.since, 1)}
        self._log.info("recovered", failure=fold.event, **fields)
        fold.said_at = now
        fold.restart()


class Failure(Protocol):
    """An error of AWS. Its text goes to the log."""

    @property
    def reason(self) -> str: ...


class Journal:
    """The log of all registries. Failures with the same registry and reason are folded."""

    def __init__(self, logger: Logger | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger or get("poller")
        self._folds = Folds(self._log, clock=clock)
        self._reasons: dict[tuple[str, str], str] = {}

    def failed(self, registry: str, scope: object, error: Failure) -> None:
        """Record a failure. A scope has one reason at a time, and another one replaces it."""
        key = (registry, str(scope))
        before = self._reasons.get(key, error.reason)
        self._reasons[key] = error.reason
        self._folds.failed(
            (registry, error.reason),
            str(scope),
            "aws_request_failed",
            (registry, before) if before != error.reason else None,
            registry=registry,
            reason=error.reason,
            error=str(error),
        )

    def recovered(self, registry: str, scope: object) -> None:
        """Record that the scope works."""
        reason = self._reasons.pop((registry, str(scope)), None)
        if reason is not None:
            self._folds.recovered((registry, reason), str(scope))

    def warned(self, registry: str, event: str, **fields: object) -> None:
        """Log a warning that is not folded."""
        self._log.warning(event, registry=registry, **fields)
        self._folds.tick()

    def noted(self, registry: str, event: str, **fields: object) -> None:
        """Log an event of level info."""
        self._log.info(event, registry=registry, **fields)
        self._folds.tick()

    def forget(self, registry: str) -> None:
        """Drop all failures of a registry that is no longer watched, without a line."""
        for key in [key for key in self._reasons if key[0] == registry]:
            self._folds.forget((registry, self._reasons.pop(key)))

    def tick(self) -> None:
        """Log the reminders that are due."""
        self._folds.tick()
