"""The types of single values: what pydantic accepts, and what the operator reads instead of its errors.

A pattern is AWS's own where AWS publishes one, and never a list of names, so a new Region needs no release.
Patterns are RE2, because Helm checks them with Go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import pydantic
from pydantic import BeforeValidator, Field, GetPydanticSchema, PlainSerializer, TypeAdapter, ValidationError
from pydantic_core import core_schema

from exporter.config.yaml_source import explain, show

#: The characters that make a text a glob.
GLOB = frozenset("*?[")


class Secret(pydantic.Secret[str]):
    """A text that is not shown."""

    def _display(self) -> str:
        return "<secret>"


# -- durations -------------------------------------------------------------------------------------

#: Prometheus's units in its order, in milliseconds.
_UNITS = {
    "y": 31_536_000_000,
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}
DURATION = "".join(rf"(?:([0-9]{{1,15}}){unit})?" for unit in _UNITS)
_LONGEST = 292 * _UNITS["y"]  # what Prometheus can hold


def parse_duration(text: str, shortest: float = 0.0) -> float:
    """Seconds in a duration as Prometheus writes it: 1h30m, 15s, 0. Raises ValueError with advice."""
    if re.fullmatch("[1-9][0-9]{0,14}", text):
        raise ValueError(f"{text} has no unit; write e.g. {text}s")
    match = re.fullmatch(DURATION, "0s" if text == "0" else text)
    if not match or not text:
        raise ValueError(f"{show(text)} is not a duration; write it as in Prometheus, e.g. 30d or 1h30m")
    milliseconds = sum(int(n) * size for n, size in zip(match.groups("0"), _UNITS.values(), strict=True))
    if milliseconds > _LONGEST:
        raise ValueError(f"{show(text)} is longer than Prometheus's longest, 292y")
    if milliseconds < shortest * 1000:
        raise ValueError(f"{show(text)} is too short; at least {format_duration(shortest)}")
    return milliseconds / 1000


def format_duration(seconds: float) -> str:
    """The duration as Prometheus writes it, to the millisecond; in years and weeks if they fit exactly."""
    rest, text = round(seconds * 1000), ""
    for unit, size in _UNITS.items():
        if rest >= size and (unit not in ("y", "w") or rest % size == 0):
            text += f"{rest // size}{unit}"
            rest %= size
    return text or "0s"


def checked(kind: Any, text: str) -> Any:
    """The value that a type of this module makes from text. Raises ValueError with advice."""
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise ValueError(explain(error.errors(include_url=False)[0])) from error


# -- how a type is built ---------------------------------------------------------------------------


def _reads(read: Callable[[str], Any], write: Callable[[Any], str] = str, **schema: Any) -> Any:
    """A type that `read` makes from text and `write` writes again. `read` raises ValueError with advice."""
    written = core_schema.plain_serializer_function_ser_schema(write)
    core = core_schema.no_info_after_validator_function(read, core_schema.str_schema(), serialization=written)
    return GetPydanticSchema(lambda *_: core, lambda *_: {"type": "string"} | schema)


def text(
    pattern: str,
    name: str,
    slips: Mapping[str, str] | None = None,
    *,
    shortest: int = 1,
    longest: int = 256,
    kind: Callable[[str], Any] = str,
) -> Any:
    """Printable text of a form; lengths are in characters.

    `slips` are patterns of usual slips, and what to write instead: "{0}" is the first group. A text that
    matches one is refused, also if it has the form.
    """

    def read(value: str) -> Any:
        fits = shortest <= len(value) <= longest and value.isprintable()
        advice = "" if fits and re.fullmatch(pattern, value) else f"is not {name}"
        for slip, hint in (slips or {}).items():
            if fits and (match := re.fullmatch(slip, value)):
                advice = hint.format(*match.groups("NAME"))
                break
        if advice:
            raise ValueError(advice if kind is Secret else f"{show(value)} {advice}")
        return kind(value)

    schema: dict[str, Any] = {"minLength": shortest, "maxLength": longest, "pattern": f"^(?:{pattern})$"}
    if slips:
        schema["not"] = {"type": "string", "pattern": f"^(?:{'|'.join(slips)})$"}
    return _reads(read, **schema)


def _duration(shortest: float, least: str, *, or_never: bool = False) -> Any:
    """Seconds; also 0 if `or_never`. `least` is the pattern of what is long enough, for the JSON Schema."""

    def read(value: str) -> float:
        never = or_never and parse_duration(value) == 0
        return 0.0 if never else parse_duration(value, shortest=shortest)

    zero, least = (r"0|", rf"^(?:0|(?:0+(?:[ywdhs]|ms?))+)$|{least}") if or_never else ("", least)
    return _reads(read, format_duration, pattern=f"^(?:{zero}{DURATION})$", allOf=[{"pattern": least}])


def _number(pattern: str, name: str) -> BeforeValidator:
    """The text of a number. YAML 1.1 and pydantic differ about others: 010 is 8 or 10."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{show(value)} is not {name}, without leading zeros")
        return value

    return BeforeValidator(check)


