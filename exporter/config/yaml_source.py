"""YAML to values that know their line, and every problem with its file, line and dotted path.

PyYAML parses the text into events. `_Composer` makes values of them, within bounds that no hostile file can
exceed. The values are strings, lists and dictionaries, so pydantic reads them as they are. A scalar stays the
text that the file has: `1.10` is "1.10" and `012345678901` keeps its zero. `Document` turns pydantic's errors
into problems. It shows a value as the file has it, because pydantic's own text shows converted values and
secrets.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

#: Bounds on a file. They allow 20,000 targets. MAX_VALUES counts what an alias repeats.
MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 200_000
MAX_DEPTH = 30
MAX_PROBLEMS = 1000
#: Bound on %TAG directives: libyaml compares each one with all that precede it.
MAX_TAG_DIRECTIVES = 100

#: YAML 1.1 reads these plain scalars as booleans or as null.
_BOOLEANS = {
    cased: value
    for value, words in {True: ("true", "yes", "on"), False: ("false", "no", "off")}.items()
    for word in words
    for cased in (word, word.title(), word.upper())
}
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})

#: Where a value is: keys and indices from the root. pydantic's errors have the same form.
Location = tuple[int | str, ...]
T = TypeVar("T")


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


class Text(str):
    """A scalar as the file has it."""

    __slots__ = ("line", "quoted")
    line: int
    quoted: bool


class Sequence_(list["Value"]):  # noqa: N801 - the plain name is collections.abc's
    """A list."""

    __slots__ = ("line",)
    line: int


class Mapping(dict[str, "Value"]):
    """A mapping. `names` has each key as the file has it, with its line."""

    __slots__ = ("line", "names")
    line: int
    names: dict[str, Text]


@dataclass(slots=True)
class Other:
    """A plain scalar that YAML 1.1 reads as a boolean or as null (None)."""

    line: int
    text: str
    value: bool | None


Value = Text | Sequence_ | Mapping | Other


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file may say, for the messages about what it must not say."""

    #: The known keys of each mapping. Its location has no indices.
    keys: AnyMapping[Location, Collection[str]]
    #: Keys that cannot be honoured, and why.
    refused: AnyMapping[str, str] = field(default_factory=dict)
    #: Required keys, and what to write.
    required: AnyMapping[str, str] = field(default_factory=dict)


