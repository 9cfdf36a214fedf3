"""Progress of a command on stderr: one live line on a terminal, elsewhere a line for each change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

from exporter.config.validators import format_duration
from exporter.redaction import redact

#: Returns to the start of the line and clears it.
_CLEAR = "\r\x1b[K"
#: The width of a terminal that does not tell it.
_COLUMNS = 80


def plain(text: str) -> str:
    """The text on one line, without secrets and control characters: parts of it come from AWS."""
    return redact("".join(c if c.isprintable() else " " for c in text))


def write(stream: TextIO | None, text: str) -> None:
    """Write the text if the stream takes it. What became of a command is in its exit code, too.

    Characters that the encoding of the stream does not have are written as escape sequences.
    """
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"  # a StringIO has none
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            # At its end, Python writes what is left, and fails if that is not possible.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def error_as_json(text: str, *, exit_code: int) -> str:
    """The line on stdout of a command that cannot begin."""
    return f"{json.dumps({'error': plain(text), 'exit_code': exit_code})}\n"


class Console:
    """Tells how a command goes on. `live`: the stream is a terminal that knows escape codes."""

    def __init__(self, stream: TextIO | None, *, live: bool) -> None:
        self._stream = stream
        self._live = live
        self._states: Mapping[str, str] = {}
        self._drawn = False

    def note(self, text: str) -> None:
        """Write a line that stays."""
        self._write(f"{self._cleared()}{plain(text)}\n")

    def show(self, states: Mapping[str, str]) -> None:
        """Tell the state of each thing. Off a terminal, only those that changed are written."""
        before, self._states = self._states, states
        if not self._live:
            for name, state in states.items():
                if before.get(name) != state:
                    self.note(f"{name}: {state}")

    def draw(self, text: str, *, seconds: float) -> None:
        """Draw the live line, after so many seconds of the command. Off a terminal, do nothing."""
        if self._live:
            line = plain(f"[{format_duration(int(seconds))}] {text}")[: self._columns() - 1]
            self._write(f"{_CLEAR}{line}")
            self._drawn = True

    def close(self) -> None:
        """Remove the live line."""
        self._write(self._cleared())

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno() if self._stream else 2).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _cleared(self) -> str:
        drawn, self._drawn = self._drawn, False
        return _CLEAR if drawn else ""

    def _write(self, text: str) -> None:
        write(self._stream, text)
