"""Follows the web configuration file: TLS, passwords and headers that are in force now.

Each connection and each request looks whether the file or a certificate changed, so a rotated
certificate counts from the next connection on. A file that cannot be loaded leaves the last good
configuration in force.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from exporter import logs
from exporter.config.settings import ConfigError, Problem, WebSettings, load_web
from exporter.http.auth import Passwords
from exporter.http.routes import Response
from exporter.http.tls import server_context

#: Seconds until a failed load is repeated although no file changed: reading can fail for other reasons.
RETRY = 10.0

_log = logs.get("web")

#: Changes with a file, also through a symlink that is swapped; () if there is no file.
_Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    settings: WebSettings
    passwords: Passwords
    context: ssl.SSLContext | None = None
    #: The versions of TLS's files just before they were read.
    certificates: Mapping[str, _Version] = field(default_factory=dict)


class WebConfig:
    """The web configuration in force. Any thread may call it. The path None stands for an empty file.

    Raises ConfigError when it is made, never later. `on_load` gets the outcome of each load of a file, from
    one thread at a time.
    """

    def __init__(
        self,
        path: str | None,
        *,
        on_load: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path or ""
        self._on_load = on_load
        self._clock = clock
        self._loading = threading.Lock()
        self._loaded = _Loaded(WebSettings(), Passwords({}))
        #: The files of the last load, and their versions just before it.
        self._seen: dict[str, _Version] = {}
        self._retry_at = inf
        #: The failure that was logged last, and the versions that it is about.
        self._logged: tuple[dict[str, _Version], str] | None = None
        if path:
            self._loaded = self._read(self._seen)
            on_load(True)

    def secure(self, client: socket.socket) -> socket.socket:
        """The connection, with TLS around it if so configured. The handshake is left to the caller."""
        context = self._current().context
        if context is None:
            return client
        return context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)

    def is_current(self, client: socket.socket) -> bool:
        """Whether a new connection would have the same TLS as this one."""
        return getattr(client, "context", None) is self._current().context

    def refusal(self, authorization: str) -> Response | None:
        """What a request with this Authorization header, "" for none, gets instead of an answer."""
        return self._current().passwords.refusal(authorization)

    def headers(self) -> Mapping[str, str]:
        """Headers of every answer."""
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
        """Load the file, or else at least the certificates of what is in force, because they expire."""
        seen: dict[str, _Version] = {}
        problems: list[Problem] = []
        for load in (self._read, self._renewed):
            try:
                self._loaded = load(seen)
                break
            except ConfigError as error:
                problems += error.problems
        # Last: until here other threads wait for the new configuration.
        self._seen = seen
        self._retry_at = self._clock() + RETRY if problems else inf
        self._report("; ".join(dict.fromkeys(map(str, problems))))

    def _read(self, seen: dict[str, _Version]) -> _Loaded:
        """The file's configuration; adds the versions of all its files. Raises ConfigError."""
        seen[self._path] = _version(self._path)
        settings = load_web(self._path)
        return self._renewed(seen, _Loaded(settings, Passwords(settings.basic_auth_users)))

    def _renewed(self, seen: dict[str, _Version], loaded: _Loaded | None = None) -> _Loaded:
        """What is in force, or another configuration, with the certificates of now. Raises ConfigError."""
        loaded = loaded or self._loaded
        tls = loaded.settings.tls
        files = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
        certificates = {file: _version(file) for file in files if file}
        for file, version in certificates.items():
            seen.setdefault(file, version)
        if tls is None or certificates == loaded.certificates:
            return loaded
        try:
            return replace(loaded, certificates=certificates, context=server_context(tls))
        except OSError as error:  # OpenSSL does not say which file it means
            message = f"the certificate, its key or the client CA cannot be used: {error}"
            raise ConfigError([Problem(self._path, None, "tls_server_config", message)]) from error

    def _report(self, error: str) -> None:
        """Log a failure once for each change of a file, not for each retry."""
        self._on_load(not error)
        logged, self._logged = self._logged, (self._seen, error) if error else None
        if not error:
            _log.info("web_config_reloaded", file=self._path)
        elif self._logged != logged:
            _log.warning("web_config_invalid", file=self._path, error=error)


def _version(file: str) -> _Version:
    try:
        stat = Path(file).stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