class Document:
    """A file that is read: its values and the problems so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root = _mapping(1)
        self.problems: list[Problem] = []
        self._reported: set[tuple[int, str]] = set()
        self._wrong: set[Location] = set()
        self._renamed: set[int] = set()

    def is_right(self, location: Location) -> bool:
        """Whether no problem is known at this location or below it."""
        return location not in self._wrong

    def warning(self, location: Location, message: str) -> Problem:
        """A remark about a value, which is no problem of the document."""
        value, path, _ = self._locate(location)
        return Problem(self.file, value.line, path, message)

    def report(self, location: Location, message: str, *, key: bool = False) -> None:
        """Add a problem of a value, or of its key. An aliased value gets each message once.

        Raises ConfigError after MAX_PROBLEMS.
        """
        value, path, name = self._locate(location)
        self._wrong.update(location[:end] for end in range(len(location) + 1))
        self.note(name if key and name is not None else value, path, message)

    def note(self, value: Value, path: str, message: str) -> None:
        """Add a problem at the line of a value. Raises ConfigError after MAX_PROBLEMS."""
        if (id(value), message) in self._reported:
            return
        self._reported.add((id(value), message))
        self.problems.append(Problem(self.file, value.line, path, message))
        if len(self.problems) >= MAX_PROBLEMS:
            self.fail(None, f"has more problems; these are the first {MAX_PROBLEMS}")

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Stop with one more problem. Raises ConfigError."""
        raise ConfigError([*self.problems, Problem(self.file, line, "", message)])

    def close(self) -> None:
        """Raises ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(self.problems)

    def validate(self, adapter: TypeAdapter[T], vocabulary: Vocabulary) -> T | None:
        """The settings, or None after reporting every problem that pydantic finds.

        An unknown key that resembles a known one is read as the known one, so that the mistakes below it are
        found too. A key is renamed once only, so the rounds end.
        """
        while True:
            try:
                return adapter.validate_python(self.root)
            except ValidationError as error:
                errors = error.errors(include_url=False, include_input=False)
            unknown = [each["loc"] for each in errors if each["type"] in _UNKNOWN]
            for location in unknown:
                self._settle(location, vocabulary)
            if not unknown:
                for each in errors:
                    self._translate(each, vocabulary)
                return None

    def _settle(self, location: Location, vocabulary: Vocabulary) -> None:
        """Report an unknown key, then rename or remove it."""
        mapping, _, _ = self._locate(location[:-1])
        key = str(location[-1])
        if not isinstance(mapping, Mapping) or key not in mapping:
            return  # an alias of this mapping is settled already
        known = vocabulary.keys[tuple(step for step in location[:-1] if isinstance(step, str))]
        close = get_close_matches(key[:64], known, n=1)
        if key in vocabulary.refused:
            message, close = f"cannot be honoured: {vocabulary.refused[key]}", []
        elif close:
            message = f"unknown key; did you mean {close[0]}?"
        else:
            message = f"unknown key; known here: {', '.join(known)}"
        self.report(location, message, key=True)
        name, value = mapping.names.pop(key), mapping.pop(key)
        if close and close[0] not in mapping and id(name) not in self._renamed:
            self._renamed.add(id(name))
            mapping.names[close[0]], mapping[close[0]] = name, value

    def _translate(self, error: ErrorDetails, vocabulary: Vocabulary) -> None:
        location, kind = error["loc"], error["type"]
        if location[-1:] == ("[key]",):
            return self.report(location[:-1], str(error["ctx"]["error"]), key=True)
        if kind == "missing":
            return self.report(location, f"is missing; {vocabulary.required[str(location[-1])]}")
        value, _, _ = self._locate(location)
        if kind == "too_short" and value:
            return None  # the items are wrong, and reported
        return self.report(location, _message(error, value))

    def _locate(self, location: Location) -> tuple[Value, str, Text | None]:
        """The value, its dotted path and its key. For a missing key the value is the mapping."""
        value: Value = self.root
        path, name = "", None
        for step in location:
            if isinstance(value, Mapping):
                name = value.names.get(str(step))
                path = dotted(path, name or str(step))
                value = value.get(str(step), value)
            elif isinstance(value, Sequence_) and isinstance(step, int):
                path, value, name = f"{path}[{step}]", value[step], None
        return value, path, name


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


#: Kinds of errors that pydantic names itself, and what to say.
_SAYS = {
    "string_type": "{value} is not text; write one value",
    "tuple_type": "{value} is not a list",
    "too_short": "is empty; name at least one, or leave the key out",
    # A text that stands in the place of a mapping may be a secret.
    "dataclass_type": "{kind} is not a mapping of keys to values",
    "dict_type": "{kind} is not a mapping of keys to values",
    "literal_error": "{value} is not {expected}",
    "enum": "{value} is not {expected}",
    # Kinds of our own types, with their own message.
    "wrong": "{value} {message}",
    "number": "{bare} {message}",
    "hidden": "{message}",
    "refused": "{message}",
    "value_error": "{error}",
}


def _message(error: ErrorDetails, value: Value) -> str:
    """What is wrong with a value. Shows it as the file has it, unless it may be a secret."""
    kind, context = error["type"], error.get("ctx", {})
    if isinstance(value, Other) and value.value is None:
        return "has no value; write one, or leave the key out"
    if isinstance(value, Other) and kind in ("wrong", "hidden", "string_type", "literal_error", "enum"):
        return f'{value.text} is a boolean in YAML; to mean the text, quote it: "{value.text}"'
    shown, is_text = _shown(value), isinstance(value, Text)
    said = _SAYS[kind].format(
        value=shown,
        kind=_kind(value),
        bare=shorten(value) if isinstance(value, Text) else shown,
        message=error["msg"],
        expected=context.get("expected"),
        error=context.get("error"),
    )
    return f"{said}; write [{shown}]" if kind == "tuple_type" and is_text else said


# -- from bytes to values --------------------------------------------------------------------------


def contents(path: str) -> bytes:
    """The bytes of a file, one more than MAX_BYTES at most. Raises ConfigError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError([Problem(path, None, "", f"cannot be read: {reason or error}")]) from error


