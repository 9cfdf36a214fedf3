"""Words: what the text of one value may be, and the advice to whoever wrote something else.

A check takes a text and returns what it stands for, or raises WrongError. Patterns are AWS's own where it
publishes one; they are never lists, so that a new Region needs no new release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exporter.config.yaml_source import WrongError, quote, shorten

#: The characters that make a text a glob.
GLOB = frozenset("*?[")


class Secret:
    """A text that is shown as `<secret>` wherever it is formatted, logged or dumped by mistake."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


#: Prometheus's units in its order, in milliseconds, and whether it writes them only where they fit exactly.
_UNITS = (
    ("y", 365 * 86_400_000, True),
    ("w", 7 * 86_400_000, True),
    ("d", 86_400_000, False),
    ("h", 3_600_000, False),
    ("m", 60_000, False),
    ("s", 1000, False),
    ("ms", 1, False),
)
DURATION = re.compile("".join(rf"(?:([0-9]{{1,15}}){unit})?" for unit, _, _ in _UNITS))
_LONGEST = 292 * _UNITS[0][1]  # what Prometheus can hold


def parse_duration(text: str) -> float:
    """Seconds in a duration as Prometheus writes it: 1h30m, 15s, 0. Raises ValueError with advice."""
    if text == "0":
        return 0.0
    if re.fullmatch("[0-9]+", text):
        raise WrongError(f"{shorten(text)} has no unit; write e.g. {shorten(text)}s")
    match = DURATION.fullmatch(text)
    if not match or not text:
        raise WrongError(f"{quote(text)} is not a duration; write it as in Prometheus, e.g. 30d or 1h30m")
    counts = zip(match.groups("0"), _UNITS, strict=True)
    milliseconds = sum(int(count) * size for count, (_, size, _) in counts)
    if milliseconds > _LONGEST:
        raise WrongError(f"{quote(text)} is longer than Prometheus's longest, 292y")
    return milliseconds / 1000


def format_duration(seconds: float) -> str:
    """The duration as Prometheus writes it, to the millisecond."""
    rest = round(seconds * 1000)
    parts = []
    for unit, size, exact in _UNITS:
        if rest >= size and not (exact and rest % size):
            count, rest = divmod(rest, size)
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a text must look like; lengths are in characters."""

    regex: re.Pattern[str]
    complaint: str
    shortest: int
    longest: int

    def allows(self, text: str) -> bool:
        return self.shortest <= len(text) <= self.longest and self.regex.fullmatch(text) is not None

    def __call__(self, text: str) -> str:
        if not self.allows(text):
            raise WrongError(f"{quote(text)} {self.complaint}")
        return text


@dataclass(frozen=True, slots=True)
class Hidden:
    """As its pattern, for what must not be shown even where it is wrong."""

    pattern: Pattern

    def __call__(self, text: str) -> Secret:
        if not self.pattern.allows(text):
            raise WrongError(self.pattern.complaint)
        return Secret(text)


def pattern(regex: str, complaint: str, *, shortest: int = 1, longest: int = 256) -> Pattern:
    return Pattern(re.compile(regex, re.ASCII), complaint, shortest, longest)


def secret(regex: str, complaint: str, *, shortest: int = 1, longest: int = 256) -> Hidden:
    return Hidden(pattern(regex, complaint, shortest=shortest, longest=longest))


@dataclass(frozen=True, slots=True)
class Globbing:
    """A text without any character of a glob, or a glob."""

    check: Pattern
    glob: Pattern

    def __call__(self, text: str) -> str:
        if GLOB.isdisjoint(text):
            return self.check(text)
        if text.rfind("[") > text.rfind("]"):
            raise WrongError(f"{quote(text)} opens a [ that no ] closes")
        return self.glob(text)


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration of at least so many seconds."""

    shortest: float

    def __call__(self, text: str) -> float:
        seconds = parse_duration(text)
        if seconds < self.shortest:
            raise WrongError(f"{quote(text)} is too short; at least {format_duration(self.shortest)}")
        return seconds


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words; `refused` says of others why they are not among them."""

    words: Sequence[str]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        if text in self.refused:
            raise WrongError(f"{text} {self.refused[text]}")
        if text not in self.words:
            raise WrongError(f"{quote(text)} is not one of {', '.join(self.words)}")
        return text


def name(text: str) -> str:
    if not text or len(text) > 256 or not text.isprintable() or text != text.strip():
        raise WrongError(f"{quote(text)} is not a name: 1 to 256 visible characters, no spaces around them")
    return text


file = pattern(r"[^\0]+", "is not the name of a file", longest=4096)

#: ECR's RepositoryName (botocore service model).
_REPOSITORY_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
repository = pattern(
    rf"{_REPOSITORY_PART}(?:/{_REPOSITORY_PART})*",
    "is not an ECR repository name: 2 to 256 of a-z 0-9 . _ - /, e.g. team/app",
    shortest=2,
)
repository_glob = pattern(
    r"[a-z0-9._/*?\[\]!-]+", "is not a glob over ECR repositories: up to 256 of a-z 0-9 . _ - / * ? [ ] !"
)
tag = pattern(
    r"\w[\w.-]*",
    "is not an image tag: up to 128 of A-Z a-z 0-9 . _ -, not beginning with . or -",
    longest=128,
)
tag_glob = pattern(
    r"[\w.*?\[\]!-]+", "is not an image tag or a glob over them: up to 256 of A-Z a-z 0-9 . _ - * ? [ ] !"
)
digest = pattern("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", "is not a digest: sha256: and 64 of 0-9 a-f")
region = pattern(r"[a-z]{2,}(?:-[a-z]+){1,4}-[0-9]{1,2}", "is not a Region name, e.g. us-east-1", longest=64)
role_arn = pattern(
    r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+",
    "is not the ARN of a role, e.g. arn:aws:iam::222233334444:role/ecr-reader",
    longest=2048,
)
registry_id = pattern("[0-9]{12}", "is not an account: 12 digits, e.g. 333344445555")
#: STS's externalIdType (botocore service model).
external_id = secret(
    r"[\w+=,.@:/-]+",
    "is not an external id: 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -",
    shortest=2,
    longest=1224,
)
bcrypt = secret(
    r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}",
    "is not a bcrypt hash; make one with: htpasswd -nBC 10 '' | tr -d ':'",
)
