"""Every key of the configuration: its type, default and unit, and the rules between keys.

pydantic reads the dataclasses below, and the JSON Schema comes from them too. After a wrong or unknown key
pydantic skips its checks of whole models. So the rules between keys stand beside the models: they read the
values of the file, except those that are wrong already, and every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from exporter.config import validators as of
from exporter.config.validators import GLOB, Secret, format_duration, parse_duration
from exporter.config.web import ClientAuth, TLSSettings, WebSettings, load_web
from exporter.config.yaml_source import (
    HAS_LIBYAML,
    ConfigError,
    Document,
    Mapping,
    Other,
    Problem,
    Sequence_,
    Text,
    Vocabulary,
    contents,
    dump,
    quote,
    shorten,
    without_garbage_collection,
)

__all__ = [
    "GLOB",
    "ClientAuth",
    "ConfigError",
    "Problem",
    "RegistrySettings",
    "Secret",
    "Settings",
    "TLSSettings",
    "TargetSettings",
    "WebSettings",
    "contents",
    "format_duration",
    "load",
    "load_web",
    "parse",
    "parse_duration",
    "to_yaml",
]

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
    untagged: of.Flag = False
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
        warn(
            Problem(file, None, "", "PyYAML has no libyaml here, so a large file takes several times as long")
        )
    with without_garbage_collection():
        document = Document(text, file)
        settings = document.validate(adapter(), _VOCABULARY)
        _check(document)
        for entry in document.items("registries") if regions else ():
            region = document.text(entry, "region")
            if region and region not in regions:
                close = sorted(get_close_matches(region, regions, n=2))
                advice = f"; did you mean {' or '.join(close)}?" if close else ""
                message = f"{quote(region)} is not a Region that botocore knows{advice}"
                warn(Problem(file, region.line, region.path, message))
        found = document.close(settings)
    named = (replace(entry, name=entry.name or entry.default_name) for entry in found.registries)
    return replace(found, registries=tuple(named))


# -- rules between keys: they read the values of a file; those that are wrong count as unknown -----


def _check(document: Document) -> None:
    """Report what several keys do not agree on."""
    _check_staleness(document)
    names = _names(document)
    for target in document.items("targets"):
        off = [key for key, value in target.items() if isinstance(value, Other) and value.value is False]
        given = [key for key in ("tag", "digest", *_FILTERS) if key in target and key not in off]
        if len(given) > 1 and given[0] in ("tag", "digest"):
            message = f"cannot be combined with {', '.join(given[1:])}: name one tag, one digest, or filters"
            document.report(target[given[0]], message, target.names[given[0]].path)
        for key in ("tags", "exclude_tags", "registries"):
            seen: set[str] = set()
            values = target.get(key)
            for value in values if isinstance(values, Sequence_) else ():
                if not isinstance(value, Text):
                    continue
                if value in seen:
                    document.report(value, f"{quote(value)} is there twice")
                elif key == "registries" and names is not None and value not in names:
                    document.report(value, f"{quote(value)} is not the name of a registry; {_advice(names)}")
                seen.add(value)


def _check_staleness(document: Document) -> None:
    """Series that go stale between two listings would come and go for ever."""
    root, defaults = document.root, Settings(targets=())
    given = [key for key in ("stale_after", "discovery_interval") if key in root]
    texts = {key: document.text(root, key) for key in given}
    if not given or None in texts.values():
        return
    found = {key: parse_duration(str(text)) for key, text in texts.items()}
    after = found.get("stale_after", defaults.stale_after)
    least = 2 * found.get("discovery_interval", defaults.discovery_interval)
    if after < least:
        document.report(
            root[given[0]],
            f"stale_after ({format_duration(after)}) is shorter than two discovery intervals"
            f" ({format_duration(least)}): series would come and go between listings",
        )


def _names(document: Document) -> list[str] | None:
    """The names of all registries, "" for one without. None if a mistake leaves a name open."""
    entries = document.items("registries")
    found = [_name(document, entry) for entry in entries]
    # Two entries with one default name are one registry.
    owners = {name: i for i, name in enumerate(found) if name and "name" not in entries[i]}
    for i, (entry, name) in enumerate(zip(entries, found, strict=True)):
        if "external_id" in entry and "role_arn" not in entry:
            message = "works only with a role_arn: it is handed over when a role is assumed"
            document.report(entry["external_id"], message)
        if name and "name" in entry and (owner := owners.setdefault(name, i)) != i:
            document.report(entry["name"], f"{quote(name)} is already the name of registries[{owner}]")
    whole = document.root.get("registries", Sequence_())
    names = [name for name in found if name is not None]
    return names if isinstance(whole, Sequence_) and len(whole) == len(names) else None


def _name(document: Document, entry: Mapping) -> str | None:
    """The name that an entry has; None if a mistake leaves it open."""
    if "name" in entry:
        return document.text(entry, "name")
    naming = ("region", "role_arn", "registry_id")
    given: dict[str, Any] = {key: document.text(entry, key) for key in naming if key in entry}
    return None if None in given.values() else RegistrySettings(**given).default_name


def _advice(names: Sequence[str]) -> str:
    given = sorted({name for name in names if name})
    nameless = [f"registries[{i}]" for i, name in enumerate(names) if not name]
    known = f"known: {shorten(', '.join(given))}" if given else "no registry has a name yet"
    return known + (f"; give {shorten(', '.join(nameless))} a name to refer to it" if nameless else "")


# -- back to YAML ----------------------------------------------------------------------------------


def to_yaml(settings: Settings) -> str:
    """The complete effective settings; the same settings when parsed again, unless it holds secrets."""
    registries = [_changed(entry) for entry in settings.registries]
    for entry, shown in zip(settings.registries, registries, strict=True):
        if entry.name == entry.default_name:
            shown.pop("name", None)
    plain: dict[str, Any] = {
        "registries": registries,
        "targets": [_changed(each) for each in settings.targets],
    }
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.name.endswith(("_interval", "_after")):
            plain[each.name] = format_duration(value)
        elif each.name not in plain and value is not None:
            plain[each.name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return dump(plain)


def _changed(entry: RegistrySettings | TargetSettings) -> dict[str, Any]:
    """What differs from the defaults, as YAML has it."""
    shown: dict[str, Any] = {}
    for each in fields(entry):
        value = getattr(entry, each.name)
        if value != each.default:
            shown[each.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(entry, TargetSettings) and entry.pushed_within is not None:
        shown["pushed_within"] = format_duration(entry.pushed_within)
    return shown | ({"external_id": str(shown["external_id"])} if "external_id" in shown else {})
