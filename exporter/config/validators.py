"""The types of single values: what pydantic accepts, and what the operator reads instead of its errors.

A pattern is AWS's own where AWS publishes one, and never a list of names, so a new Region needs no release.
Patterns are RE2, because Helm checks them with Go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from exporter.config.yaml_source import Other, Text, quote, shorten

#: The characters that make a text a glob.
GLOB = frozenset("*?[")


class Secret:
    """A text that prints as `<secret>`."""

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
    if re.fullmatch("[1-9][0-9]*", text):
        raise ValueError(f"{shorten(text)} has no unit; write e.g. {shorten(text)}s")
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
class Otherwise:
    """One message for every error of a type. `kind` decides how the value is shown before it."""

    message: str
    kind: str = "wrong"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(handler(source), self.kind, custom_error_message=self.message)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text of a form. Lengths are in characters."""

    regex: str
    message: str
    shortest: int = 1
    longest: int = 256
    kind: str = "wrong"

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.str_schema(
            pattern=f"^(?:{self.regex})$", min_length=self.shortest, max_length=self.longest
        )
        return core_schema.custom_error_schema(plain, self.kind, custom_error_message=self.message)

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        bounds = {"minLength": self.shortest, "maxLength": self.longest}
        return {"type": "string", **bounds, "pattern": f"^(?:{self.regex})$"}


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration of at least so many seconds, as seconds."""

    shortest: float

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        read = partial(parse_duration, shortest=self.shortest)
        return core_schema.no_info_after_validator_function(read, core_schema.str_schema())

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        """A unit that is long enough, and not zero of it. The m of ms is not a minute."""
        least = "[1-9][0-9]*(?:[ywdhs]|m(?:[0-9]|$))|[1-9][0-9]{3,}ms" if self.shortest >= 1 else "[1-9]"
        return {"type": "string", "pattern": f"^(?:{DURATION})$", "allOf": [{"pattern": least}]}


def _plain_number(value: Any) -> Any:
    """A number without quotes. None if YAML 1.1 and pydantic differ about it: 010 is 8 or 10."""
    if isinstance(value, Text) and value.quoted:
        raise ValueError(f"{quote(value)} is text; write a number, without quotes")
    return (
        value
        if isinstance(value, str) and re.fullmatch(r"(?:0|[1-9.])[0-9.]*(?:[eE][+-]?[0-9]{1,3})?", value)
        else None
    )


def boolean(value: Any) -> Any:
    """A boolean of YAML, or None."""
    return value.value if isinstance(value, Other) else None


def _refuse(value: Any, refused: Mapping[str, str]) -> Any:
    if isinstance(value, str) and value in refused:
        raise ValueError(f"{value} {refused[value]}")
    return value


def refuse(**refused: str) -> BeforeValidator:
    """Names texts that others accept and says why they are refused here."""
    return BeforeValidator(partial(_refuse, refused=refused))


# -- numbers, booleans, names ----------------------------------------------------------------------

Count = Annotated[
    int,
    Field(ge=1, lt=10**15),
    Otherwise("is not a whole number of at least 1", "number"),
    BeforeValidator(_plain_number),
]
Rate = Annotated[
    float,
    Field(gt=0, le=10_000, allow_inf_nan=False),
    Otherwise("is not a number above 0 and up to 10000", "number"),
    BeforeValidator(_plain_number),
]
Flag = Annotated[bool, Otherwise("is neither true nor false"), BeforeValidator(boolean)]
Interval = Annotated[float, Duration(1.0)]
Age = Annotated[float, Duration(0.001)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{quote(text)} {_NAME.message}")
    return text


_NAME = Pattern(r"\S(?:.*\S)?", "is not a name: 1 to 256 visible characters, no spaces around them")
Name = Annotated[str, _NAME, AfterValidator(_printable)]
File = Annotated[str, Pattern(r"[^\x00]+", "is not the name of a file", longest=4096)]


# -- AWS's names -----------------------------------------------------------------------------------

_REGION = Pattern(r"[a-z]{2,}(?:-[a-z]+){1,4}-[0-9]{1,2}", "is not a Region name, e.g. us-east-1", longest=64)
#: Names in old SDKs for an endpoint of a Region: fips-us-gov-west-1, us-gov-west-1-fips, dkr-us-east-1.
_PSEUDO_REGION = r"(?:(?:fips|dkr|ecr|api|prod|data)-)+(.+)|(.+)-fips"


def _real_region(value: Any) -> Any:
    if isinstance(value, str) and (pseudo := re.fullmatch(_PSEUDO_REGION, value[:64])):
        fips = " and set AWS_USE_FIPS_ENDPOINT=true" if "fips" in value else ""
        raise ValueError(
            f"{quote(value)} is not a Region but an endpoint; write {pseudo[1] or pseudo[2]}{fips}"
        )
    if isinstance(value, str) and (zone := re.fullmatch(f"({_REGION.regex})[a-z]", value[:64])):
        raise ValueError(f"{quote(value)} is an Availability Zone; write {zone[1]}")
    return value


Region = Annotated[
    str,
    _REGION,
    BeforeValidator(_real_region),
    Field(json_schema_extra={"not": {"type": "string", "pattern": f"^(?:{_PSEUDO_REGION})$"}}),
]
Account = Annotated[str, Pattern("[0-9]{12}", "is not an account: 12 digits, e.g. 333344445555")]
RoleArn = Annotated[
    str,
    Pattern(
        r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+",
        "is not the ARN of a role, e.g. arn:aws:iam::222233334444:role/ecr-reader",
        longest=2048,
    ),
]
#: STS's externalIdType (botocore service model).
ExternalId = Annotated[
    Secret,
    Pattern(
        r"[A-Za-z0-9_+=,.@:/-]+",
        "is not an external id: 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -",
        shortest=2,
        longest=1224,
        kind="hidden",
    ),
    AfterValidator(Secret),
]
Bcrypt = Annotated[
    Secret,
    Pattern(
        r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}",
        "is not a bcrypt hash; make one with: htpasswd -nBC 10 '' | tr -d ':'",
        kind="hidden",
    ),
    AfterValidator(Secret),
]
_TAG = Pattern(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*",
    "is not an image tag: up to 128 of A-Z a-z 0-9 . _ -, not beginning with . or -",
    longest=128,
)
Tag = Annotated[str, _TAG]
Digest = Annotated[
    str, Pattern("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", "is not a digest: sha256: and 64 of 0-9 a-f")
]


#: A URI or an ARN of ECR: account, Region, repository. Covers FIPS, dual-stack and other partitions.
_ADDRESS = re.compile(
    r"(?:https?://)?(?P<account>[0-9]{12})\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+(?:/(?P<name>.*))?"
    r"|arn:aws[a-z-]*:ecr:(?P<region2>[a-z0-9-]+):(?P<account2>[0-9]{12}):repository/(?P<name2>.*)"
)
_IMAGE = re.compile(r"(?P<name>[^:@]+)(?::(?P<tag>[^:@]+))?(?:@(?P<digest>sha(?:256|512):.+))?")


def _no_address(value: Any) -> Any:
    """A repository's name, or ValueError if it holds what other keys are for."""
    if not isinstance(value, str) or len(value) > 1024:
        return value
    address = _ADDRESS.fullmatch(value)
    rest = value if not address else address["name"] or address["name2"] or "team/app"
    image = _IMAGE.fullmatch(rest)
    if image and (address or image["tag"] or image["digest"]):
        keys = [f"{key}: {image[key]}" for key in ("digest", "tag") if image[key]]
        meant = " and ".join([f"repository: {image['name']}", *keys[:1]])
        if not address:
            raise ValueError(f"{quote(value)} is more than the name of a repository; write {meant}")
        account, region = address["account"] or address["account2"], address["region"] or address["region2"]
        raise ValueError(
            f"{quote(value)} is an address in ECR, not the name of a repository; write {meant},"
            f' and under registries: region: {region} and registry_id: "{account}"'
        )
    return value