Count = Annotated[
    int,
    Field(ge=1, lt=10**15),
    _number(r"-?(?:0|[1-9][0-9]{0,18})(?:\.0+)?", "a whole number; write e.g. 100"),
]
Rate = Annotated[
    float,
    Field(gt=0, le=10_000),
    _number(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?", "a number; write e.g. 10 or 0.5"),
    PlainSerializer(lambda rate: int(rate) if float(rate).is_integer() else rate),
]
#: A part of a second or more. The m of ms is not a minute.
_SECOND = "[1-9][0-9]*(?:[ywdhs]|m(?:[0-9]|$))|[1-9][0-9]{3,}ms"
Interval = Annotated[float, _duration(1.0, _SECOND)]
IntervalOrNever = Annotated[float, _duration(1.0, _SECOND, or_never=True)]
Age = Annotated[float, _duration(0.001, "[1-9]")]
_NAME = "a name: visible characters, no spaces around them"
Name = Annotated[str, text(r"\S(?:.*\S)?", _NAME)]
#: The longest `target` label. Mimir takes 2048 characters by default, and people read them.
LONGEST_LABEL = 128
Label = Annotated[str, text(r"\S(?:.*\S)?", f"{_NAME}, at most {LONGEST_LABEL}", longest=LONGEST_LABEL)]
File = Annotated[str, text(r"[^\x00-\x1f\x7f]+", "the name of a file", longest=4096)]

# -- AWS's names -----------------------------------------------------------------------------------

#: Names in old SDKs for an endpoint of a Region: fips-us-gov-west-1, us-gov-west-1-fips, dkr-us-east-1.
_ENDPOINT = "is not a Region but an endpoint; write {0}, and for FIPS set AWS_USE_FIPS_ENDPOINT=true"
_NO_REGIONS = {
    r"(?:(?:fips|dkr|ecr|api|prod|data)-)+(.+)": _ENDPOINT,
    r"(.+)-fips": _ENDPOINT,
    r"(.+-[0-9])[a-z]": "is an Availability Zone; write {0}",
}
REGION = r"[a-z]{2,}(?:-[a-z]+){1,4}-[0-9]{1,2}"
Region = Annotated[str, text(REGION, "a Region name, e.g. us-east-1", _NO_REGIONS, longest=64)]
#: Covers FIPS, dual-stack and other partitions, and the schemes of other tools, such as oci:// of Helm.
REGISTRY_HOST = r"(?:[a-z]+://)?([0-9]{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.[a-z0-9.-]+"
_NO_ACCOUNTS = {rf"{REGISTRY_HOST}(?:/.*)?": "is the address of a registry; write {0}"}
Account = Annotated[str, text("[0-9]{12}", "an account: 12 digits, e.g. 333344445555", _NO_ACCOUNTS)]
_ROLE_ARN = r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+"
_ROLE = "the ARN of a role, e.g. arn:aws:iam::222233334444:role/ecr-reader"
RoleArn = Annotated[str, text(_ROLE_ARN, _ROLE, longest=2048)]
#: How the Regions of a partition begin, where that tells the partition.
_PARTITIONS = {"aws-cn": "cn-", "aws-us-gov": "us-gov-"}


def in_other_partition(region: str, arn: str) -> bool:
    """Whether an ARN is certainly of another partition than the Region."""
    partition = arn.split(":")[1]
    return any((partition == each) != region.startswith(start) for each, start in _PARTITIONS.items())


#: STS's externalIdType (botocore service model).
_EXTERNAL_ID = "an external id: 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -"
ExternalId = Annotated[
    Secret, text("[A-Za-z0-9_+=,.@:/-]+", _EXTERNAL_ID, shortest=2, longest=1224, kind=Secret)
]
_SQS_ARN = "sqs:([a-z0-9-]+):([0-9]{12}):(.+)"
_NO_QUEUES = {
    f"arn:aws-cn:{_SQS_ARN}": "is an ARN; write https://sqs.{0}.amazonaws.com.cn/{1}/{2}",
    f"arn:[a-z-]+:{_SQS_ARN}": "is an ARN; write https://sqs.{0}.amazonaws.com/{1}/{2}",
    "([a-z0-9.-]+/[0-9]{12}/.+)": "has no scheme; write https://{0}",
}
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_QUEUE_URL = (
    rf"https?://[A-Za-z0-9.-]+(?::(?:{_PORT}))?/[0-9]{{12}}/(?:[A-Za-z0-9_-]|\{{shard\}}){{1,80}}(?:\.fifo)?"
)
_QUEUE = "the URL of an SQS queue, e.g. https://sqs.us-east-1.amazonaws.com/222233334444/ecr-events-{shard}"
#: Where the host of a queue has its Region. That of a local stand-in has none.
_QUEUE_HOST = (
    r"(?:sqs(?:-fips)?\.([a-z0-9-]+)|([a-z0-9-]+)\.queue)\.(?:amazonaws\.(?:com|com\.cn|eu)|api\.aws)"
)


def _queue_url(url: str) -> str:
    """The URL. Raises ValueError with advice if its host is one of AWS, with something else than a Region."""
    if found := re.fullmatch(_QUEUE_HOST, urlsplit(url).hostname or ""):
        label = found[1] or found[2]
        if not re.fullmatch(REGION, label) or any(re.fullmatch(slip, label) for slip in _NO_REGIONS):
            raise ValueError(
                f"{show(label)} in the host is not a Region, e.g. us-east-1; copy the URL from AWS"
            )
    return url


QueueUrl = Annotated[str, text(_QUEUE_URL, _QUEUE, _NO_QUEUES, longest=2048, kind=_queue_url)]


def queue_region(url: str) -> str | None:
    """The Region in the URL of a queue; None if it has none, as that of a local stand-in."""
    labels = (urlsplit(url).hostname or "").split(".")
    return next((label for label in labels if re.fullmatch(REGION, label)), None)


_BCRYPT = r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}"
Bcrypt = Annotated[
    Secret, text(_BCRYPT, "a bcrypt hash; make one with: htpasswd -nBC 10 '' | tr -d ':'", kind=Secret)
]


