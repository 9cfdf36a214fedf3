"""YAML to values that know their line and dotted path, and every problem with both.

The values are strings, lists and dictionaries, so pydantic reads them as they are. A scalar stays the text
that the file has: `1.10` is "1.10". Problems show that text; pydantic's show converted values and secrets.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Collection, Iterator, Sequence
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
_WORDS: dict[str, bool | None] = {
    cased: value
    for value, words in {True: "true,yes,on", False: "false,no,off", None: ",~,null"}.items()
    for word in words.split(",")
    for cased in (word, word.title(), word.upper())
}
_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Whether PyYAML uses libyaml. Without it a file takes several times as long.
HAS_LIBYAML: bool = yaml.__with_libyaml__

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
    """A scalar as the file has it, or a key. The path of an aliased value is that of its anchor."""

    __slots__ = ("line", "path", "quoted")
    line: int
    path: str
    quoted: bool


class Sequence_(list["Value"]):  # noqa: N801 - the plain name is collections.abc's
    """A list."""

    __slots__ = ("line", "path")
    line: int
    path: str


class Mapping(dict[str, "Value"]):
    """A mapping. `names` has each key as the file has it, with its line and path."""

    __slots__ = ("line", "names", "path")
    line: int
    path: str
    names: dict[str, Text]


@dataclass(slots=True)
class Other:
    """A plain scalar that YAML 1.1 reads as a boolean or as null (None)."""

    line: int
    path: str
    text: str
    value: bool | None


Value = Text | Sequence_ | Mapping | Other


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file may say, for the messages about what it must not say."""

    #: The known keys of each mapping. Its location has no indices.
    keys: AnyMapping[tuple[str, ...], Collection[str]]
    #: Keys that cannot be honoured, and why.
    refused: AnyMapping[str, str] = field(default_factory=dict)
    #: Required keys, and what to write.
    required: AnyMapping[str, str] = field(default_factory=dict)


