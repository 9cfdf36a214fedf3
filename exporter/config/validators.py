"""The types of single values: what pydantic accepts, and what the operator reads instead of its errors.

A pattern is AWS's own where AWS publishes one, and never a list of names, so a new Region needs no release.
Patterns are RE2, because Helm checks them with Go.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic_core import CoreSchema, core_schema

from exporter.config.yaml_source import Quoted, quote

#: The characters that make a text a glob.
GLOB = frozenset("*?[")


class Secret(pydantic.Secret[str]):
    """A text that is not shown."""

    def _display(self) -> str:
        return "<secret>"


# -- durations -------------------------------------------------------------------------------------

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
DURATION = "".join(rf"(?:([0-9]{{1,15}}){unit})?" for unit, _, _ in _UNITS)
_LONGEST = 292 * _UNITS[0][1]  # what Prometheus can hold


def parse_duration(text: str, shortest: float = 0.0) -> float:
    """Seconds in a duration as Prometheus writes it: 1h30m, 15s, 0. Raises ValueError with advice."""
    if re.fullmatch("[1-9][0-9]{0,14}", text):
        raise ValueError(f"{text} has no unit; write e.g. {text}s")
    match = re.fullmatch(DURATION, "0s" if text == "0" else text)
    if not match or not text:
        raise ValueError(f"{quote(text)} is not a duration; write it as in Prometheus, e.g. 30d or 1h30m")
    counts = zip(match.groups("0"), _UNITS, strict=True)
    milliseconds = sum(int(count) * size for count, (_, size, _) in counts)
    if milliseconds > _LONGEST:
        raise ValueError(f"{quote(text)} is longer than Prometheus's longest, 292y")
    if milliseconds < shortest * 1000:
        raise ValueError(f"{quote(text)} is too short; at least {format_duration(shortest)}")
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


# -- how a type is built ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reads:
    """A type that `read` makes from text. It raises ValueError. `show` makes text of it again."""

    read: Callable[[str], Any]
    schema: dict[str, Any] = field(hash=False)
    show: Callable[[Any], str] = str

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(self.show)
        text = core_schema.str_schema()
        return core_schema.no_info_after_validator_function(self.read, text, serialization=shown)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "string", **self.schema}


def text(
    pattern: str,
    name: str,
    *hints: tuple[str, str],
    shortest: int = 1,
    longest: int = 256,
    kind: Callable[[str], Any] = str,
) -> Reads:
    """Printable text of a form; lengths are in characters.

    `hints` are patterns of usual slips, and what to write instead: "{0}" is the first group. Also a text that
    has the form is refused if it matches one.
    """

    def read(value: str) -> Any:
        fits = shortest <= len(value) <= longest and value.isprintable()
        advice = None if fits and re.fullmatch(pattern, value) else f"is not {name}"
        for slip, hint in hints if fits else ():
            if found := re.fullmatch(slip, value):
                advice = hint.format(*found.groups())
                break
        if advice:
            raise ValueError(advice if kind is Secret else f"{quote(value)} {advice}")
        return kind(value)

    schema: dict[str, Any] = {"minLength": shortest, "maxLength": longest, "pattern": f"^(?:{pattern})$"}
    slips = "|".join(slip for slip, _ in hints)
    return Reads(read, schema | ({"not": {"type": "string", "pattern": f"^(?:{slips})$"}} if hints else {}))


def duration(shortest: float, least: str) -> Reads:
    """Seconds. `least` is the pattern of a part that is long enough, for the JSON Schema."""
    schema = {"pattern": f"^(?:{DURATION})$", "allOf": [{"pattern": least}]}
    return Reads(partial(parse_duration, shortest=shortest), schema, format_duration)


def _number(value: Any) -> Any:
    """The text of a number. YAML 1.1 and pydantic differ about others: 010 is 8 or 10."""
    number = r"-?(?:0|[1-9][0-9]*)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?"
    if isinstance(value, str) and (isinstance(value, Quoted) or not re.fullmatch(number, value)):
        raise ValueError(f"{quote(value)} is not a number; write digits without quotes or a leading 0")
    return None if isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1, lt=10**15), BeforeValidator(_number)]
Rate = Annotated[
    float,
    Field(gt=0, le=10_000),
    BeforeValidator(_number),
    PlainSerializer(lambda rate: int(rate) if float(rate).is_integer() else rate),
]
#: The m of ms is not a minute.
Interval = Annotated[float, duration(1.0, "[1-9][0-9]*(?:[ywdhs]|m(?:[0-9]|$))|[1-9][0-9]{3,}ms")]
Age = Annotated[float, duration(0.001, "[1-9]")]
_NAME = "a name: visible characters, no spaces around them"
Name = Annotated[str, text(r"\S(?:.*\S)?", _NAME)]
#: The longest `target` label. Mimir takes 2048 characters by default, and people read them.
LONGEST_LABEL = 128
Label = Annotated[str, text(r"\S(?:.*\S)?", f"{_NAME}, at most {LONGEST_LABEL}", longest=LONGEST_LABEL)]
File = Annotated[str, text(r"[^\x00-\x1f\x7f]+", "the name of a file", longest=4096)]

# -- AWS's names -----------------------------------------------------------------------------------

#: Names in old SDKs for an endpoint of a Region: fips-us-gov-west-1, us-gov-west-1-fips, dkr-us-east-1.
_ENDPOINT = "is not a Region but an endpoint; write {0}, and for FIPS set AWS_USE_FIPS_ENDPOINT=true"
Region = Annotated[
    str,
    text(
        r"[a-z]{2,}(?:-[a-z]+){1,4}-[0-9]{1,2}",
        "a Region name, e.g. us-east-1",
        (r"(?:(?:fips|dkr|ecr|api|prod|data)-)+(.+)", _ENDPOINT),
        (r"(.+)-fips", _ENDPOINT),
        (r"(.+-[0-9])[a-z]", "is an Availability Zone; write {0}"),
        longest=64,
    ),
]
Account = Annotated[str, text("[0-9]{12}", "an account: 12 digits, e.g. 333344445555")]
_ROLE_ARN = r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+"
_ROLE = "the ARN of a role, e.g. arn:aws:iam::222233334444:role/ecr-reader"
RoleArn = Annotated[str, text(_ROLE_ARN, _ROLE, longest=2048)]
#: STS's externalIdType (botocore service model).
_EXTERNAL_ID = "an external id: 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -"
ExternalId = Annotated[
    Secret, text("[A-Za-z0-9_+=,.@:/-]+", _EXTERNAL_ID, shortest=2, longest=1224, kind=Secret)
]
_BCRYPT = r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}"
Bcrypt = Annotated[
    Secret, text(_BCRYPT, "a bcrypt hash; make one with: htpasswd -nBC 10 '' | tr -d ':'", kind=Secret)
]


def _or_glob(name: str, characters: str) -> str:
    """The pattern of a name or a glob: with * or ? and no [, or with a ] after its last [."""
    plain, closed, every = rf"[*?{characters}]*", rf"[*?\]{characters}]*", rf"[*?\[\]{characters}]*"
    return rf"{name}|{closed}[*?]{closed}|{every}\[{every}\]{plain}"


_OPEN_BRACKET = (r".*\[[^\]]*", "opens a [ that no ] closes")
#: Covers FIPS, dual-stack and other partitions.
_HOST = r"(?:https?://)?([0-9]{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.[a-z0-9.-]+"
_REGISTRY = 'and under registries: region: {1} and registry_id: "{0}"'
#: ECR's RepositoryName (botocore service model): at least 2 characters.
RepositoryOrGlob = Annotated[
    str,
    text(
        _or_glob(r"[a-z0-9](?:(?:[._/]|__|-+)?[a-z0-9])+", "a-z0-9._/!-"),
        "an ECR repository name or a glob: a-z 0-9 . _ - /, e.g. team/app, or team/* with * ? [ ] !",
        (rf"{_HOST}/([^:@]+)(?:[:@].*)?", f"is an address in ECR; write repository: {{2}}, {_REGISTRY}"),
        (rf"{_HOST}(?:/|:.*)?", f"is the address of a registry; write a name, e.g. team/app, {_REGISTRY}"),
        (
            r"arn:aws[a-z-]*:ecr:([a-z0-9-]+):([0-9]{12}):repository/(.+)",
            'is an ARN; write repository: {2}, and under registries: region: {0} and registry_id: "{1}"',
        ),
        (r"([^:@]+)(?::[^:@]+)?@(.+)", "is more than a name; write repository: {0} and digest: {1}"),
        (r"([^:@]+):([^:@]+)", "is more than a name; write repository: {0} and tag: {1}"),
        _OPEN_BRACKET,
    ),
]
_IMAGE_TAG = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_TAG_NAME = "an image tag: up to 128 of A-Z a-z 0-9 . _ -, not beginning with . or -"
Tag = Annotated[str, text(_IMAGE_TAG, _TAG_NAME)]
TagOrGlob = Annotated[
    str, text(_or_glob(_IMAGE_TAG, "A-Za-z0-9_.!-"), f"{_TAG_NAME}; or a glob with * ? [ ] !", _OPEN_BRACKET)
]
_DIGEST = "sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
Digest = Annotated[str, text(_DIGEST, "a digest: sha256: and 64 of 0-9 a-f")]