def _or_glob(name: str, characters: str) -> str:
    """The pattern of a name or a glob."""
    return rf"{name}|(?:[{characters}]*(?:[*?]|\[!?[{characters}]+\]))+[{characters}]*"


_ECR_ARN = "arn:[a-z-]+:ecr:([a-z0-9-]+):([0-9]{12})"
_ARN = rf"{_ECR_ARN}:repository/(.+)"
_ADDRESS = 'write repository: {2}, and under registries: region: {1} and registry_id: "{0}"'
_NO_PLACES = {
    rf"{REGISTRY_HOST}(?:/.*)?": "is the address of a registry; write {0}/{1}",
    rf"{_ECR_ARN}(?::.*)?": "is an ARN; write {1}/{0}",
    rf"([0-9]{{12}})[:@.,]({REGION})": "has no slash; write {0}/{1}",
    rf"({REGION})[/:@.,]([0-9]{{12}})": "begins with the Region; write {1}/{0}",
    "([0-9]{12})": "is an account without a Region; write e.g. {0}/us-east-1",
    **{rf"((?:[0-9]{{12}}/)?){slip}": hint.replace("{0}", "{0}{1}") for slip, hint in _NO_REGIONS.items()},
}
_PLACE = "a destination: a Region, or an account (12 digits) and a Region, e.g. 444455556666/us-west-2"
Place = Annotated[str, text(rf"(?:[0-9]{{12}}/)?{REGION}", _PLACE, _NO_PLACES)]
_NO_REPOSITORIES = {
    rf"{REGISTRY_HOST}(?:/([^:@]+))?(?:[:@].*)?": f"is an address in ECR; {_ADDRESS}",
    _ARN: 'is an ARN; write repository: {2}, and under registries: region: {0} and registry_id: "{1}"',
    r"([^:@]+)(?::[^:@]+)?@(.+)": "is more than a name; write repository: {0} and digest: {1}",
    r"([^:@]+):([^:@]+)": "is more than a name; write repository: {0} and tag: {1}",
}
#: ECR's RepositoryName (botocore service model): at least 2 characters.
REPOSITORY = r"[a-z0-9](?:(?:[._/]|__|-+)?[a-z0-9])+"
_REPOSITORY_NAME = (
    "an ECR repository name or a glob: a-z 0-9 . _ - /, e.g. team/app, or team/* with * ? [ ] !"
)
RepositoryOrGlob = Annotated[
    str, text(_or_glob(REPOSITORY, "a-z0-9._/-"), _REPOSITORY_NAME, _NO_REPOSITORIES)
]
_IMAGE_TAG = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_TAG_NAME = "an image tag: up to 128 of A-Z a-z 0-9 . _ -, not beginning with . or -"
Tag = Annotated[str, text(_IMAGE_TAG, _TAG_NAME)]
TagOrGlob = Annotated[
    str, text(_or_glob(_IMAGE_TAG, "A-Za-z0-9_.-"), f"{_TAG_NAME}; or a glob with * ? [ ] !")
]
DIGEST = "sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
Digest = Annotated[str, text(DIGEST, "a digest: sha256: and 64 of 0-9 a-f")]
