"""Basic auth as in exporter-toolkit: bcrypt hashes, checked for every request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import threading
from collections.abc import Mapping

import bcrypt

from exporter.config.validators import Secret
from exporter.http.routes import Response, text

#: Seconds that a password waits for its turn to be checked.
PATIENCE = 1.0
#: bcrypt looks at the first 72 bytes of a password. Go's ignores the rest, bcrypt 5 refuses it.
_BCRYPT_BYTES = 72

_UNAUTHORIZED = text(
    401, "Give a user name and a password.", ("WWW-Authenticate", 'Basic realm="ecr-replication-exporter"')
)
_BUSY = text(503, "Too many passwords to check at once, try again later.", ("Retry-After", "1"))


class Passwords:
    """Checks user names and passwords. Any thread may call it.

    bcrypt keeps a core busy for tenths of a second. So one password is checked at a time, and a right one is
    remembered under a keyed hash in memory. An unknown user costs as much as a wrong password, because
    it is compared with the costliest hash.
    """

    def __init__(self, users: Mapping[str, Secret]) -> None:
        self._hashes = {user.encode(): hash_.get_secret_value().encode() for user, hash_ in users.items()}
        # The cost is the two digits after $2b$.
        self._decoy = max(self._hashes.values(), key=lambda hash_: hash_[4:6], default=b"")
        self._right: set[bytes] = set()
        self._key = secrets.token_bytes(32)
        self._turn = threading.Lock()

    def refusal(self, authorization: str) -> Response | None:
        """What a client gets instead of an answer; None if `admit` gives access."""
        try:
            return None if self.admit(authorization) else _UNAUTHORIZED
        except TimeoutError:
            return _BUSY

    def admit(self, authorization: str) -> bool:
        """Whether the value of an Authorization header gives access; "" stands for no header.

        Raises TimeoutError if too many passwords wait to be checked.
        """
        if not self._hashes:
            return True
        credentials = _credentials(authorization)
        return credentials is not None and self._is_right(*credentials)

    def _is_right(self, user: bytes, password: bytes) -> bool:
        hash_ = self._hashes.get(user, self._decoy)
        fingerprint = hashlib.blake2b(b"\0".join((user, hash_, password)), key=self._key).digest()
        if fingerprint in self._right:
            return True
        if not self._turn.acquire(timeout=PATIENCE):
            raise TimeoutError
        try:
            right = fingerprint in self._right or (_matches(password, hash_) and user in self._hashes)
        finally:
            self._turn.release()
        if right:
            self._right.add(fingerprint)  # bounded: a user has one password
        return right


def _credentials(authorization: str) -> tuple[bytes, bytes] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password[:_BCRYPT_BYTES]) if colon else None


def _matches(password: bytes, hash_: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, hash_)
    except ValueError:
        return False
