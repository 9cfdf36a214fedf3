"""Every key of the configuration: its type, default and unit, and the rules between keys.

pydantic reads the dataclasses below, and the JSON Schema comes from them too. After a wrong or unknown key
pydantic skips its checks of whole models. So the rules between keys stand beside the models: they read the
values of the file, except those that are wrong already, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import blake2b
from math import nan
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StrictBool, TypeAdapter, ValidationError, with_config

from exporter.config import validators as of
from exporter.config.yaml_source import Document, Place, Problem, contents, dump, show

_FILLED = Field(min_length=1)
_ASSUMED: Any = {"dependencies": {"external_id": ["role_arn"]}}


@with_config(extra="forbid", json_schema_extra=_ASSUMED)
@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A source registry. Without keys it is the account and Region that boto3 finds by itself."""

    name: of.Name = ""
    region: of.Region | None = None
    role_arn: of.RoleArn | None = None
    external_id: of.ExternalId | None = None
    registry_id: of.Account | None = None
    #: The SQS queue with the events of the registry; {shard} in it stands for the shard's ordinal.
    events_queue_url: of.QueueUrl | None = None

    @property
    def account(self) -> str:
        """Its account, if the file tells it; else "", and that of the credentials counts."""
        return self.registry_id or (self.role_arn.split(":")[4] if self.role_arn else "")

    @property
    def label(self) -> str:
        """What targets call it: its name, else `<account>/<region>`; "" if the file does not tell both."""
        return self.name or (f"{self.account}/{self.region}" if self.account and self.region else "")


@with_config(extra="forbid", json_schema_extra=_ASSUMED)
@dataclass(frozen=True, slots=True)
class DestinationSettings:
    """How destinations in another account are read: in one Region, or in all of them."""

    registry_id: of.Account
    region: of.Region | None = None
    role_arn: of.RoleArn | None = None
    external_id: of.ExternalId | None = None


#: What a target with a tag or a digest must not have.
_FILTERS = ("tags", "exclude_tags", "latest", "pushed_within", "untagged")
_NO_FILTERS: Any = dict.fromkeys(_FILTERS, False) | {"untagged": {"const": False}}
_ONE_WAY: Any = {
    "tag": {"properties": {"digest": False, **_NO_FILTERS}},
    "digest": {"properties": {"tag": False, **_NO_FILTERS}},
}


@with_config(extra="forbid", json_schema_extra={"dependencies": _ONE_WAY})
@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What to watch in each repository that matches: one tag, one digest, or what passes the filters."""

    repository: of.RepositoryOrGlob
    tag: of.Tag | None = None
    digest: of.Digest | None = None
    tags: Annotated[tuple[of.TagOrGlob, ...], _FILLED] = ()
    exclude_tags: Annotated[tuple[of.TagOrGlob, ...], _FILLED] = ()
    #: The newest by push time, in each repository.
    latest: of.Count | None = None
    #: Seconds.
    pushed_within: of.Age | None = None
    untagged: StrictBool = False
    #: Names of registries; none for all of them.
    registries: Annotated[tuple[of.Name, ...], _FILLED] = ()
    name: of.Label = ""
    #: Where the images must arrive, whatever the rules say: `[<account>/]<region>`.
    destinations: Annotated[tuple[of.Place, ...], _FILLED] = ()

    @property
    def is_glob(self) -> bool:
        """Whether the repository is a pattern, so that the repositories of the registry must be listed."""
        return not of.GLOB.isdisjoint(self.repository)

    @property
    def label(self) -> str:
        """The `target` label of the metrics: the name, else made from the other keys.

        It differs between targets that select differently, and stays the same between releases.
        """
        if self.name:
            return self.name
        if self.digest:
            return _shortened(f"{self.repository}@{self.digest}")
        tags = ",".join([self.tag] if self.tag else self.tags)
        options = {
            "exclude_tags": ",".join(self.exclude_tags),
            "latest": self.latest,
            "pushed_within": self.pushed_within and of.format_duration(self.pushed_within),
        }
        parts = [f"{self.repository}:{tags}" if tags else self.repository]
        parts += [f"{key}={value}" for key, value in options.items() if value]
        return _shortened(" ".join([*parts, "untagged"] if self.untagged else parts))

    @property
    def selection(self) -> TargetSettings:
        """What it selects: all but its name, its registries and its destinations."""
        return replace(self, name="", registries=(), destinations=())


def _shortened(label: str) -> str:
    """The label; the beginning and a hash of it if it is longer than LONGEST_LABEL.

    No repository and no tag contains a ~, so a shortened label never equals a whole one.
    """
    if len(label) <= of.LONGEST_LABEL:
        return label
    ending = "~" + blake2b(label.encode(), digest_size=8).hexdigest()
    return label[: of.LONGEST_LABEL - len(ending)] + ending


@with_config(extra="forbid")
@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration. Intervals are in seconds."""

    targets: Annotated[tuple[TargetSettings, ...], _FILLED]
    registries: Annotated[tuple[RegistrySettings, ...], _FILLED] = (RegistrySettings(),)
    destinations: tuple[DestinationSettings, ...] = ()
    discovery_interval: of.Interval = 60.0
    pending_interval: of.Interval = 15.0
    failed_interval: of.Interval = 300.0
    settled_interval: of.Interval = 21600.0
    #: 0: destinations are not looked at.
    replica_interval: of.IntervalOrNever = 900.0
    stale_after: of.Interval = 3600.0
    #: Calls a second of one account and Region, over all ECR operations.
    requests_per_second: of.Rate = 10.0
    max_images: of.Count = 100_000
    #: Which images have series of their own: all, or those that are not COMPLETE and present everywhere.
    image_series: Literal["all", "unfinished"] = "all"
    state_file: of.File | None = None


