"""TLS and passwords, from the web configuration file, which is read again whenever it changes.

The file is exporter-toolkit's. It is not watched: each connection and each request looks whether
the file or a certificate is another one than last time, so that a rotated certificate or a new
password counts from the next connection on. A broken file or certificate leaves the last good ones
in force.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from exporter import log
from exporter.config import ClientAuth, ConfigError, Problem, Secret, TLSSettings, WebSettings, load_web

#: Seconds that a password may wait for its turn to be checked.
PATIENCE = 1.0
#: bcrypt looks at no more of a password; what Go's ignores of a longer one, bcrypt 5 refuses.
_BCRYPT_BYTES = 72

_VERSIONS = {"TLS10": "TLSv1", "TLS11": "TLSv1_1", "TLS12": "TLSv1_2", "TLS13": "TLSv1_3"}
_CLIENT_AUTH = {
    ClientAuth.NONE: ssl.CERT_NONE,
    ClientAuth.VERIFY_IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientAuth.REQUIRE_AND_VERIFY: ssl.CERT_REQUIRED,
}

_log = log.get("web")


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
    return context


def _checked_context(path: str, settings: TLSSettings) -> ssl.SSLContext:
    try:
        return _tls_context(settings)
    except OSError as error:
        # OpenSSL does not say which of the files it means.
        message = f"the certificate, its key or the client CA cannot be used: {error}"
        raise ConfigError([Problem(path, None, "tls_server_config", message)]) from error


def _certificates(settings: WebSettings) -> tuple[str, ...]:
    tls = settings.tls
    files = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
    return tuple(file for file in files if file)


def _version(file: str) -> tuple[int, ...]:
    """Changes whenever the file does, also through a symlink that is swapped; () if there is none."""
    try:
        stat = Path(file).stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A web configuration in force."""

    tls: ssl.SSLContext | None
    passwords: Passwords
    headers: Mapping[str, str]


class Web:
    """The web configuration of now, for any number of threads. The path None stands for an empty file.

    Raises ConfigError when it is made, and never later.
    """

    def __init__(self, path: str | None) -> None:
        self._loaded = _Loaded(tls=None, passwords=Passwords({}), headers={})
        #: The files that the configuration was made of, and their versions just before.
        self._seen: dict[str, tuple[int, ...]] = {}
        self._path = path or ""
        self._loading = threading.Lock()
        self._folds = log.Folds(_log)
        if path:
            self._load()

    def secure(self, connection: socket.socket) -> socket.socket:
        """The connection with TLS around it, if so configured. The handshake is still to be made."""
        tls = self._current().tls
        if tls is None:
            return connection
        return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def admit(self, authorization: str) -> bool:
        """Whether the Authorization header, "" if there is none, lets in.

        Raises TimeoutError if too many passwords wait to be checked.
        """
        return self._current().passwords.admit(authorization)

    def headers(self) -> Mapping[str, str]:
        """What every answer carries."""
        return self._current().headers

    def _current(self) -> _Loaded:
        if self._changed():
            with self._loading:
                if self._changed():
                    self._reload()
        return self._loaded

    def _changed(self) -> bool:
        return any(_version(file) != version for file, version in self._seen.items())

    def _reload(self) -> None:
        """What turns out broken is not looked at again until it changes once more."""
        try:
            self._load()
        except ConfigError as error:
            problems = "; ".join(map(str, error.problems))
            self._folds.failed(self._path, self._path, "web_config_invalid", error=problems)
        else:
            self._folds.recovered(self._path, self._path)
            _log.info("web_config_reloaded", file=self._path)

    def _load(self) -> None:
        self._seen = {self._path: _version(self._path)}
        settings = load_web(self._path)
        certificates = {file: _version(file) for file in _certificates(settings)}
        self._seen = self._seen | certificates
        self._loaded = _Loaded(
            tls=_checked_context(self._path, settings.tls) if settings.tls else None,
            passwords=Passwords(settings.basic_auth_users),
            headers=settings.headers,
        )
