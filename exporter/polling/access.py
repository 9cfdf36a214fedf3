"""With which access a registry is asked: one client each, and the choice between several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from exporter.aws.ecr import EcrClient
from exporter.polling.grouping import Access


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
