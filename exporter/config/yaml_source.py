"""How a YAML file is read: every problem with its line and dotted path, and no file is too much.

From the bottom up: YAML's events become a bounded tree of nodes that know their lines; a `Place` is a node
under its path; a `Reader` turns a place into a value or raises WrongError; and a mapping's readers are a
table, one row a key. What the keys are and what they mean is none of this room's business.

Scalars are kept as they were written: where text is wanted, `1.10` is "1.10" and `012345678901` keeps its
zero.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, NoReturn

import yaml

#: Bounds on a file, so that none, however hostile, costs much time or memory. The first two allow for
#: 20,000 targets; a tree deeper than any valid one would take a recursive reader down.
MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 200_000
MAX_DEPTH = 30
MAX_MERGE_DEPTH = 20
MAX_PROBLEMS = 1000

_BOOLEANS = {
    cased: value
    for value, words in {True: ("true", "yes", "on"), False: ("false", "no", "off")}.items()
    for word in words
    for cased in (word, word.title(), word.upper())
}
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})
_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is and what would be right. `line` counts from 1; None: the whole file."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(Exception):
    """The file cannot be used; `problems` are all its mistakes, in the order of its lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or inf))
        super().__init__("\n".join(map(str, self.problems)))


class WrongError(ValueError):
    """Says why a value is wrong and what would be right."""


@dataclass(slots=True)
class Scalar:
    """A text; `plain` if it is neither quoted nor tagged, so that YAML would guess its type."""

    line: int
    text: str
    plain: bool


@dataclass(slots=True)
class List:
    line: int
    items: list[Node]


@dataclass(slots=True)
class Map:
    line: int
    items: list[tuple[Node, Node]]


Node = Scalar | List | Map


class Letter:
    """One file being read: its problems so far, and how much of it was visited, aliases included."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._reported: set[tuple[int, str]] = set()
        self._visits = 0

    def report(self, node: Node, path: str, message: str) -> None:
        """Note a problem, once a node: what an alias repeats is one mistake.

        Raises ConfigError if there are too many.
        """
        if (id(node), message) in self._reported:
            return
        self._reported.add((id(node), message))
        self.problems.append(Problem(self.file, node.line, path, message))
        if len(self.problems) >= MAX_PROBLEMS:
            self.fail(None, f"has more problems; these are the first {MAX_PROBLEMS}")

    def fail(self, line: int | None, message: str) -> NoReturn:
        """End reading with one more problem. Raises ConfigError."""
        raise ConfigError([*self.problems, Problem(self.file, line, "", message)])

    def visit(self, line: int) -> None:
        """Count a value; aliases can make a small file a huge tree. Raises ConfigError if it is."""
        self._visits += 1
        if self._visits > MAX_VALUES:
            self.fail(line, f"with its aliases the file holds more than {MAX_VALUES} values")

    def close(self) -> None:
        """Raises ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(self.problems)


@dataclass(slots=True)
class Place:
    """A node under its dotted path, and, once read, its value."""

    letter: Letter
    node: Node
    path: str
    value: Any = None

    def step(self, key: str, node: Node | None = None) -> Place:
        """The place of a key's value; that of the mapping itself while the key is missing."""
        return Place(self.letter, node or self.node, dotted(self.path, key))

    def wrong(self, message: str) -> None:
        self.letter.report(self.node, self.path, message)

    def read(self, reader: Reader) -> Place | None:
        """The place with its value, or None after reporting why it is wrong."""
        self.letter.visit(self.node.line)
        try:
            self.value = reader(self)
        except WrongError as error:
            self.wrong(str(error))
            return None
        return self

    def word(self) -> str:
        """The text as it was written."""
        node = self.node
        if not isinstance(node, Scalar):
            raise WrongError(f"{_shown(node)} is not text; write one value")
        if node.plain and node.text in _NOTHING:
            raise WrongError("has no value; write one, or leave the key out")
        if node.plain and node.text in _BOOLEANS:
            raise WrongError(f'{node.text} is a boolean in YAML; to mean the text, quote it: "{node.text}"')
        return node.text

    def number(self) -> str:
        """The text of a number, which must not be quoted."""
        text = self.word()
        if isinstance(self.node, Scalar) and not self.node.plain:
            raise WrongError(f"{quote(text)} is text; write a number, without quotes")
        return text

    def entries(self) -> dict[str, tuple[Scalar, Node]]:
        """Key -> its node and its value's, with `<<` merged in. Reports keys that are there twice."""
        if not isinstance(self.node, Map):
            raise WrongError(f"{_kind(self.node)} is not a mapping of keys to values")
        return self._entries(self.node, 0)

    def _entries(self, mapping: Map, depth: int) -> dict[str, tuple[Scalar, Node]]:
        own: dict[str, tuple[Scalar, Node]] = {}
        merged: dict[str, tuple[Scalar, Node]] = {}
        for key, node in mapping.items:
            self.letter.visit(key.line)
            if not isinstance(key, Scalar):
                self.letter.report(key, self.path, f"{_shown(key)} is not a key")
            elif key.plain and key.text == "<<":
                merged = self._merged(node, depth + 1) | merged
            elif key.text in own:
                twice = f"is there twice; the first is on line {own[key.text][0].line}"
                self.letter.report(key, dotted(self.path, key.text), twice)
            else:
                own[key.text] = (key, node)
        return merged | own

    def _merged(self, node: Node, depth: int) -> dict[str, tuple[Scalar, Node]]:
        """What `<<` brings in: of several mappings the earlier win (YAML 1.1 merge)."""
        merged: dict[str, tuple[Scalar, Node]] = {}
        for mapping in node.items if isinstance(node, List) else [node]:
            if not isinstance(mapping, Map):
                not_one = f"{_shown(mapping)} is not a mapping to merge"
                self.letter.report(node, dotted(self.path, "<<"), not_one)
            elif depth > MAX_MERGE_DEPTH:
                self.letter.fail(node.line, f"merges into itself, or over more than {MAX_MERGE_DEPTH} levels")
            else:
                merged = self._entries(mapping, depth) | merged
        return merged