class Document:
    """A file that is read: its values and the problems so far. Raises ConfigError after MAX_PROBLEMS."""

    def __init__(self, text: str | bytes, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._reported: set[tuple[int, str]] = set()
        self._wrong: set[int] = set()
        root = _Composer(self, text).root
        if not isinstance(root, Mapping):
            self.fail(root.line, f"{_shown(root)} is not a mapping of keys to values")
        self.root = root

    def items(self, key: str) -> list[Mapping]:
        """The mappings in a list."""
        items = self.root.get(key)
        return [item for item in items if isinstance(item, Mapping)] if isinstance(items, Sequence_) else []

    def text(self, mapping: Mapping, key: str) -> Text | None:
        """A text without a problem."""
        value = mapping.get(key)
        return value if isinstance(value, Text) and id(value) not in self._wrong else None

    def report(self, value: Value, message: str, path: str | None = None) -> None:
        """Add a problem. An aliased value gets each message once."""
        self._wrong.add(id(value))
        if (id(value), message) not in self._reported:
            self._reported.add((id(value), message))
            place = value.path if path is None else path
            self.problems.append(Problem(self.file, value.line, place, message))
            if len(self.problems) >= MAX_PROBLEMS:
                self.fail(None, f"has more problems; these are the first {MAX_PROBLEMS}")

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Stop with one more problem."""
        raise ConfigError([*self.problems, Problem(self.file, line, "", message)])

    def close(self, settings: T | None) -> T:
        """The settings. Raises ConfigError if there are problems."""
        if self.problems or settings is None:
            raise ConfigError(self.problems)
        return settings

    def validate(self, adapter: TypeAdapter[T], vocabulary: Vocabulary) -> T | None:
        """The settings, or None after reporting every problem that pydantic finds.

        An unknown key that resembles a known one is read as the known one, so that the mistakes below it are
        found too. A key is renamed once only, so the rounds end.
        """
        renamed: set[int] = set()
        while True:
            try:
                return adapter.validate_python(self.root)
            except ValidationError as error:
                errors = error.errors(include_url=False, include_input=False)
            unknown = [each["loc"] for each in errors if each["type"] in _UNKNOWN]
            for location in unknown:
                self._settle(location, vocabulary, renamed)
            if not unknown:
                for each in errors:
                    self._translate(each, vocabulary)
                return None

    def _settle(self, location: tuple[int | str, ...], vocabulary: Vocabulary, renamed: set[int]) -> None:
        """Report an unknown key, then rename or remove it."""
        mapping, key = self._at(location[:-1]), str(location[-1])
        if not isinstance(mapping, Mapping) or key not in mapping:
            return  # an alias of this mapping is settled already
        known = vocabulary.keys[tuple(step for step in location[:-1] if isinstance(step, str))]
        close = get_close_matches(key[:64], known, n=1)
        message = f"unknown key; known here: {', '.join(known)}"
        if key in vocabulary.refused:
            message, close = f"cannot be honoured: {vocabulary.refused[key]}", []
        elif close:
            message = f"unknown key; did you mean {close[0]}?"
        name, value = mapping.names.pop(key), mapping.pop(key)
        self.report(name, message)
        if close and close[0] not in mapping and id(name) not in renamed:
            renamed.add(id(name))
            mapping.names[close[0]], mapping[close[0]] = name, value

    def _translate(self, error: ErrorDetails, vocabulary: Vocabulary) -> None:
        location, kind = error["loc"], error["type"]
        value = self._at(location)
        if location[-1] == "[key]":
            mapping = self._at(location[:-2])
            name = mapping.names[str(location[-2])] if isinstance(mapping, Mapping) else value
            self.report(name, str(error["ctx"]["error"]))
        elif kind == "missing":
            key = str(location[-1])
            self.report(value, f"is missing; {vocabulary.required[key]}", _dotted(value.path, key))
        elif kind != "too_short" or not value:  # else the items are wrong, and reported
            self.report(value, _message(error, value))

    def _at(self, location: tuple[int | str, ...]) -> Value:
        """The value at a location of pydantic's. For a missing key it is the mapping."""
        value: Value = self.root
        for step in location:
            if isinstance(value, Mapping):
                value = value.get(str(step), value)
            elif isinstance(value, Sequence_) and isinstance(step, int):
                value = value[step]
        return value


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
#: Kinds of errors, and what to say. A text in the place of a mapping may be a secret.
_SAYS = {
    "string_type": "{value} is not text; write one value",
    "tuple_type": "{value} is not a list",
    "too_short": "is empty; name at least one, or leave the key out",
    "dataclass_type": "{kind} is not a mapping of keys to values",
    "dict_type": "{kind} is not a mapping of keys to values",
    "literal_error": "{value} is not {context[expected]}",
    "enum": "{value} is not {context[expected]}",
    "value_error": "{context[error]}",
    # Kinds of our own types, with their own message.
    "wrong": "{value} {message}",
    "number": "{bare} {message}",
    "hidden": "{message}",
    "refused": "{message}",
}
#: Keys whose value is never shown, also when they are no key of this product.
_SECRET = re.compile("secret|passw|token|extern", re.IGNORECASE)


def _message(error: ErrorDetails, value: Value) -> str:
    """What is wrong with a value. Shows it as the file has it, unless it may be a secret."""
    kind = error["type"]
    if isinstance(value, Other) and value.value is None:
        return "has no value; write one, or leave the key out"
    if isinstance(value, Other) and kind in ("wrong", "hidden", "string_type", "literal_error", "enum"):
        return f'{value.text} is a boolean in YAML; to mean the text, quote it: "{value.text}"'
    if _SECRET.search(value.path) and kind == "value_error":
        return "is not what belongs here; its value is not shown, because it may be a secret"
    shown = _kind(value) if _SECRET.search(value.path) else _shown(value)
    said = _SAYS[kind].format(
        value=shown,
        kind=_kind(value),
        bare=shorten(value) if isinstance(value, Text) and shown != "text" else shown,
        message=error["msg"],
        context=error.get("ctx", {}),
    )
    return f"{said}; write [{shown}]" if kind == "tuple_type" and isinstance(value, Text) else said


# -- from bytes to values --------------------------------------------------------------------------


def contents(path: str) -> bytes:
    """The bytes of a file, one more than MAX_BYTES at most. Raises ConfigError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError([Problem(path, None, "", f"cannot be read: {reason or error}")]) from error


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


_ALIAS = "an unquoted * begins an alias in YAML, and no anchor before it has this name;"
_STAR = 'quote a text that begins with *, e.g. "*-dev"'
#: Usual slips in a line that is not YAML, and what to do.
_SLIPS = (
    (re.compile(r"[ -]*\t"), "tabs cannot indent YAML; use spaces"),
    (re.compile(r".*(?:^|[-:,\[\]{])\s*\*"), _STAR),
    (re.compile(r".*[-:,]\s+\[[^\[\]]*\][^\s,\]}]"), 'quote a text that begins with [, e.g. "[a-c]*"'),
    (re.compile(r".*[-:,\[{]\s*[@`%!]"), "quote a text that begins with @, `, % or !"),
)


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    """The slip that is likely behind a syntax error: `; advice`, or nothing."""
    lines = text.split("\n")
    numbers = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    near = [lines[number][:500] for number in numbers if number < len(lines)]
    return next((f"; {advice}" for line in near for slip, advice in _SLIPS if slip.match(line)), "")


class _Composer:
    """Parsing events to values. `root` is that of the only document, an empty mapping for an empty file.

    PyYAML's own composer has no bound on depth: libyaml's overruns the stack and kills the process.
    """

    def __init__(self, document: Document, data: str | bytes) -> None:
        self._fail, self._report = document.fail, document.report
        #: Anchor: the value, and how many values it holds with what its own aliases repeat.
        self._anchors: dict[str, tuple[Value, int]] = {}
        self._count = 0
        data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        if len(data) > MAX_BYTES:
            self._fail(None, f"is larger than {MAX_BYTES // 2**20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._fail(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")
        if text.count("%TAG") > MAX_TAG_DIRECTIVES:
            self._fail(None, "has too many %TAG directives")
        try:
            self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_LOADER))
            self.root = self._document()
        except yaml.reader.ReaderError as error:
            bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
            line = text.count("\n", 0, bad.start()) + 1 if bad else None
            self._fail(line, f"is not YAML: {error.reason}")
        except yaml.MarkedYAMLError as error:
            begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
            context = f"{error.context}{begun}, " if error.context else ""
            line = error.problem_mark.line + 1 if error.problem_mark else None
            self._fail(line, f"is not YAML: {context}{error.problem}{_hint(error, text)}")

    def _document(self) -> Value:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            empty: Mapping = _placed(Mapping(), 1, "", names={})
            return empty
        root = self._value(next(self._events), "", 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._fail(event.start_mark.line + 1, "begins a second YAML document; only one is read")
        return root

    def _value(self, event: Any, path: str, depth: int) -> Value:
        line, before = event.start_mark.line + 1, self._count
        value: Value
        if isinstance(event, yaml.AliasEvent):
            # The name is not shown: it may be a secret that begins with *.
            known = self._anchors.get(event.anchor or "")
            target, size = known or self._fail(line, f"{_ALIAS} {_STAR}")
            self._add(size, line)
            return target
        self._add(1, line)
        if depth > MAX_DEPTH:
            self._fail(line, f"is nested more than {MAX_DEPTH} levels deep")
        if event.tag not in _TAGS:
            advice = "which means nothing here; leave it out, or quote it"
            self._fail(line, f"a ! before a value begins a YAML tag, {advice}")
        if event.anchor:
            self._anchors.pop(event.anchor, None)  # an alias inside means this one, which has no end yet
        if isinstance(event, yaml.ScalarEvent):
            text, plain = event.value, event.implicit[0]
            if plain and text in _WORDS:
                value = Other(line, path, text, _WORDS[text])
            else:
                value = _placed(Text(text), line, path, quoted=not plain)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: Sequence_ = _placed(Sequence_(), line, path)
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(inner, f"{path}[{len(items)}]", depth + 1))
            value = items
        else:
            value = self._pairs(_placed(Mapping(), line, path, names={}), depth)
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _pairs(self, mapping: Mapping, depth: int) -> Mapping:
        """Fill a mapping; `<<` is merged in. Of several merged mappings the earlier wins, as in YAML 1.1."""
        merged: list[Mapping] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, mapping.path, depth + 1)
            text = key.text if isinstance(key, Other) else str(key) if isinstance(key, Text) else "?"
            path = _dotted(mapping.path, text)
            value = self._value(next(self._events), path, depth + 1)
            if not isinstance(key, Text | Other):
                self._report(key, f"{_shown(key)} is not a key")
            elif text == "<<" and not (isinstance(key, Text) and key.quoted):
                for source in value if isinstance(value, Sequence_) else [value]:
                    if isinstance(source, Mapping):
                        merged.append(source)
                    else:
                        self._report(source, f"{_kind(source)} is not a mapping to merge", path)
            elif text in mapping:
                first = mapping.names[text].line
                self._report(key, f"is there twice; the first is on line {first}", path)
            else:
                mapping[text], mapping.names[text] = value, _placed(Text(text), key.line, path)
        for source in merged:
            for name in source.keys() - mapping.keys():
                mapping[name], mapping.names[name] = source[name], source.names[name]
        return mapping

    def _add(self, values: int, line: int) -> None:
        self._count += values
        if self._count > MAX_VALUES:
            self._fail(line, f"the file holds more than {MAX_VALUES} values, with its aliases")


def _placed(value: Any, line: int, path: str, **more: Any) -> Any:
    value.line, value.path = line, path
    for name, each in more.items():
        setattr(value, name, each)
    return value


# -- how places and values are shown ---------------------------------------------------------------

_PLAIN = re.compile(r"[\w-]{1,64}|<<")


def _dotted(path: str, key: str) -> str:
    """The path of a key. A key that is not a plain word is quoted, so that a problem stays one line."""
    if not _PLAIN.fullmatch(key):
        return f"{path}[{'a bcrypt hash' if key.startswith('$2') else quote(key)}]"
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


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes also what other YAML readers, as Go's, take for another type: `y`, `1e3`, `012345678901`."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[yYnN]|[-+]?[0-9.][0-9_.]*(?:[eE][-+]?[0-9]*)?|0[box][0-9a-fA-F_]*)$"),
    list("yYnN-+.0123456789"),
)


def dump(plain: Any) -> str:
    """YAML of plain mappings, lists and scalars. Each YAML reader reads the same values back."""
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))
