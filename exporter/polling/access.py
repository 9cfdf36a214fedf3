"""Which entries of the configuration are one registry, and with which of them it is asked.

A registry is identified by its account and Region. An access is how it is reached: role, external id and
registry id. Several accesses may reach one registry, and an access may change while the registry stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from exporter.aws.ecr import EcrClient, static_registry_id
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


class Choice:
    """The access to ask with: the first that is not refused. A refused one goes to the end of the line."""

    def __init__(self, accesses: Iterable[Access]) -> None:
        self._line = deque(accesses)
        self._refused = 0

    @property
    def access(self) -> Access:
        """The access to ask with next."""
        return self._line[0]

    def configure(self, accesses: Iterable[Access]) -> None:
        """Choose between these from now on. The present one stays the first if it is among them."""
        line = deque(accesses)
        if set(line) == set(self._line):
            return
        self._line = line
        self._refused = 0

    def refused(self, access: Access) -> bool:
        """Note that AWS refused the access; whether another one is to be tried now."""
        if access != self._line[0]:
            return True  # it was asked with before the choice moved on
        self._line.rotate(-1)
        self._refused += 1
        if self._refused < len(self._line):
            return True
        self._refused = 0
        return False

    def worked(self) -> None:
        """Note that AWS answered a call."""
        self._refused = 0


class Clients:
    """One client for each access of a registry, and which accesses are of no use at all."""

    def __init__(self, connect: Callable[[Access], EcrClient]) -> None:
        self._connect = connect
        self._clients: dict[Access, EcrClient] = {}
        self._useless: set[Access] = set()

    def configure(self, accesses: Iterable[Access]) -> bool:
        """Hold clients for these accesses; whether they are other accesses than before."""
        before = self._clients
        self._clients = {access: before.get(access) or self._connect(access) for access in accesses}
        self._useless &= self._clients.keys()
        return before.keys() != self._clients.keys()

    def __contains__(self, access: Access) -> bool:
        return access in self._clients

    def of(self, access: Access) -> EcrClient:
        """The client of an access. Raises KeyError if the access is not configured."""
        return self._clients[access]

    def works(self, access: Access) -> None:
        """Note that AWS accepts the credentials of the access."""
        self._useless.discard(access)

    def useless(self, access: Access) -> bool:
        """Note that the credentials of the access are of no use; whether those of all accesses are."""
        self._useless.add(access)
        return self._useless >= self._clients.keys()
