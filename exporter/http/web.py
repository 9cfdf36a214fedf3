"""TLS and passwords, from the web configuration file, which is read again whenever it changes.

The file is exporter-toolkit's. It is not watched: each connection and each request looks whether
the file or a certificate is another one than last time, so that a rotated certificate or a new
password counts from the next connection on. A broken file or certificate leaves the last good ones
in force, and is tried again now and then: what broke may be the reading, and then nothing changes
when it is over.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import bcrypt

from exporter import logs
from exporter.config.settings import (
    ClientAuth,
    ConfigError,
    Problem,
    Secret,
    TLSSettings,
    WebSettings,
    load_web,
)

#: Seconds that a password may wait for its turn to be checked.
PATIENCE = 1.0
#: Seconds until what could not be taken is tried again, even if no file changed.
RETRY = 10.0
#: bcrypt looks at no more of a password; what Go's ignores of a longer one, bcrypt 5 refuses.
_BCRYPT_BYTES = 72

_VERSIONS = {"TLS10": "TLSv1", "TLS11": "TLSv1_1", "TLS12": "TLSv1_2", "TLS13": "TLSv1_3"}
_CLIENT_AUTH = {
    ClientAuth.NONE: ssl.CERT_NONE,
    ClientAuth.VERIFY_IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientAuth.REQUIRE_AND_VERIFY: ssl.CERT_REQUIRED,
}

_log = logs.get("web")


class Passwords:
    """Checks basic auth against bcrypt hashes, for any number of threads.

    A check holds a core for tenths of a second, by design. So there is one at a time, and passwords
    that were right are remembered, under a keyed hash that dies with the process. An unknown user
    costs as much as a wrong password: it is compared with the costliest hash there is.
    """

    def __init__(self, users: Mapping[str, Secret]) -> None:
        self._hashes = {user.encode(): hash_.reveal().encode() for user, hash_ in users.items()}
        # The cost is the two digits after $2b$.
        self._decoy = max(self._hashes.values(), key=lambda hash_: hash_[4:6], default=b"")
        self._right: set[bytes] = set()
        self._key = secrets.token_bytes(32)
        self._turn = threading.Lock()

    def admit(self, authorization: str) -> bool:
        """Whether the header's value lets in. Raises TimeoutError if too many wait to be checked."""
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
            # Bounded: a user has one password.
            self._right.add(fingerprint)
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


def _tls_context(settings: TLSSettings) -> ssl.SSLContext:
    """Raises OSError, also as ssl.SSLError, if a file cannot be read or is no good."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion[_VERSIONS[settings.min_version]]
    context.maximum_version = ssl.TLSVersion[_VERSIONS[settings.max_version]]
    context.set_alpn_protocols(["http/1.1"])
    # Without a password given, OpenSSL asks for that of an encrypted key on the terminal, and waits.
    context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    if settings.client_ca_file:
        context.load_verify_locations(settings.client_ca_file)
    context.verify_mode = _CLIENT_AUTH[settings.client_auth_type]
    if context.verify_mode != ssl.CERT_NONE:
        # A session that is taken up again would not have its client certificate verified again.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context


def shake_hands(connection: ssl.SSLSocket) -> None:
    """The handshake, by which clients prove who they are. Raises OSError.

    TLS 1.2 has sessions without tickets, which Python cannot turn off; an expired certificate in one is
    refused here. Other authorities are another context, which knows no sessions of this one.
    """
    connection.do_handshake()
    certificate = connection.getpeercert() if connection.session_reused else None
    if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
        raise ssl.SSLError("the client's certificate has expired")


def _checked_context(path: str, settings: TLSSettings) -> ssl.SSLContext:
    try:
        return _tls_context(settings)
    except OSError as error:
        # OpenSSL does not say which of the files it means.
        message = f"the certificate, its key or the client CA cannot be used: {error}"
        raise ConfigError([Problem(path, None, "tls_server_config", message)]) from error


#: Of a file: changes whenever the file does, also through a symlink that is swapped; () if there is none.
_Version = tuple[int, ...]


def _version(file: str) -> _Version:
    try:
        stat = Path(file).stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _certificates(settings: WebSettings) -> dict[str, _Version]:
    """The files that TLS is made of."""
    tls = settings.tls
    files = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
    return {file: _version(file) for file in files if file}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A web configuration in force."""

    settings: WebSettings
    #: Their versions just before they were read.
    certificates: Mapping[str, _Version]
    tls: ssl.SSLContext | None
    passwords: Passwords


