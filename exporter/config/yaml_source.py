"""From YAML text to plain values, and every problem with file, line and path.

One pass over the parser's events builds the values and remembers the line of each place. Scalars stay text,
as the file has them, and pydantic converts them: YAML itself would turn 1.10 into 1.1. So a message can show
what the operator wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

#: Bounds on a file. They allow 20,000 targets. MAX_VALUES counts what an alias repeats.
MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 200_000
MAX_DEPTH = 30
MAX_PROBLEMS = 1000
#: libyaml compares each %TAG directive with all that precede it.
_UNUSABLE = re.compile(f"{yaml.reader.Reader.NON_PRINTABLE.pattern}|^%TAG", re.MULTILINE)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What a scalar without quotes means in YAML 1.1, if it is not text.
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
for _word, _meaning in yaml.SafeLoader.bool_values.items():
    _WORDS |= dict.fromkeys((_word, _word.capitalize(), _word.upper()), _meaning)

T = TypeVar("T")
#: The keys and indices that lead to a value.
Place = tuple[str | int, ...]
Check = Callable[[dict[str, Any]], Iterator[tuple[Place, str]]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake or warning. `line` counts from 1 and is None for the whole file."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(Exception):
    """The file cannot be used. `problems` are all its mistakes in the order of the lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or inf))
        super().__init__("\n".join(map(str, self.problems)))


def keys(model: Any) -> dict[Place, tuple[str, ...]]:
    """The keys of each mapping in a model, by its place without indices; () is the model's own."""
    hints = get_type_hints(model)
    found: dict[Place, tuple[str, ...]] = {(): tuple(hints)}
    for name, hint in hints.items():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) or is_typeddict(inner):
                found |= {(name, *place): known for place, known in keys(inner).items()}
    return found


class Document(Generic[T]):
    """One file: its plain values and the problems so far. Raises ConfigError if it is not YAML.

    `model` is what the file holds. `refused` are keys that cannot be honoured, and why.
    """

    def __init__(
        self, text: str | bytes, file: str, model: type[T], *, refused: Mapping[str, str] | None = None
    ) -> None:
        self._file, self._model, self._refused = file, model, refused or {}
        self._keys = keys(model)
        self._problems: list[Problem] = []
        self._lines: dict[Place, int] = {(): 1}
        self._count = 0
        #: The value of each anchor, and how many values it holds.
        self._anchors: dict[str, tuple[Any, int]] = {}
        text = self._decode(text)
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        try:
            self._values = self._root()
        except yaml.MarkedYAMLError as error:
            begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
            message = f"{error.context}{begun}, {error.problem}" if error.context else str(error.problem)
            line = error.problem_mark.line if error.problem_mark else 0
            self._fail(line + 1, f"is not YAML: {message}{_hint([*text.splitlines(), ''][line])}")

    def validate(self, check: Check, context: object = None) -> T:
        """The settings. Raises ConfigError with every problem that pydantic and `check` find.

        `check` compares the plain values of several keys. A wrong value is None there.
        """
        try:
            settings = TypeAdapter(self._model).validate_python(self._values, context=context)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                self._translate(each)
        for place, message in check(self._values):
            self._report(place, message)
        if self._problems:
            raise ConfigError(self._problems)
        return settings

    def problem(self, place: Place, message: str) -> Problem:
        """A problem of a value. What is missing, or from an alias, has the line of what is around it."""
        around = place
        while around not in self._lines:
            around = around[:-1]
        return Problem(self._file, self._lines[around], _dotted(place), message)

    def _report(self, place: Place, message: str) -> None:
        if len(self._problems) >= MAX_PROBLEMS:
            self._fail(None, f"has more problems; these are the first {MAX_PROBLEMS}")
        self._problems.append(self.problem(place, message))

    def _fail(self, line: int | None, message: str) -> NoReturn:
        raise ConfigError([*self._problems, Problem(self._file, line, "", message)])

    def _translate(self, error: ErrorDetails) -> None:
        """Report an error of pydantic's, and forget the value."""
        if error["input"] is None or (error["type"] == "too_short" and error["input"]):
            return  # the value or each item of the list is reported already
        *outer, last = place = tuple(step for step in error["loc"] if step != "[key]")
        self._report(place, explain(error))
        holder: Any = self._values
        for step in outer:
            holder = holder and holder[step]
        if holder:
            holder[last] = None

    # -- from text to plain values -----------------------------------------------------------------

    def _decode(self, text: str | bytes) -> str:
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if len(data) > MAX_BYTES:
            self._fail(None, f"is larger than {MAX_BYTES // 2**20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._fail(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")
        if bad := _UNUSABLE.search(text):
            message = "is not YAML: control characters and %TAG directives are not allowed"
            self._fail(text.count("\n", 0, bad.start()) + 1, message)
        return text

    def _root(self) -> dict[str, Any]:
        """The mapping of the only document. A file without a document is an empty mapping."""
        values: dict[str, Any] = {}
        next(self._events)
        while isinstance(start := next(self._events), yaml.DocumentStartEvent):
            if self._count:
                self._fail(_line(start), "a second document begins here; a file has one")
            first = next(self._events)
            if not isinstance(first, yaml.MappingStartEvent):
                self._fail(_line(first), "the file is not a mapping of keys to values")
            values = self._value(first, ()) or {}
            next(self._events)
        return values

    def _value(self, event: Any, place: Place) -> Any:
        """The value that begins with an event, at a place whose line is known. A wrong one is None."""
        value, size = self._anchors.get(event.anchor, (None, 0))
        before, is_alias = self._count, isinstance(event, yaml.AliasEvent)
        self._count += 1 + (size if is_alias else 0)
        if self._count > MAX_VALUES or len(place) > MAX_DEPTH:
            message = f"holds more than {MAX_VALUES} values or {MAX_DEPTH} levels, with its aliases"
            self._fail(_line(event), message)
        if is_alias:
            if not size:
                self._report(place, "is an alias of no anchor above; quote a text that begins with *")
            return value
        value = self._content(event, place)
        if event.tag:
            self._report(place, "begins with a YAML tag; quote a text that begins with !")
            value = None
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _content(self, event: Any, place: Place) -> Any:
        """The value of a mapping, a list or a scalar."""
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            values: list[Any] = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                at = (*place, len(values))
                self._lines[at] = _line(item)
                values.append(self._value(item, at))
            return values
        value = event.value if event.style else _WORDS.get(event.value, event.value)
        if value is None:
            self._report(place, "has no value; write one, or leave the key out")
        return value

    def _mapping(self, place: Place) -> dict[str, Any]:
        """The values up to the end of a mapping. A key that resembles a known one is read as that one."""
        known = self._keys.get(tuple(step for step in place if isinstance(step, str)))
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                message = "a key is no list, mapping or alias; quote a text that begins with [ { or *"
                self._fail(_line(key), message)
            name = key.value
            first = self._lines.get((*place, name))
            self._lines[*place, name] = _line(key)
            if name in values:
                self._report((*place, name), f"is there twice; the first is on line {first}")
            elif known and name not in known and name != "<<":
                name = self._guess(place, name, known)
                self._lines[*place, name] = _line(key)
            value = self._value(next(self._events), (*place, name))
            if name == "<<":
                for source in value if isinstance(value, list) else [value]:
                    if isinstance(source, dict):
                        merged = source | merged
                    elif source is not None:
                        self._report((*place, name), "is not a mapping to merge")
            elif not known or name in known:
                values[name] = value
        return merged | values

    def _guess(self, place: Place, name: str, known: Sequence[str]) -> str:
        """Report an unknown key. Returns the known one that it resembles, or else the key."""
        close = get_close_matches(name[:64], known, n=1)
        message = f"unknown key; known here: {', '.join(known)}"
        if name in self._refused:
            message, close = f"cannot be honoured: {self._refused[name]}", []
        elif close:
            message = f"unknown key; did you mean {close[0]}?"
        self._report((*place, name), message)
        return close[0] if close else name


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


