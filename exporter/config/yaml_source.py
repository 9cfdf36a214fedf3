"""YAML to plain values, each with its place in the file, and every problem with file, line and dotted path.

A scalar stays the text that the file has: `1.10` is "1.10". Only what YAML reads as a boolean or as null is
converted. Problems show the text of the file; pydantic's own show converted values and secrets.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

#: Bounds on a file. They allow 20,000 targets. MAX_VALUES counts what an alias repeats.
MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 200_000
MAX_DEPTH = 30
MAX_PROBLEMS = 1000
#: libyaml compares each %TAG directive with all that precede it.
_UNUSABLE = re.compile(f"{yaml.reader.Reader.NON_PRINTABLE.pattern}|^%TAG", re.MULTILINE)

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOLEAN, _MERGE = f"{_TAG}null", f"{_TAG}bool", f"{_TAG}merge"
_TAGS = {_NULL, _BOOLEAN, _MERGE, f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"}
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


class Quoted(str):
    """A scalar with quotes around it: a text, also where it looks like a number."""

    __slots__ = ()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves booleans, null and `<<`; every other scalar stays text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in forms if tag in _TAGS]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Document:
    """One file: its plain values and the problems so far. Raises ConfigError if it is not YAML.

    `keys` are the known keys of each mapping, by its place without indices. `refused` are keys that cannot be
    honoured, and why.
    """

    def __init__(
        self,
        text: str | bytes,
        file: str,
        *,
        keys: Mapping[Place, Sequence[str]],
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self._file, self._keys, self._refused = file, keys, refused or {}
        self._problems: list[Problem] = []
        self._reported: set[object] = set()
        self._nodes: dict[Place, Any] = {}
        self._count = 0
        self._values: dict[str, Any] = self._plain(self._compose(text), ())

    def validate(self, adapter: TypeAdapter[T], check: Check, context: object = None) -> T:
        """The settings. Raises ConfigError with every problem that pydantic and `check` find.

        `check` compares the plain values of several keys. A wrong value is None there.
        """
        try:
            settings = adapter.validate_python(self._values, context=context)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                self._translate(each)
        for place, message in check(self._values):
            self._report(place, message)
        if self._problems:
            raise ConfigError(self._problems)
        return settings

    def problem(self, place: Place, message: str, node: Any = None) -> Problem:
        """A problem of the value at a place, or of the mapping that lacks it."""
        node = node or self._nodes.get(place) or self._nodes[place[:-1]]
        return Problem(self._file, node.start_mark.line + 1, _dotted(place), message)

    def _report(self, place: Place, message: str, node: Any = None) -> None:
        """Add a problem: the first of a place, and each message once for a value with aliases."""
        seen = {place, (id(node or self._nodes.get(place) or place), message)}
        if self._reported.isdisjoint(seen):
            if len(self._problems) >= MAX_PROBLEMS:
                self._fail(None, f"has more problems; these are the first {MAX_PROBLEMS}")
            self._problems.append(self.problem(place, message, node))
        self._reported |= seen

    def _fail(self, line: int | None, message: str) -> NoReturn:
        raise ConfigError([*self._problems, Problem(self._file, line, "", message)])

    def _translate(self, error: ErrorDetails) -> None:
        """Report an error of pydantic's, and forget the value."""
        place = tuple(step for step in error["loc"] if step != "[key]")
        node = self._nodes.get(place)
        if not node:
            self._report(place, "is missing; it is a required key")
        elif error["type"] != "too_short" or not node.value:  # else its items are wrong, and reported
            self._report(place, _message(error, node))
            parent: Any = self._values
            for step in place[:-1]:
                parent = parent[step]
            parent[place[-1]] = None

    # -- from text to plain values -----------------------------------------------------------------

    def _compose(self, text: str | bytes) -> Any:
        """The root node of a text. PyYAML's composer has no bound; libyaml's overruns the stack."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if len(data) > MAX_BYTES:
            self._fail(None, f"is larger than {MAX_BYTES // 2**20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._fail(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text")
        if bad := _UNUSABLE.search(text):
            line = text.count("\n", 0, bad.start()) + 1
            self._fail(line, "is not YAML: control characters and %TAG directives are not allowed")
        depth = count = 0
        try:
            event: Any
            for event in yaml.parse(text, Loader=_Loader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                count += isinstance(event, yaml.NodeEvent)
                self._check_bounds(event, depth - 1, count)
            root: Any = yaml.compose(text, Loader=_Loader) or yaml.compose("{}")
        except yaml.MarkedYAMLError as error:
            begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
            message = f"{error.context}{begun}, {error.problem}" if error.context else str(error.problem)
            if isinstance(error, yaml.composer.ComposerError):
                message = re.sub(" '.*'", "", message)  # the name of an anchor may be a secret
            at = error.problem_mark.line + 1 if error.problem_mark else None
            self._fail(at, f"is not YAML: {message}{_hint(error, text)}")
        if root.id != "mapping":
            self._fail(root.start_mark.line + 1, f"{_KINDS[root.id]} is not a mapping of keys to values")
        return root

    def _check_bounds(self, at: Any, depth: int, count: int) -> None:
        if depth > MAX_DEPTH or count > MAX_VALUES:
            message = f"holds more than {MAX_VALUES} values or {MAX_DEPTH} levels, with its aliases"
            self._fail(at.start_mark.line + 1, message)

    def _plain(self, node: Any, place: Place) -> Any:
        """The value of a node. What an alias repeats has a place of its own."""
        self._count += 1
        self._check_bounds(node, len(place), self._count)
        self._nodes[place] = node
        if node.tag not in _TAGS:
            return self._report(place, "begins with a YAML tag; quote a text that begins with !")
        if node.id == "mapping":
            values = self._spelt(self._pairs(node, place), place)
            return {name: self._plain(value, (*place, name)) for name, value in values.items()}
        if node.id == "sequence":
            return [self._plain(item, (*place, i)) for i, item in enumerate(node.value)]
        if node.tag == _NULL:
            return self._report(place, "has no value; write one, or leave the key out")
        if node.tag == _BOOLEAN:
            return yaml.SafeLoader.bool_values.get(node.value.lower())
        return Quoted(node.value) if node.style else node.value

    def _pairs(self, node: Any, place: Place, depth: int = 0) -> dict[str, tuple[Any, Any]]:
        """The nodes of each key and its value. Keys of the mapping win over merged ones, then the earlier."""
        self._count += len(node.value) + 1
        self._check_bounds(node, depth, self._count)
        pairs: dict[str, tuple[Any, Any]] = {}
        merged: list[Any] = []
        for key, value in node.value:
            if key.id != "scalar":
                self._report(place, f"{_KINDS[key.id]} is not a key", key)
            elif key.tag == _MERGE:
                merged += value.value if value.id == "sequence" else [value]
            elif key.value in pairs:
                first = pairs[key.value][0].start_mark.line + 1
                self._report((*place, key.value), f"is there twice; the first is on line {first}", key)
            else:
                pairs[key.value] = key, value
        for source in merged:
            if source.id == "mapping":
                pairs = self._pairs(source, place, depth + 1) | pairs
            else:
                self._report((*place, "<<"), f"{_KINDS[source.id]} is not a mapping to merge", source)
        return pairs

    def _spelt(self, pairs: dict[str, tuple[Any, Any]], place: Place) -> dict[str, Any]:
        """The values of known keys. A key that resembles a known one is reported and read as that one."""
        known = self._keys.get(tuple(step for step in place if isinstance(step, str)), pairs)
        values = {name: value for name, (_, value) in pairs.items() if name in known}
        for name, (key, value) in pairs.items():
            if name in known:
                continue
            message = f"unknown key; known here: {', '.join(known)}"
            if name in self._refused:
                message = f"cannot be honoured: {self._refused[name]}"
            elif close := get_close_matches(name[:64], known, n=1):
                message = f"unknown key; did you mean {close[0]}?"
                values.setdefault(close[0], value)
            self._report((*place, name), message, key)
        return values


# -- messages --------------------------------------------------------------------------------------

_KINDS = {"scalar": "text", "sequence": "a list", "mapping": "a mapping"}
#: What to say for an error of pydantic's. Text in the place of a mapping may be a secret.
_SAYS = {
    "string_type": "{kind} is not text; write one value",
    "tuple_type": "{shown} is not a list; begin each item with -",
    "too_short": "is empty; name at least one, or leave the key out",
    "dataclass_type": "{kind} is not a mapping of keys to values",
    "dict_type": "{kind} is not a mapping of keys to values",
}


def _message(error: ErrorDetails, node: Any) -> str:
    """What is wrong with a value, in our words or in those of pydantic, with the value as the file has it."""
    kind, sentence = _KINDS[node.id], error["msg"]
    shown = quote(node.value) if kind == "text" else kind
    if error["type"] == "string_type" and node.tag == _BOOLEAN:
        return f"{shown} is a boolean in YAML; to mean the text, quote it"
    if error["type"] in _SAYS:
        return _SAYS[error["type"]].format(shown=shown, kind=kind)
    return shown + sentence[5:] if sentence.startswith("Input") else sentence.removeprefix("Value error, ")


#: Usual slips in a line that is not YAML, and what to do.
_SLIPS = (
    (r"[ -]*\t", "tabs cannot indent YAML; use spaces"),
    (
        r".*(?:^|[-:,\[{])\s*(?:[*@`%!]|\[[^\[\]]*\][^\s,\]}])",
        'quote a text that begins with one of * [ @ ` % !, e.g. "*-dev"',
    ),
)


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    """The slip that is likely behind a syntax error: `; advice`, or nothing."""
    lines = text.split("\n")
    numbers = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    near = [lines[number][:500] for number in numbers if number < len(lines)]
    return next((f"; {advice}" for line in near for slip, advice in _SLIPS if re.match(slip, line)), "")


def _dotted(place: Place) -> str:
    """A place as text. A key that is not a plain word is quoted, so that a problem stays one line."""
    path = ""
    for step in place:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[\w-]{1,64}|<<", step):
            path += f".{step}" if path else step
        else:
            path += f"[{'a bcrypt hash' if step.startswith('$2') else quote(step)}]"
    return path


def quote(text: str) -> str:
    """The text in quotes on one line, cut after 60 characters if it is longer than 64."""
    short = text if len(text) <= 64 else f"{text[:60]}..."
    return json.dumps(short, ensure_ascii=not short.isprintable())


# -- files -----------------------------------------------------------------------------------------


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
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes also what other YAML readers, as Go's, take for another type: `y`, `1e3`, `012345678901`."""


_NUMBER = re.compile(r"(?:[yYnN]|[-+]?[0-9.][0-9_.]*(?:[eE][-+]?[0-9]*)?|0[box][0-9a-fA-F_]*)$")
_Dumper.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("yYnN-+.0123456789"))


def dump(plain: Any) -> str:
    """YAML of plain mappings, lists and scalars. Each YAML reader reads the same values back."""
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))