@dataclass(frozen=True, slots=True)
class OrGlob:
    """A name without any character of a glob, or a glob."""

    name: Pattern
    glob: Pattern

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._read, core_schema.str_schema())

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        """A glob has a character that makes it one, and a ] after its last [."""
        closed = [{"pattern": r"[*?\[]"}, {"pattern": r"^(?:.*\])?[^\[]*$"}]
        return {"anyOf": [self.name.schema(), {**self.glob.schema(), "allOf": closed}]}

    def _read(self, text: str) -> str:
        form = self.name if GLOB.isdisjoint(text) else self.glob
        if form is self.glob and text.rfind("[") > text.rfind("]"):
            raise ValueError(f"{quote(text)} opens a [ that no ] closes")
        if not (form.shortest <= len(text) <= form.longest and re.fullmatch(form.regex, text)):
            raise ValueError(f"{quote(text)} {form.message}")
        return text


#: ECR's RepositoryName (botocore service model).
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
RepositoryOrGlob = Annotated[
    str,
    OrGlob(
        Pattern(
            rf"{_PART}(?:/{_PART})*",
            "is not an ECR repository name: 2 to 256 of a-z 0-9 . _ - /, e.g. team/app",
            shortest=2,
        ),
        Pattern(
            r"[a-z0-9._/*?\[\]!-]+",
            "is not a glob over ECR repositories: up to 256 of a-z 0-9 . _ - / * ? [ ] !",
        ),
    ),
    BeforeValidator(_no_address),
    Field(
        json_schema_extra={
            "not": {"type": "string", "pattern": r"^[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.[a-z0-9-]+\.[a-z0-9.-]+"}
        }
    ),
]
TagOrGlob = Annotated[
    str,
    OrGlob(
        _TAG,
        Pattern(
            r"[A-Za-z0-9_.*?\[\]!-]+",
            "is not an image tag or a glob over them: up to 256 of A-Z a-z 0-9 . _ - * ? [ ] !",
        ),
    ),
]