# -- messages --------------------------------------------------------------------------------------

#: What to say for an error of pydantic's. Text in the place of a mapping may be a secret.
_SAYS = {
    "missing": "is missing; it is a required key",
    "unexpected_keyword_argument": "unknown key",
    "dataclass_type": "is not a mapping of keys to values",
    "dict_type": "is not a mapping of keys to values",
    "tuple_type": "{shown} is not a list; begin each item with -",
    "too_short": "is empty; name at least one, or leave the key out",
    "string_type": "{shown} is not text; write one value",
    "bool_type": "{shown} should be true or false, without quotes",
    "literal_error": "{shown} is not supported; write {expected}",
    "greater_than": "{shown} should be more than {gt:.0f}",
    "greater_than_equal": "{shown} should be at least {ge:.0f}",
    "less_than": "{shown} should be less than {lt:.0f}",
    "less_than_equal": "{shown} should be at most {le:.0f}",
}


def explain(error: ErrorDetails) -> str:
    """What is wrong with a value, and what would be right."""
    if error["type"] == "string_type" and isinstance(error["input"], bool):
        return "is a boolean in YAML (yes, no, on, off, true, false); to mean the text, quote it"
    if says := _SAYS.get(error["type"]):
        return says.format(shown=show(error["input"]), **error.get("ctx", {})).replace(
            "write False", "write false"
        )
    return error["msg"].removeprefix("Value error, ")


#: Usual slips in a line that is not YAML, and what to do.
_SLIPS = {
    r"[ -]*\t": "tabs cannot indent YAML; use spaces",
    r".*(?:^|[-:,\[{])\s*(?:[*@`%!]|\[[^\[\]]*\][^\s,\]}])": "quote a text that begins with * [ @ ` % or !",
}


def _hint(line: str) -> str:
    """The slip that is likely behind a syntax error: `; advice`, or nothing."""
    return next((f"; {advice}" for slip, advice in _SLIPS.items() if re.match(slip, line[:500])), "")


def _dotted(place: Place) -> str:
    """A place as text. A key that is not a plain word is quoted, so that a problem stays one line."""
    path = ""
    for step in place:
        is_word = isinstance(step, str) and re.fullmatch(r"[\w-]{1,64}|<<", step)
        path += f".{step}" if is_word else f"[{show(step)}]"
    return path.removeprefix(".")


def show(value: Any) -> str:
    """A value on one line: text in quotes, cut after 60 characters if it is longer than 64."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    short = f"{value[:60]}..." if isinstance(value, str) and len(value) > 64 else value
    return json.dumps(short, ensure_ascii=not str(short).isprintable())


# -- files -----------------------------------------------------------------------------------------


def contents(path: str) -> bytes:
    """The bytes of a file, one more than MAX_BYTES at most. Raises ConfigError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from error


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes also what other YAML readers, as Go's, take for another type: `y`, `1e3`, `012345678901`."""


_NUMBER = re.compile(r"(?:[yYnN]|[-+]?[0-9.][0-9_.]*(?:[eE][-+]?[0-9]*)?|0[box][0-9a-fA-F_]*)$")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("yYnN-+.0123456789"))


def dump(plain: Any) -> str:
    """YAML of plain mappings, lists and scalars. Each YAML reader reads the same values back."""
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))