class Web:
    """The web configuration of now, for any number of threads. The path None stands for an empty file.

    Raises ConfigError when it is made, and never later. `on_load` is told whether all of it could be
    taken, each time it was tried; never without a file, and by one thread at a time.
    """

    def __init__(
        self,
        path: str | None,
        *,
        on_load: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loaded = _Loaded(settings=WebSettings(), certificates={}, tls=None, passwords=Passwords({}))
        #: The files that the configuration is made of, or was to be made of, and their versions just before.
        self._seen: dict[str, _Version] = {}
        self._retry_at = inf
        self._path = path or ""
        self._clock = clock
        self._loading = threading.Lock()
        self._on_load = on_load
        #: The failure that was logged last, unless it is over.
        self._said: tuple[dict[str, _Version], str] | None = None
        if path:
            self._loaded = self._anew(self._seen)
            on_load(True)

    def secure(self, connection: socket.socket) -> socket.socket:
        """The connection with TLS around it, if so configured. The handshake is still to be made."""
        tls = self._current().tls
        if tls is None:
            return connection
        return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def is_current(self, connection: socket.socket) -> bool:
        """Whether a new connection would have the same TLS, certificates and all, or none like this one."""
        tls = connection.context if isinstance(connection, ssl.SSLSocket) else None
        return tls is self._current().tls

    def admit(self, authorization: str) -> bool:
        """Whether the Authorization header, "" if there is none, lets in.

        Raises TimeoutError if too many passwords wait to be checked.
        """
        return self._current().passwords.admit(authorization)

    def headers(self) -> Mapping[str, str]:
        """What every answer carries."""
        return self._current().settings.headers

    def _current(self) -> _Loaded:
        if self._is_due():
            with self._loading:
                if self._is_due():
                    self._reload()
        return self._loaded

    def _is_due(self) -> bool:
        changed = any(_version(file) != version for file, version in self._seen.items())
        return changed or self._clock() >= self._retry_at

    def _reload(self) -> None:
        """Take all of it, or at least the certificates of what is in force: they expire."""
        seen: dict[str, _Version] = {}
        problems: list[Problem] = []
        for way in (self._anew, self._renewed):
            try:
                self._loaded = way(seen)
                break
            except ConfigError as error:
                problems += error.problems
        # Last, so that nobody goes on with the old ones while the new ones are read.
        self._seen = seen
        self._retry_at = self._clock() + RETRY if problems else inf
        self._tell("; ".join(dict.fromkeys(map(str, problems))))

    def _anew(self, seen: dict[str, _Version]) -> _Loaded:
        """What the file says; notes the versions of all files that matter. Raises ConfigError."""
        seen[self._path] = _version(self._path)
        settings = load_web(self._path)
        certificates = _certificates(settings)
        seen.update(certificates)
        return _Loaded(
            settings=settings,
            certificates=certificates,
            tls=self._context(settings),
            passwords=Passwords(settings.basic_auth_users),
        )

    def _renewed(self, seen: dict[str, _Version]) -> _Loaded:
        """What is in force, with the certificates of now. Raises ConfigError."""
        certificates = _certificates(self._loaded.settings)
        for file, version in certificates.items():
            seen.setdefault(file, version)
        if certificates == self._loaded.certificates:
            return self._loaded
        return replace(self._loaded, certificates=certificates, tls=self._context(self._loaded.settings))

    def _context(self, settings: WebSettings) -> ssl.SSLContext | None:
        return _checked_context(self._path, settings.tls) if settings.tls else None

    def _tell(self, error: str) -> None:
        """A failure is said once for each change of a file, not for each time that it is tried."""
        self._on_load(not error)
        said, self._said = self._said, (self._seen, error) if error else None
        if not error:
            _log.info("web_config_reloaded", file=self._path)
        elif self._said != said:
            _log.warning("web_config_invalid", file=self._path, error=error)
