"""The web configuration file and its certificates, which are followed.

Each connection and each request looks whether the file or a certificate changed, so a rotated
certificate counts from the next connection on.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter import logs
from exporter.config.web import WebSettings, load_web
from exporter.config.yaml_source import ConfigError, Problem
from exporter.http.auth import Passwords
from exporter.http.tls import server_context

#: Seconds until a failed load is repeated, whether a file changed or not: reading can fail for other reasons.
RETRY = 1.0

_log = logs.get("web")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is in force."""

    settings: WebSettings
    passwords: Passwords
    context: ssl.SSLContext | None = None
    #: The versions of TLS's files just before they were read.
    certificates: Mapping[str, object] = field(default_factory=dict)


class WebConfig:
    """The web configuration in force: a file that cannot be loaded leaves the last good one.

    Any thread may call it. The path None stands for an empty file. Raises ConfigError when it is made, never
    later. `on_load` gets the outcome of each load of a file, from one thread at a time.
    """

    def __init__(
        self,
        path: str | None,
        *,
        on_load: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._on_load, self._clock = path or "", on_load, clock
        self._lock = threading.Lock()
        self._loaded = Loaded(WebSettings(), Passwords({}))
        self._version, self._error, self._retry_at = _version(self._path), "", 0.0
        if path:
            self._loaded = self._load(load_web(path))
            on_load(True)

    def current(self) -> Loaded:
        """What is in force now."""
        with self._lock:
            if self._clock() >= self._retry_at if self._error else self._is_outdated():
                self._reload()
            return self._loaded

    def _is_outdated(self) -> bool:
        if not self._path:
            return False
        versions = {self._path: self._version, **self._loaded.certificates}
        return any(_version(file) != version for file, version in versions.items())

    def _reload(self) -> None:
        """Load the file, or else at least the certificates of what is in force, because they expire."""
        self._version = _version(self._path)
        problems: list[Problem] = []
        reads: list[Callable[[], WebSettings]] = [lambda: load_web(self._path), lambda: self._loaded.settings]
        for read in reads:
            try:
                self._loaded = self._load(read())
                break
            except ConfigError as failed:
                problems += failed.problems
        before, self._error = self._error, "; ".join(dict.fromkeys(map(str, problems)))
        self._retry_at = self._clock() + RETRY
        self._on_load(not self._error)
        if not self._error:
            _log.info("web_config_reloaded", file=self._path)
        elif self._error != before:
            _log.warning("web_config_invalid", file=self._path, error=self._error)

    def _load(self, settings: WebSettings) -> Loaded:
        """The settings with their certificates of now. Raises ConfigError."""
        tls, now = settings.tls_server_config, self._loaded
        files = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
        certificates = {file: _version(file) for file in files if file}
        if settings == now.settings and certificates == now.certificates:
            return now
        try:
            context = server_context(tls) if tls else None
        except OSError as error:  # OpenSSL does not say which file it means
            message = f"one of {', '.join(certificates)} cannot be used: {error}"
            raise ConfigError([Problem(self._path, None, "tls_server_config", message)]) from error
        return Loaded(settings, Passwords(settings.basic_auth_users), context, certificates)


def _version(file: str) -> object:
    """Changes with a file, also through a symlink that is swapped; None if there is no file."""
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
