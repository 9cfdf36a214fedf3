"""Which entries of the configuration are one registry, and with which of them it is asked.

A registry is identified by its account and Region. An access is how it is reached: role, external id and
registry id. Several accesses may reach one registry, and an access may change while the registry stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from exporter.config.settings import DestinationSettings, RegistrySettings, TargetSettings
from exporter.replication.model import Destination, Source

#: How AWS is reached: an entry without its name and queue, and with its Region. Two equal ones are the same.
Access: TypeAlias = RegistrySettings


@dataclass(frozen=True, slots=True)
class Group:
    """One registry and the entries that reach it, those first that can read its rules."""

    source: Source
    entries: tuple[RegistrySettings, ...]

    @property
    def name(self) -> str:
        """The name of the registry in the log: that of its first entry, else `<account>/<region>`."""
        return self.entries[0].label or f"{self.source.registry_id or 'default'}/{self.source.region}"

    @property
    def accesses(self) -> tuple[Access, ...]:
        """All accesses, each once, in order of preference."""
        return _accesses(self.entries)

    def named(self, targets: Iterable[TargetSettings]) -> tuple[Access, ...]:
        """The accesses that the targets name, in order of preference. A target without names has all.

        All accesses also if there are no targets.
        """
        names = [frozenset(target.registries) for target in targets]
        wanted = frozenset().union(*names) if all(names) else frozenset()
        return _accesses(e for e in self.entries if e.label in wanted) or self.accesses

    def targets(self, targets: Iterable[TargetSettings]) -> tuple[TargetSettings, ...]:
        """Those of the targets that name an entry of the group, or none at all."""
        names = {entry.label for entry in self.entries}
        return tuple(t for t in targets if not t.registries or not names.isdisjoint(t.registries))


def _accesses(entries: Iterable[RegistrySettings]) -> tuple[Access, ...]:
    return tuple(dict.fromkeys(map(access_of, entries)))


def access_of(entry: RegistrySettings) -> Access:
    """How the entry reaches ECR."""
    return replace(entry, name="", events_queue_url=None)


def grouped(
    entries: Iterable[RegistrySettings], *, accounts: Mapping[Access, str], region: str | None
) -> list[Group]:
    """The registries of the entries, no two with the same account and Region.

    `accounts` holds the accounts that AWS named, by access. `region` is where entries without a Region are.
    An entry of which no account is known is grouped with the others like it in its Region: they have the
    same credentials, and its source has "" for the account.
    """
    groups: dict[Source, list[RegistrySettings]] = {}
    # An entry with a registry id reads another account's registry, whose rules it cannot read.
    for settings in sorted(entries, key=lambda entry: bool(entry.registry_id)):
        entry = replace(settings, region=settings.region or region)
        named = accounts.get(access_of(entry))
        account = entry.registry_id or named or entry.account
        groups.setdefault(Source(account, entry.region or ""), []).append(entry)
    return [Group(source, tuple(members)) for source, members in groups.items()]


def readers(
    destination: Destination, entries: Iterable[DestinationSettings], groups: Iterable[Group]
) -> tuple[Access, ...]:
    """How to read a destination, in order of preference; empty if that is not possible.

    By its entries under `destinations`, those for its Region first; else, in the account of a source, with
    what reads the source.
    """
    region, account = destination
    found = sorted(
        (e for e in entries if e.registry_id == account and e.region in (None, region)),
        key=lambda entry: entry.region is None,
    )
    if found:
        return tuple(
            RegistrySettings(
                region=region, registry_id=account, role_arn=e.role_arn, external_id=e.external_id
            )
            for e in found
        )
    same = (access for g in groups if g.source.registry_id == account for access in g.accesses)
    return tuple(dict.fromkeys(replace(access, region=region, registry_id=account) for access in same))


class Choice:
    """The access to ask with: the first that is not refused. A refused one goes to the end of the line."""

    def __init__(self, accesses: Iterable[Access] = ()) -> None:
        self._line = deque(accesses)
        self._refused = 0

    @property
    def access(self) -> Access:
        """The access to ask with next. Raises IndexError if there is none."""
        return self._line[0]

    def __contains__(self, access: Access) -> bool:
        return access in self._line

    def __len__(self) -> int:
        return len(self._line)

    def configure(self, accesses: Iterable[Access]) -> None:
        """Choose between these from now on. The present one stays the first if the set is the same."""
        line = deque(accesses)
        if set(line) != set(self._line):
            self._line, self._refused = line, 0

    def refused(self, access: Access) -> bool:
        """Note that AWS refused the access; whether another one is to be tried now."""
        if access != self._line[0]:
            return True  # it was asked with before the choice moved on
        self._line.rotate(-1)
        self._refused = (self._refused + 1) % len(self._line)
        return self._refused > 0

    def worked(self) -> None:
        """Note that AWS answered a call."""
        self._refused = 0
