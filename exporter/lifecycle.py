"""The life of the process: signals, reloads of the configuration, and an end that always comes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from enum import Enum
from queue import SimpleQueue

from exporter import logs
from exporter.config import settings as config
from exporter.config.settings import Settings
from exporter.config.yaml_source import ConfigError, Problem, contents

#: Seconds between a request to end and the end of the process, even if a part of it hangs.
SHUTDOWN_TIMEOUT = 4.5
#: Seconds that a caller waits for the end of a reload.
RELOAD_TIMEOUT = 10.0
#: How many callers may wait at once. Each of them uses up one of the concurrent HTTP requests.
MAX_WAITING = 4
#: Seconds until the next attempt after a reload failed for a reason other than the file. Limits log lines.
RETRY_AFTER = 60.0

_log = logs.get("main")


# -- requests to reload or to end ----------------------------------------------------------------


class Request(Enum):
    RELOAD = "reload"
    STOP = "stop"
    #: The polling loop failed and cannot continue.
    ABORT = "abort"


#: The exit code of each request that ends the process.
EXIT_CODES: Mapping[Request, int] = {Request.STOP: 0, Request.ABORT: 1}

_SIGNALS: Mapping[int, Request] = {
    signal.SIGTERM: Request.STOP,
    signal.SIGINT: Request.STOP,
    signal.SIGHUP: Request.RELOAD,
}


class Requests:
    """A queue of requests from signals, HTTP and the polling loop, with a shutdown watchdog.

    After a request to end, the watchdog ends the process within SHUTDOWN_TIMEOUT.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Request] = SimpleQueue()
        self._exit_code: SimpleQueue[int] = SimpleQueue()

    def start(self) -> None:
        """Start the watchdog. It starts early because a new thread may be refused at the end.

        Raises RuntimeError if the system refuses the thread.
        """
        threading.Thread(target=self._watchdog, name="shutdown watchdog", daemon=True).start()

    def add(self, request: Request) -> None:
        """Add a request. For any thread; does not block."""
        self._queue.put(request)
        if request in EXIT_CODES:
            self._exit_code.put(EXIT_CODES[request])

    def next(self) -> Request:
        """Wait for the next request."""
        return self._queue.get()

    def _watchdog(self) -> None:
        code = self._exit_code.get()
        threading.Event().wait(SHUTDOWN_TIMEOUT)
        os._exit(code)


def handle_signals(requests: Requests) -> None:
    """Turn signals into requests, including signals that were blocked until now. For the main thread.

    Python runs signal handlers only in the main thread, and a signal that another thread receives does not
    interrupt the main thread's wait. `set_wakeup_fd` reports every signal at once, so a thread reads that.
    Raises RuntimeError if the system refuses the thread.
    """
    numbers, wakeup = socket.socketpair()
    wakeup.setblocking(False)

    def read(_wakeup: socket.socket) -> None:  # the argument keeps the socket open
        while received := numbers.recv(64):
            for number in received:
                if number in _SIGNALS:
                    requests.add(_SIGNALS[number])

    threading.Thread(target=read, args=(wakeup,), name="signals", daemon=True).start()
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def restore_signals() -> None:
    """Let signals end the process at once. Python's default for SIGINT prints a traceback instead."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end_on_signals(before: Callable[[], None]) -> None:
    """End the process at once on SIGINT, SIGTERM and SIGHUP, with 128 and the number as a shell reports it.

    For commands. `before` is called first, in a thread of its own. The signals stay blocked in all other
    threads, so that they are also received by the first process of a container and during a DNS look-up.
    Raises RuntimeError if the system refuses the thread.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def wait() -> None:
        number = signal.sigwait(_SIGNALS)
        try:
            before()
        finally:
            os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()


# -- the configuration ---------------------------------------------------------------------------