Reader = Callable[[Place], Any]
Section = dict[str, Place | None]


# -- readers: how the value of one key is read ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextOf:
    """Text, whatever else YAML would take it for; but nothing and booleans are mistakes more often."""

    check: Callable[[str], Any]

    def __call__(self, place: Place) -> Any:
        return self.check(place.word())


def whole(place: Place) -> int:
    text = place.number()
    if not re.fullmatch("[1-9][0-9]{0,14}", text):
        raise WrongError(f"{shorten(text)} is not a whole number of at least 1")
    return int(text)


def flag(place: Place) -> bool:
    node = place.node
    if not (isinstance(node, Scalar) and node.plain and node.text in _BOOLEANS):
        raise WrongError(f"{_shown(node)} is neither true nor false")
    return _BOOLEANS[node.text]


@dataclass(frozen=True, slots=True)
class Refused:
    """For what others honour and we cannot: saying so beats seeming to."""

    reason: str

    def __call__(self, _place: Place) -> NoReturn:
        raise WrongError(f"cannot be honoured: {self.reason}")


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list that is not empty -> the places of its items; those that are wrong are left out."""

    item: Reader

    def __call__(self, place: Place) -> list[Place]:
        if not isinstance(place.node, List):
            shown = _shown(place.node)
            advice = f"; write [{shown}]" if isinstance(place.node, Scalar) and place.node.text else ""
            raise WrongError(f"{shown} is not a list{advice}")
        if not place.node.items:
            raise WrongError("is empty; name at least one, or leave the key out")
        items = (Place(place.letter, node, f"{place.path}[{i}]") for i, node in enumerate(place.node.items))
        return [each for each in items if each.read(self.item)]


@dataclass(frozen=True, slots=True)
class WordsOf:
    """A list of texts, each of them once."""

    check: Callable[[str], str]

    def __call__(self, place: Place) -> list[Place]:
        seen: dict[str, Place] = {}
        for word in ListOf(TextOf(self.check))(place):
            if word.value in seen:
                word.wrong(f"{quote(word.value)} is there twice")
            seen.setdefault(word.value, word)
        return list(seen.values())


@dataclass(frozen=True, slots=True)
class MappingOf:
    """A mapping of known keys -> their places; None where the value is wrong, so that it counts as given."""

    table: Mapping[str, Reader]

    def __call__(self, place: Place) -> Section:
        section: Section = {}
        for key, node in place.entries().values():
            step = place.step(key.text, node)
            if reader := self.table.get(key.text):
                section[key.text] = step.read(reader)
            else:
                replace(step, node=key).wrong(f"unknown key; {_suggest(key.text, self.table)}")
        return section


def _suggest(key: str, table: Mapping[str, Reader]) -> str:
    close = get_close_matches(key[:64], table, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(table)}"


def items(sections: Section, key: str) -> list[Place]:
    """The places of the items of a list; none if it is left out or wrong."""
    place = sections.get(key)
    return place.value if place else []


def values(sections: Section) -> dict[str, Any]:
    """The bare values, without their places."""
    return {key: _bare(place.value) for key, place in sections.items() if place}


def _bare(value: Any) -> Any:
    return tuple(item.value for item in value) if isinstance(value, list) else value


# -- from bytes to nodes ---------------------------------------------------------------------------


def contents(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError([Problem(path, None, "", f"cannot be read: {reason or error}")]) from error


def read(text: str | bytes, file: str, shape: MappingOf) -> Place:
    """The file's place, with its section as the value. Raises ConfigError if nothing can be made of it."""
    letter = Letter(file)
    node = _compose(letter, _decoded(letter, text)) or Map(1, [])
    root = Place(letter, node, "").read(shape)
    if root is None:
        letter.close()
        raise AssertionError("a place that cannot be read has been reported")
    return root


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Hundreds of thousands of nodes and no garbage: looking for it takes longer than reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decoded(letter: Letter, text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        letter.fail(None, f"is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        letter.fail(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")


def _compose(letter: Letter, text: str) -> Node | None:
    """The only document of the text; None if it is empty. Raises ConfigError if it is not YAML."""
    if text.count("%TAG") > 100:  # libyaml compares each with all before
        letter.fail(None, "has too many %TAG directives")
    try:
        return _Composer(letter, yaml.parse(text, Loader=_LOADER)).document()
    except yaml.reader.ReaderError as error:
        bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
        line = text.count("\n", 0, bad.start()) + 1 if bad else None
        letter.fail(line, f"is not YAML: {error.reason}")
    except yaml.MarkedYAMLError as error:
        begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
        context = f"{error.context}{begun}, " if error.context else ""
        line = error.problem_mark.line + 1 if error.problem_mark else None
        letter.fail(line, f"is not YAML: {context}{error.problem}")


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dump(plain: Any) -> str:
    """YAML of plain mappings, lists and scalars, such that what is read back is the same."""
    text: str = yaml.dump(plain, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=1000)
    return text


class _Composer:
    """Parsing events -> nodes, no more and no deeper than a valid file can have.

    PyYAML's own composer follows any depth: libyaml's then overruns the stack and kills the process.
    """

    def __init__(self, letter: Letter, events: Iterable[yaml.Event]) -> None:
        self._letter = letter
        self._events = iter(events)
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def document(self) -> Node | None:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        node = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._letter.fail(_line(event), "begins a second YAML document; only one is read")
        return node

    def _node(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._check(event, depth)
        node = self._empty(event)
        if event.anchor:
            self._anchors[event.anchor] = node
        if isinstance(node, List):
            node.items.extend(self._nodes(yaml.SequenceEndEvent, depth + 1))
        elif isinstance(node, Map):
            nodes = self._nodes(yaml.MappingEndEvent, depth + 1)
            node.items.extend((key, next(nodes)) for key in nodes)
        return node

    def _nodes(self, end: type[yaml.Event], depth: int) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield self._node(event, depth)

    def _alias(self, event: yaml.AliasEvent) -> Node:
        name = event.anchor or ""
        node = self._anchors.get(name)
        return node or self._letter.fail(_line(event), f"the alias {quote(name)} has no anchor before it")

    def _empty(self, event: Any) -> Node:
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, plain=event.implicit[0])
        return List(line, []) if isinstance(event, yaml.SequenceStartEvent) else Map(line, [])

    def _check(self, event: Any, depth: int) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            self._letter.fail(_line(event), f"the file holds more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            self._letter.fail(_line(event), f"is nested more than {MAX_DEPTH} levels deep")
        if event.tag not in _TAGS:
            self._letter.fail(_line(event), f"the tag {quote(event.tag)} means nothing here; leave it out")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def dotted(path: str, key: str) -> str:
    """The path of a key; one that is no plain word is quoted, so that a problem stays one line."""
    if not re.fullmatch(r"[\w-]{1,64}|<<", key):
        return f"{path}[{quote(key)}]"
    return f"{path}.{key}" if path else key


def _kind(node: Node) -> str:
    """What it is, not what it says: a mistyped mapping may hold a secret."""
    return "text" if isinstance(node, Scalar) and not (node.plain and node.text in _NOTHING) else _shown(node)


def _shown(node: Node) -> str:
    if isinstance(node, Scalar):
        return "nothing" if node.plain and node.text in _NOTHING else quote(node.text)
    return "a list" if isinstance(node, List) else "a mapping"


def quote(text: str) -> str:
    short = shorten(text)
    return str(json.dumps(short, ensure_ascii=not short.isprintable()))


def shorten(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:60]}..."