_ADAPTER = TypeAdapter(Settings)
_TARGET = TypeAdapter(TargetSettings)
_DEFAULTS = Settings(targets=())


def load(path: str, **options: Any) -> Settings:
    """The settings in a file; options as for `parse`. Raises ConfigError, also if it cannot be read."""
    return parse(contents(path), file=path, **options)


def parse(
    text: str | bytes,
    *,
    file: str = "config.yaml",
    region: str | None = None,
    regions: Collection[str] = (),
    warn: Callable[[Problem], None] = lambda _: None,
) -> Settings:
    """The settings in a text; `file` is what its problems name. Raises ConfigError and nothing else.

    `regions` are the known Regions. Another Region is a warning and no problem, because AWS opens new ones.
    `region` is that of registries without one.
    """
    document = Document(text, file, Settings)
    if not yaml.__with_libyaml__:
        warn(
            Problem(file, None, "", "PyYAML has no libyaml here, so a large file takes several times as long")
        )
    found = document.validate(_conflicts)
    for place, name in _regions(found):
        if regions and name not in regions:
            close = " or ".join(sorted(get_close_matches(name, regions, n=2)))
            message = f"{show(name)} is not a Region that botocore knows"
            message += f"; did you mean {close}?" if close else ""
            warn(document.problem(place, message))
    for i, entry in enumerate(found.registries):
        here, there = entry.region or region, of.queue_region(entry.events_queue_url or "")
        if here and there and here != there:
            message = f"the queue is in {there} and the registry in {here}: {_ELSEWHERE}"
            warn(document.problem(("registries", i, "events_queue_url"), message))
    for place, role_region, role_arn in _roles(found, region):
        if of.in_other_partition(role_region, role_arn):
            partition = role_arn.split(":")[1]
            message = f"the role is in partition {partition}, and {role_region} is in another: {_SEPARATE}"
            warn(document.problem(place, message))
    return found


def _roles(settings: Settings, region: str | None) -> Iterator[tuple[Place, str, str]]:
    """Every role of the file whose Region is known, with its place. `region`: of registries without one."""
    for key, default in (("registries", region), ("destinations", None)):
        for i, entry in enumerate(getattr(settings, key)):
            if entry.role_arn and (used_in := entry.region or default):
                yield (key, i, "role_arn"), used_in, entry.role_arn