class Loader:
    """Loads the configuration from its file, or from a given text. One thread at a time."""

    def __init__(
        self, file: str, *, region: str | None, text: str | None = None, regions: Collection[str] = ()
    ) -> None:
        """`region`: that of the environment or the AWS profile. Another one than `regions` is a warning."""
        self._file = file
        self._region = region
        self._text = text
        self._regions = frozenset(regions)
        self._warnings: set[Problem] = set()
        #: The last loaded contents, valid or not. None if the file could not be read.
        self._loaded: bytes | None = None

    def changed(self) -> bool:
        """Whether the file differs from what was loaded last.

        Compares contents, because Kubernetes replaces a mounted file by a link two directories up.
        """
        if self._text is not None:
            return False
        try:
            return contents(self._file) != self._loaded
        except ConfigError:
            return self._loaded is not None

    def load(self) -> Settings:
        """Read and check the configuration. Raises ConfigError."""
        self._loaded = None
        text = contents(self._file) if self._text is None else self._text.encode()
        self._loaded = text
        settings = config.parse(
            text, file=self._file, region=self._region, regions=self._regions, warn=self._warn
        )
        paths = [f"registries[{i}].region" for i, entry in enumerate(settings.registries) if not entry.region]
        if paths and not self._region:
            message = "no Region is given, and none found in AWS_REGION or the AWS profile; set one of them"
            raise ConfigError([Problem(self._file, None, path, message) for path in paths])
        if paths and self._regions and self._region not in self._regions:
            message = (
                f"{self._region!r}, from AWS_REGION or the AWS profile, is not a Region that botocore knows"
            )
            self._warn(Problem(self._file, None, paths[0], message))
        return settings

    def _warn(self, warning: Problem) -> None:
        """Log a warning once, not at every reload."""
        if warning not in self._warnings:
            self._warnings.add(warning)
            _log.warning(
                "config_warning",
                file=warning.file,
                line=warning.line,
                path=warning.path or None,
                problem=warning.message,
            )


def log_problems(error: ConfigError) -> None:
    """One line for each problem."""
    for problem in error.problems:
        _log.error(
            "config_invalid",
            file=problem.file,
            line=problem.line,
            path=problem.path or None,
            problem=problem.message,
        )


class Reloads:
    """Loads the configuration again and applies it, one reload at a time.

    Callers that arrive during a reload share the next one. `run` and `watch` are for threads of their own.
    The other methods are for any thread.
    """

    def __init__(
        self, loader: Loader, *, apply: Callable[[Settings], bool], report: Callable[[bool], None]
    ) -> None:
        """`apply` returns whether the settings are in force now. `report` receives each outcome."""
        self._loader = loader
        self._apply = apply
        self._report = report
        self._lock = threading.Lock()
        #: The requested reload that has not begun. Its result is its problems.
        self._next: Future[Sequence[str]] | None = None
        self._queue: SimpleQueue[Future[Sequence[str]]] = SimpleQueue()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        #: Whether the last attempt failed for a reason other than the file, so that the same file is retried.
        self._retry = False

    def request(self) -> Future[Sequence[str]]:
        """Request a reload that begins after this call. Does not block."""
        with self._lock:
            if self._next is None:
                self._next = Future()
                self._queue.put(self._next)
            return self._next

    def wait(self, *, timeout: float = RELOAD_TIMEOUT) -> Sequence[str]:
        """Request a reload and wait for its end, at most `timeout` seconds; the problems."""
        reload = self.request()
        if not self._waiting.acquire(blocking=False):
            return ["a reload is under way, and enough others wait for the next; it will come all the same"]
        try:
            return reload.result(timeout)
        except TimeoutError:
            return [f"the reload did not end within {timeout:g} s; it may yet"]
        finally:
            self._waiting.release()

    def run(self) -> None:
        """Run the requested reloads. Never returns."""
        while True:
            reload = self._queue.get()
            with self._lock:
                self._next = None
            reload.set_result(self._reload())

    def watch(self, *, every: float, wait: Callable[[float], object]) -> None:
        """Look every `every` seconds whether a reload is due. Returns once `wait` returns something true."""
        while not wait(max(every, RETRY_AFTER) if self._retry else every):
            if self._due():
                self.wait()

    def _due(self) -> bool:
        """Whether the file changed, or the last attempt must be repeated."""
        if self._retry:
            return True
        try:
            return self._loader.changed()
        except Exception as error:  # noqa: BLE001 - the next look may work
            _log.broken("config_look_broke", error)
            self._report(False)
            self._retry = True
            return False

    def _reload(self) -> Sequence[str]:
        """Load and apply; the problems, or nothing after a success. Raises nothing."""
        self._retry = False
        problems: Sequence[str] = []
        try:
            settings = self._loader.load()
            if self._apply(settings):
                _log.info("config_reloaded", targets=len(settings.targets))
            else:
                self._retry = True
                problems = ["the polling loop did not take the configuration in time"]
                _log.error("config_not_taken", error=problems[0])
        except ConfigError as error:
            log_problems(error)
            problems = [str(problem) for problem in error.problems]
        except Exception as error:  # noqa: BLE001 - the next attempt may work
            self._retry = True
            _log.broken("reload_broke", error)
            problems = [f"an unexpected {type(error).__name__}; the log has more"]
        self._report(not problems)
        return problems
