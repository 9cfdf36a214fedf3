"""Every key of the configuration: its type, default and unit, and the rules between keys.

pydantic reads the dataclasses below, and the JSON Schema comes from them too. After a wrong or unknown key
pydantic skips its checks of whole models. So the rules between keys stand beside the models: they read the
values of the file, except those that are wrong already, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, StrictBool, TypeAdapter

from exporter.config import validators as of
from exporter.config.validators import GLOB, format_duration, parse_duration
from exporter.config.yaml_source import (
    HAS_LIBYAML,
    Document,
    Place,
    Problem,
    Vocabulary,
    contents,
    dump,
    quote,
)

#: A list without repetitions. _check checks it: pydantic skips a validator of a list beside a wrong item.
_UNIQUE = Field(min_length=1, json_schema_extra={"uniqueItems": True})


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A source registry. Without keys it is the account and Region that boto3 finds by itself."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid", json_schema_extra={"dependencies": {"external_id": ["role_arn"]}}
    )

    name: of.Name = ""
    region: of.Region | None = None
    role_arn: of.RoleArn | None = None
    external_id: of.ExternalId | None = None
    registry_id: of.Account | None = None

    @property
    def default_name(self) -> str:
        """`<account>/<region>`, or "" if the file does not have both."""
        account = self.registry_id or (self.role_arn.split(":")[4] if self.role_arn else None)
        return f"{account}/{self.region}" if account and self.region else ""


#: What a target with a tag or a digest must not have.
_FILTERS = ("tags", "exclude_tags", "latest", "pushed_within", "untagged")
_NO_FILTERS: dict[str, Any] = dict.fromkeys(_FILTERS, False) | {"untagged": {"const": False}}


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What to watch in each repository that matches: one tag, one digest, or what passes the filters."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "dependencies": {
                "tag": {"properties": {"digest": False, **_NO_FILTERS}},
                "digest": {"properties": {"tag": False, **_NO_FILTERS}},
            }
        },
    )

    repository: of.RepositoryOrGlob
    tag: of.Tag | None = None
    digest: of.Digest | None = None
    tags: Annotated[tuple[of.TagOrGlob, ...], _UNIQUE] = ()
    exclude_tags: Annotated[tuple[of.TagOrGlob, ...], _UNIQUE] = ()
    #: The newest by push time, in each repository.
    latest: of.Count | None = None
    #: Seconds.
    pushed_within: of.Age | None = None
    untagged: StrictBool = False
    #: Names of registries; none for all of them.
    registries: Annotated[tuple[of.Name, ...], _UNIQUE] = ()

    @property
    def is_glob(self) -> bool:
        """Whether the repository is a pattern, so that the repositories of the registry must be listed."""
        return not GLOB.isdisjoint(self.repository)

    @property
    def label(self) -> str:
        """The `target` label of the metrics. It differs between targets that select differently."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        tags = ",".join([self.tag] if self.tag else self.tags)
        parts = [f"{self.repository}:{tags}" if tags else self.repository]
        if self.exclude_tags:
            parts.append("exclude_tags=" + ",".join(self.exclude_tags))
        if self.latest is not None:
            parts.append(f"latest={self.latest}")
        if self.pushed_within is not None:
            parts.append(f"pushed_within={format_duration(self.pushed_within)}")
        if self.untagged:
            parts.append("untagged")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration. Intervals are in seconds."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    targets: Annotated[tuple[TargetSettings, ...], Field(min_length=1)]
    registries: Annotated[tuple[RegistrySettings, ...], Field(min_length=1)] = (RegistrySettings(),)
    discovery_interval: of.Interval = 60.0
    pending_interval: of.Interval = 15.0
    failed_interval: of.Interval = 300.0
    settled_interval: of.Interval = 21600.0
    stale_after: of.Interval = 3600.0
    #: Calls a second of one account and Region, over all ECR operations.
    requests_per_second: of.Rate = 10.0
    max_images: of.Count = 100_000
    state_file: of.File | None = None


def keys(model: Any) -> tuple[str, ...]:
    """The keys that a model has in the file."""
    return tuple(each.name for each in fields(model))


_VOCABULARY = Vocabulary(
    keys={(): keys(Settings), ("registries",): keys(RegistrySettings), ("targets",): keys(TargetSettings)},
    required={
        "targets": "name at least one, e.g. - repository: team/app",
        "repository": "write e.g. repository: team/app",
    },
)


@cache
def adapter() -> TypeAdapter[Settings]:
    """Pydantic's reader of the configuration."""
    return TypeAdapter(Settings)


def load(path: str, **options: Any) -> Settings:
    """The settings in a file; options as for `parse`. Raises ConfigError, also if it cannot be read."""
    return parse(contents(path), file=path, **options)