def _regions(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Every Region of the file, with its place."""
    for key in ("registries", "destinations"):
        for i, entry in enumerate(getattr(settings, key)):
            if entry.region:
                yield (key, i, "region"), entry.region
    for i, registry in enumerate(settings.registries):
        if region := of.queue_region(registry.events_queue_url or ""):
            yield ("registries", i, "events_queue_url"), region
    for i, target in enumerate(settings.targets):
        for number, destination in enumerate(target.destinations):
            yield ("targets", i, "destinations", number), destination.rpartition("/")[2]


#: Why that matters (docs/events.md, "What is needed where").
_ELSEWHERE = (
    "a rule of EventBridge sends only to queues in its own Region, "
    "so a rule must forward the events to an event bus in the Region of the queue"
)
#: Why that matters (AWS documentation of partitions).
_SEPARATE = "no role of one partition works in another"
_ROLE_NEEDED = "works only with a role_arn: it is handed over when a role is assumed"

# -- rules between keys: they read the plain values of the file, where a wrong one is None ---------

_Plain = Mapping[str, Any]


def _conflicts(values: _Plain) -> Iterator[tuple[Place, str]]:
    """The place and the message of each value that contradicts another."""
    for key in ("registries", "destinations"):
        for i, entry in enumerate(values.get(key) or ()):
            if entry and "external_id" in entry and "role_arn" not in entry:
                yield (key, i, "external_id"), _ROLE_NEEDED
    registries, targets = values.get("registries", [{}]) or [None], values.get("targets") or ()
    names = [_label(entry) for entry in registries]
    # Two entries with one default name are one registry.
    owners = {name: i for i, name in enumerate(names) if name and "name" not in registries[i]}
    for i, (entry, name) in enumerate(zip(registries, names, strict=True)):
        if name and (owner := owners.setdefault(name, i)) != i and "name" in entry:
            yield ("registries", i, "name"), f"{show(name)} is already the name of registries[{owner}]"
    for i, target in enumerate(targets):
        for place, message in _target_conflicts(target or {}, names):
            yield ("targets", i, *place), message
    yield from _label_conflicts(targets)
    after, discovery = (_seconds(values, key) for key in ("stale_after", "discovery_interval"))
    if after < 2 * discovery:
        key = "stale_after" if "stale_after" in values else "discovery_interval"
        shown, least = of.format_duration(after), of.format_duration(2 * discovery)
        message = f"stale_after ({shown}) is shorter than two discovery intervals ({least})"
        yield (key,), f"{message}: series would come and go between listings"


def _seconds(values: _Plain, key: str) -> float:
    """An interval, from the file or else its default. A wrong one is nan, which is shorter than nothing."""
    if key not in values:
        return float(getattr(_DEFAULTS, key))
    return of.parse_duration(values[key]) if values[key] else nan


def _target_conflicts(target: _Plain, names: Sequence[str | None]) -> Iterator[tuple[Place, str]]:
    """`names` are those of the registries. None is one that a mistake leaves open."""
    given = [key for key in ("tag", "digest", *_FILTERS) if target.get(key, False) is not False]
    if len(given) > 1 and given[0] in ("tag", "digest"):
        others = ", ".join(given[1:])
        yield (given[0],), f"cannot be combined with {others}: name one tag, one digest, or filters"
    for i, name in enumerate(target.get("registries") or ()):
        if name and None not in names and name not in names:
            known = ", ".join(sorted({show(each) for each in names if each}))
            advice = f"known: {known}" if known else "give a registry a name to refer to it"
            yield ("registries", i), f"{show(name)} is not the name of a registry; {advice}"


def _label_conflicts(targets: Sequence[_Plain | None]) -> Iterator[tuple[Place, str]]:
    """Names that are the labels of other targets, which select differently."""
    if not any(target and "name" in target for target in targets):
        return
    found: dict[int, TargetSettings] = {}
    for i, target in enumerate(targets):
        with suppress(ValidationError):  # what a target with a mistake selects is open
            if target and None not in target.values():
                found[i] = _TARGET.validate_python(target)
    owners: dict[str, int] = {}
    for i, settings in sorted(found.items(), key=lambda item: bool(item[1].name)):
        owner = owners.setdefault(settings.label, i)
        if settings.name and found[owner].selection != settings.selection:
            message = f"is already the label of targets[{owner}], which selects differently"
            yield ("targets", i, "name"), f"{show(settings.name)} {message}"


def _label(entry: _Plain | None) -> str | None:
    """The label of a registry; None if a mistake leaves it open."""
    if entry is None:
        return None
    naming = ("name",) if "name" in entry else ("region", "role_arn", "registry_id")
    given = {key: entry[key] for key in naming if key in entry}
    return None if None in given.values() else RegistrySettings(**given).label


# -- back to YAML ----------------------------------------------------------------------------------


def to_yaml(settings: Settings) -> str:
    """The complete effective settings; the same settings when parsed again, unless it holds secrets."""
    lists = {"registries", "targets"}
    first = _ADAPTER.dump_python(settings, mode="json", include=lists, exclude_defaults=True)
    others = _ADAPTER.dump_python(settings, mode="json", exclude=lists, exclude_none=True)
    return dump({"registries": [{}]} | first | others)
