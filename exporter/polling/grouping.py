"""Which entries of the configuration are one registry. Pure.

A registry is identified by its account and Region. An access is how it is reached: role, external id and
registry id. Several accesses may reach one registry, and an access may change while the registry stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from exporter.aws.ecr import static_registry_id
from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.replication.model import Source

#: An entry without its name, and with its Region: what AWS sees of it. Two equal ones are one access.
Access: TypeAlias = RegistrySettings


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `registries`."""

    name: str
    access: Access


@dataclass(frozen=True, slots=True)
class Group:
    """One registry and the entries that reach it, those first that can read its rules."""

    source: Source
    entries: tuple[Entry, ...]

    @property
    def accesses(self) -> tuple[Access, ...]:
        """All accesses, each once, in order of preference."""
        return tuple(dict.fromkeys(entry.access for entry in self.entries))

    def named(self, targets: Iterable[TargetSettings]) -> tuple[Access, ...]:
        """The accesses that the targets name, in order of preference. A target without names has all."""
        names: set[str] = set()
        for target in targets:
            if not target.registries:
                return self.accesses
            names.update(target.registries)
        return tuple(dict.fromkeys(entry.access for entry in self.entries if entry.name in names))

    def targets(self, targets: Iterable[TargetSettings]) -> tuple[TargetSettings, ...]:
        """Those of the targets that name an entry of the group, or none at all."""
        names = {entry.name for entry in self.entries}
        return tuple(t for t in targets if not t.registries or not names.isdisjoint(t.registries))


def grouped(
    entries: Iterable[RegistrySettings], *, accounts: Mapping[Access, str], region: str | None
) -> list[Group]:
    """The registries of the entries, no two with the same account and Region.

    `accounts` holds what AWS told of accesses. `region` is where entries without a Region are. An entry of
    which no account is known is grouped with the others like it in its Region: they have the same
    credentials, and its source has "" for the account.
    """
    groups: dict[Source, list[Entry]] = {}
    # An entry with a registry id reads another account's registry, whose rules it cannot read.
    for settings in sorted(entries, key=lambda entry: bool(entry.registry_id)):
        access = replace(settings, name="", region=settings.region or region)
        account = settings.registry_id or accounts.get(access) or static_registry_id(settings)
        source = Source(account, access.region or "")
        groups.setdefault(source, []).append(Entry(settings.name, access))
    return [Group(source, tuple(members)) for source, members in groups.items()]