def parse(
    text: str | bytes,
    *,
    file: str = "config.yaml",
    regions: Collection[str] = (),
    warn: Callable[[Problem], None] = lambda _: None,
) -> Settings:
    """The settings in a text; `file` is what its problems name. Raises ConfigError and nothing else.

    `regions` are the known Regions. Another Region is a warning and no problem, because AWS opens new ones.
    """
    if not HAS_LIBYAML:
        message = "PyYAML has no libyaml here, so a large file takes several times as long"
        warn(Problem(file, None, "", message))
    document = Document(text, file, _VOCABULARY)
    found = document.validate(adapter(), _conflicts)
    for i, entry in enumerate(found.registries):
        if regions and entry.region and entry.region not in regions:
            close = sorted(get_close_matches(entry.region, regions, n=2))
            advice = f"; did you mean {' or '.join(close)}?" if close else ""
            message = f"{quote(entry.region)} is not a Region that botocore knows{advice}"
            warn(document.problem(("registries", i, "region"), message))
    named = tuple(replace(entry, name=entry.name or entry.default_name) for entry in found.registries)
    return replace(found, registries=named)


# -- rules between keys: they read the plain values of the file, where a wrong one is None ---------


def _conflicts(values: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """The place and the message of each value that contradicts another."""
    yield from _staleness(values)
    registries, targets = values.get("registries", [{}]) or [], values.get("targets") or []
    names = [_name(entry) for entry in registries]
    yield from _registries(registries, names)
    for i, target in enumerate(targets):
        if not isinstance(target, dict):
            continue
        given = [key for key in ("tag", "digest", *_FILTERS) if target.get(key, False) is not False]
        if len(given) > 1 and given[0] in ("tag", "digest"):
            message = f"cannot be combined with {', '.join(given[1:])}: name one tag, one digest, or filters"
            yield ("targets", i, given[0]), message
        for key in ("tags", "exclude_tags", "registries"):
            items = target.get(key) or []
            for j, item in enumerate(items):
                if item is not None and item in items[:j]:
                    yield ("targets", i, key, j), f"{quote(item)} is there twice"
                elif key == "registries" and item is not None and {item, None}.isdisjoint(names):
                    known = ", ".join(sorted({quote(name) for name in names if name}))
                    advice = f"known: {known}" if known else "give a registry a name to refer to it"
                    yield ("targets", i, key, j), f"{quote(item)} is not the name of a registry; {advice}"


def _staleness(values: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Series that go stale between two listings would come and go for ever."""
    keys = [key for key in ("stale_after", "discovery_interval") if key in values]
    if not keys or None in (values[key] for key in keys):
        return
    given: dict[str, Any] = {key: parse_duration(values[key]) for key in keys}
    found = Settings(targets=(), **given)
    if found.stale_after < 2 * found.discovery_interval:
        after, least = map(format_duration, (found.stale_after, 2 * found.discovery_interval))
        message = f"stale_after ({after}) is shorter than two discovery intervals ({least})"
        yield (keys[0],), f"{message}: series would come and go between listings"


def _name(entry: dict[str, Any] | None) -> str | None:
    """The name of a registry, "" for one without; None if a mistake leaves it open."""
    naming = ("name",) if entry and "name" in entry else ("region", "role_arn", "registry_id")
    given = {key: entry[key] for key in naming if key in entry} if entry is not None else {"name": None}
    if None in given.values():
        return None
    named = RegistrySettings(**given)
    return named.name or named.default_name


def _registries(
    entries: Sequence[dict[str, Any] | None], names: Sequence[str | None]
) -> Iterator[tuple[Place, str]]:
    # Two entries with one default name are one registry.
    owners = {name: i for i, name in enumerate(names) if name and "name" not in (entries[i] or ())}
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        if entry and "external_id" in entry and "role_arn" not in entry:
            message = "works only with a role_arn: it is handed over when a role is assumed"
            yield ("registries", i, "external_id"), message
        if name and (owner := owners.setdefault(name, i)) != i and entry and "name" in entry:
            yield ("registries", i, "name"), f"{quote(name)} is already the name of registries[{owner}]"


# -- back to YAML ----------------------------------------------------------------------------------


def to_yaml(settings: Settings) -> str:
    """The complete effective settings; the same settings when parsed again, unless it holds secrets."""
    every = adapter().dump_python(settings, mode="json", exclude_none=True)
    changed = adapter().dump_python(settings, mode="json", exclude_defaults=True)
    registries = changed.get("registries", [{}])
    for entry, shown in zip(settings.registries, registries, strict=True):
        if entry.name == entry.default_name:
            shown.pop("name", None)
    return dump({"registries": registries, "targets": changed["targets"]} | every | changed)