def read(text: str | bytes, file: str) -> Document:
    """The values of a file. Raises ConfigError if it is not YAML with a mapping as its root."""
    document = Document(file)
    root = _compose(document, _decoded(document, text))
    if not isinstance(root, Mapping):
        document.note(root, "", f"{_shown(root)} is not a mapping of keys to values")
        document.close()
    else:
        document.root = root
    return document


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the collector: it would scan hundreds of thousands of new values and find no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decoded(document: Document, text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        document.fail(None, f"is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        document.fail(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")


def _compose(document: Document, text: str) -> Value:
    """The root of the only YAML document; an empty mapping for an empty file."""
    if text.count("%TAG") > MAX_TAG_DIRECTIVES:
        document.fail(None, "has too many %TAG directives")
    try:
        return _Composer(document, yaml.parse(text, Loader=_LOADER)).root()
    except yaml.reader.ReaderError as error:
        bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
        line = text.count("\n", 0, bad.start()) + 1 if bad else None
        document.fail(line, f"is not YAML: {error.reason}")
    except yaml.MarkedYAMLError as error:
        begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
        context = f"{error.context}{begun}, " if error.context else ""
        line = error.problem_mark.line + 1 if error.problem_mark else None
        document.fail(line, f"is not YAML: {context}{error.problem}{_hint(error, text)}")


#: Usual slips in a line that is not YAML, and what to do.
_SLIPS = (
    (re.compile(r"[ -]*\t"), "tabs cannot indent YAML; use spaces"),
    (re.compile(r".*(?:^|[-:,\[\]{])\s*\*"), 'quote a text that begins with *, e.g. "*-dev"'),
    (re.compile(r".*[-:,]\s+\[[^\[\]]*\][^\s,\]}]"), 'quote a text that begins with [, e.g. "[a-c]*"'),
    (re.compile(r".*[-:,\[{]\s*[@`%!]"), "quote a text that begins with @, `, % or !"),
)


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    """The slip that is likely behind a syntax error: `; advice`, or nothing."""
    lines = text.split("\n")
    numbers = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    for line in (lines[number][:500] for number in numbers if number < len(lines)):
        for slip, advice in _SLIPS:
            if slip.match(line):
                return f"; {advice}"
    return ""


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Whether PyYAML uses libyaml. Without it a file takes several times as long.
HAS_LIBYAML: bool = yaml.__with_libyaml__

#: The way to a value in a chain, so that only a problem pays for the text.
_Chain = tuple[Any, int | str] | None


class _Composer:
    """Parsing events to values.

    PyYAML's own composer has no bound on depth: libyaml's overruns the stack and kills the process. It also
    converts scalars, and raises errors without a line for texts that only look like dates or numbers.
    """

    def __init__(self, document: Document, events: Iterable[yaml.Event]) -> None:
        self._document = document
        self._events = iter(events)
        #: Anchor: the value, and how many values it holds with what its own aliases repeat.
        self._anchors: dict[str, tuple[Value, int]] = {}
        self._count = 0

    def root(self) -> Value:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return _mapping(1)
        root = self._value(next(self._events), None, 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._document.fail(_line(event), "begins a second YAML document; only one is read")
        return root

    def _value(self, event: Any, chain: _Chain, depth: int) -> Value:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        before = self._count
        self._add(1, line)
        if depth > MAX_DEPTH:
            self._document.fail(line, f"is nested more than {MAX_DEPTH} levels deep")
        if event.tag not in _TAGS:
            self._document.fail(
                line,
                "a ! before a value begins a YAML tag, which means nothing here; leave it out, or quote it",
            )
        if event.anchor:
            self._anchors.pop(event.anchor, None)  # an alias inside means this one, which has no end yet
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = Sequence_()
            value.line = line
            for inner in self._until(yaml.SequenceEndEvent):
                value.append(self._value(inner, (chain, len(value)), depth + 1))
        else:
            value = self._pairs(line, chain, depth)
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _pairs(self, line: int, chain: _Chain, depth: int) -> Mapping:
        """A mapping with `<<` merged in. Of several merged mappings the earlier wins, as in YAML 1.1."""
        mapping = _mapping(line)
        merged: list[Mapping] = []
        for event in self._until(yaml.MappingEndEvent):
            key = self._value(event, chain, depth + 1)
            if isinstance(key, Other):
                key = _text(key.text, key.line)
            step = (chain, key if isinstance(key, Text) else "?")
            value = self._value(next(self._events), step, depth + 1)
            if not isinstance(key, Text):
                self._document.note(key, _written(chain), f"{_shown(key)} is not a key")
            elif key == "<<" and not key.quoted:
                for source in value if isinstance(value, Sequence_) else [value]:
                    if isinstance(source, Mapping):
                        merged.append(source)
                    else:
                        message = f"{_kind(source)} is not a mapping to merge"
                        self._document.note(source, _written(step), message)
            elif key in mapping:
                first = mapping.names[key].line
                self._document.note(key, _written(step), f"is there twice; the first is on line {first}")
            else:
                mapping[str(key)], mapping.names[str(key)] = value, key
        for source in merged:
            for name in source.keys() - mapping.keys():
                mapping[name], mapping.names[name] = source[name], source.names[name]
        return mapping

    def _alias(self, event: yaml.AliasEvent, line: int) -> Value:
        """The value of an alias. Its name is not shown: it may be a secret that begins with *."""
        value, size = self._anchors.get(event.anchor or "", (None, 0))
        if value is None:
            self._document.fail(
                line,
                "an unquoted * begins an alias in YAML, and no anchor before it has this name;"
                ' quote a text that begins with *, e.g. "*-dev"',
            )
        self._add(size, line)
        return value

    def _add(self, values: int, line: int) -> None:
        self._count += values
        if self._count > MAX_VALUES:
            self._document.fail(line, f"the file holds more than {MAX_VALUES} values, with its aliases")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _scalar(event: yaml.ScalarEvent, line: int) -> Text | Other:
    text, plain = event.value, event.implicit[0]
    if plain and text in _NOTHING:
        return Other(line, text, None)
    if plain and text in _BOOLEANS:
        return Other(line, text, _BOOLEANS[text])
    return _text(text, line, quoted=not plain)


def _text(text: str, line: int, *, quoted: bool = False) -> Text:
    made = Text(text)
    made.line, made.quoted = line, quoted
    return made


def _mapping(line: int) -> Mapping:
    made = Mapping()
    made.line, made.names = line, {}
    return made


# -- how places and values are shown ---------------------------------------------------------------


def _written(chain: _Chain) -> str:
    if chain is None:
        return ""
    path, step = _written(chain[0]), chain[1]
    return f"{path}[{step}]" if isinstance(step, int) else dotted(path, step)


def dotted(path: str, key: str) -> str:
    """The path of a key. A key that is not a plain word is quoted, so that a problem stays one line."""
    if not re.fullmatch(r"[\w-]{1,64}|<<", key):
        return f"{path}[{quote(key)}]"
    return f"{path}.{key}" if path else key


def _shown(value: Value) -> str:
    match value:
        case Text():
            return quote(value)
        case Other():
            return "nothing" if value.value is None else quote(value.text)
    return "a list" if isinstance(value, Sequence_) else "a mapping"


def _kind(value: Value) -> str:
    """What a value is, without what it says."""
    return "text" if isinstance(value, Text) else _shown(value)


def quote(text: str) -> str:
    """The text in quotes, shortened, on one line."""
    short = shorten(text)
    return str(json.dumps(short, ensure_ascii=not short.isprintable()))


def shorten(text: str) -> str:
    """The text, cut after 60 characters if it is longer than 64."""
    return str(text) if len(text) <= 64 else f"{text[:60]}..."


# -- from plain values to YAML ---------------------------------------------------------------------


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes also what other YAML readers, as Go's, take for another type: `y`, `1e3`, `012345678901`."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[yYnN]|[-+]?[0-9.][0-9_.]*(?:[eE][-+]?[0-9]*)?|0[box][0-9a-fA-F_]*)$"),
    list("yYnN-+.0123456789"),
)


def dump(plain: Any) -> str:
    """YAML of plain mappings, lists and scalars. Each YAML reader reads the same values back."""
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
