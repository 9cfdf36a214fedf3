"""A strict reader of logfmt: a line is key=value pairs with one space between them."""

from __future__ import annotations

import json


def parse(line: str) -> dict[str, str]:
    """The fields of one line. Raises ValueError if it is not logfmt or has a key twice."""
    fields: dict[str, str] = {}
    position = 0
    while True:
        equals = line.find("=", position)
        key = line[position:equals]
        if equals < 0 or not key or not key.isprintable() or set(key) & set(' "') or key in fields:
            raise ValueError(f"no key at column {position}: {line!r}")
        fields[key], position = _value(line, equals + 1)
        if position == len(line):
            return fields
        if line[position] != " ":
            raise ValueError(f"no space at column {position}: {line!r}")
        position += 1


def _value(line: str, start: int) -> tuple[str, int]:
    """The value at `start`, and the position after it."""
    if line[start : start + 1] == '"':
        text, end = json.JSONDecoder().raw_decode(line, start)
        return text, end
    end = line.find(" ", start)
    end = len(line) if end < 0 else end
    bare = line[start:end]
    if not bare or set(bare) & set('"=') or not bare.isprintable():
        raise ValueError(f"no value at column {start}: {line!r}")
    return bare, end
