"""The state file: settled images on disk, so that a restart does not ask for them again.

It is a gzip file of JSON lines. The first line names the format. Each other line has images of one
repository that are COMPLETE at the same destinations; nothing else is kept. A new file is written beside
the old one and then replaces it, so that a whole file exists at every moment. A file that cannot be read is
a warning and a cold start.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import stat
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from exporter import logs
from exporter.config.settings import Settings
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Replication, Source, Status
from exporter.replication.store import Store

FORMAT = "ecr-replication-exporter state"
VERSION = 1
#: Seconds between two writes. After a kill, what settled since the last one is asked for again.
WRITE_EVERY = 600.0
FIRST_WRITE_AFTER = 30.0
#: Images in a line, and the longest line in bytes. They bound the memory that reading and writing need.
_LINE_IMAGES = 1000
_LINE_BYTES = 4 * 1024 * 1024
#: The fastest level leaves a third of the size. Higher ones gain little, because digests do not compress.
_GZIP_LEVEL = 1

_log = logs.get("statefile")


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Settled(NamedTuple):
    """An image that was COMPLETE at all of these destinations, and when ECR said so (Unix time)."""

    replicated_from: float | None
    answered_time: float
    destinations: tuple[Destination, ...]

    def recall(
        self, image: ImageFacts, *, clock: Clock, settled_interval: float, stale_after: float
    ) -> ImageFacts:
        """The facts of the image with this answer.

        They are unchanged if the image was replicated again since, if the answer is too old, or if it is
        from the future because the clock was set back.
        """
        age = clock.time() - self.answered_time
        good_for = settled_interval + stale_after
        if self.replicated_from != image.replicated_from or not 0 <= age <= good_for:
            return image
        answered_at = clock.monotonic() - age
        return replace(
            image,
            replications=tuple(sorted(Replication(to, Status.COMPLETE) for to in self.destinations)),
            state=ImageState.SETTLED,
            answered_at=answered_at,
            good_until=answered_at + good_for,
        )


class Remembered(NamedTuple):
    """What is settled in one repository, and where the rules sent its images; None if that was not known."""

    expected: frozenset[Destination] | None
    images: dict[str, Settled]


class StateCache:
    """What the state file held, until each repository has taken its part."""

    def __init__(self, repositories: Mapping[tuple[Source, str], Remembered] | None = None) -> None:
        self._repositories = dict(repositories or {})

    def __len__(self) -> int:
        return sum(len(remembered.images) for remembered in self.rest().values())

    def recall(
        self, source: Source, repository: str, *, expected: frozenset[Destination] | None
    ) -> Mapping[str, Settled]:
        """What is remembered of the repository, by digest.

        Only what is COMPLETE wherever the rules send it now; and nothing if they sent it elsewhere then.
        """
        remembered = self._repositories.get((source, repository))
        if remembered is None or remembered.expected != expected:
            return {}
        wanted = expected or frozenset()
        return {d: settled for d, settled in remembered.images.items() if wanted <= set(settled.destinations)}

    def forget(self, source: Source, repository: str) -> None:
        """Drop what is remembered of a repository, because it was listed."""
        self._repositories.pop((source, repository), None)

    def forget_before(self, answered_time: float) -> None:
        """Drop repositories whose answers are all older than that Unix time."""
        for key, (_, images) in self.rest().items():
            if all(settled.answered_time < answered_time for settled in images.values()):
                self._repositories.pop(key, None)

    def rest(self) -> dict[tuple[Source, str], Remembered]:
        """What is not forgotten yet. From any thread."""
        return dict(self._repositories)


# -- the file ------------------------------------------------------------------------------------


class UnusableError(Exception):
    """The file is damaged, foreign or of another version."""


def read(path: str) -> StateCache:
    """What the file holds; nothing if there is none. Raises OSError and UnusableError."""
    _refuse_special(path)
    try:
        with gzip.open(path) as file:
            head = json.loads(file.readline(_LINE_BYTES))
            if head.get("format") != FORMAT:
                raise UnusableError("it is not a state file")
            if head.get("version") != VERSION:
                raise UnusableError(f"its version is {head.get('version')!r}, this exporter's is {VERSION}")
            repositories: dict[tuple[Source, str], Remembered] = {}
            while line := file.readline(_LINE_BYTES):
                _take_line(repositories, json.loads(line))
            return StateCache(repositories)
    except FileNotFoundError:
        directory = os.path.dirname(path) or "."  # noqa: PTH120 - a path as the operator wrote it
        if not os.path.isdir(directory):  # noqa: PTH112
            raise OSError(f"there is no directory {directory} to keep it in") from None
        return StateCache()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UnusableError(f"it is damaged, or not a state file: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UnusableError(f"it does not hold what a state file holds: {error!r}") from error


def _refuse_special(path: str) -> None:
    """Raise OSError unless the path is a regular file or missing. To open a pipe would hang."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a path as the operator wrote it
            raise OSError(f"{path} is not a regular file")


def _take_line(repositories: dict[tuple[Source, str], Remembered], line: dict[str, Any]) -> None:
    source = Source(_text(line["registry_id"]), _text(line["region"]))
    expected = None if line["owed"] is None else frozenset(_destinations(line["owed"]))
    destinations = _destinations(line["complete"])
    remembered = repositories.setdefault((source, _text(line["repository"])), Remembered(expected, {}))
    for digest, (replicated_from, answered_time) in line["images"].items():
        began = None if replicated_from is None else _time(replicated_from)
        remembered.images[digest] = Settled(began, _time(answered_time), destinations)


def _destinations(rows: Iterable[Any]) -> tuple[Destination, ...]:
    return tuple(Destination(_text(region), _text(registry_id)) for region, registry_id in rows)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a time")
    return float(value)


def write(path: str, repositories: Mapping[tuple[Source, str], Remembered]) -> None:
    """Replace the file in one step. Raises OSError, and leaves the last file in its place then."""
    _refuse_special(path)
    path = os.path.realpath(path)  # the file is replaced, not a link to it
    # Two exporters that overlap have different names here. After a kill the name is the same again.
    draft = f"{path}.{socket.gethostname()}-{os.getpid()}.new"
    try:
        with open(draft, "wb") as raw:  # noqa: PTH123
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_GZIP_LEVEL) as file:
                for line in _lines(repositories):
                    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(draft, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.remove(draft)  # noqa: PTH107
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY)  # noqa: PTH120
    try:
        os.fsync(directory)  # or the move may be lost with the power
    finally:
        os.close(directory)


def _lines(repositories: Mapping[tuple[Source, str], Remembered]) -> Iterator[dict[str, Any]]:
    yield {"format": FORMAT, "version": VERSION}
    for (source, repository), remembered in repositories.items():
        alike: dict[tuple[Destination, ...], list[tuple[str, Settled]]] = defaultdict(list)
        for digest, settled in remembered.images.items():
            alike[settled.destinations].append((digest, settled))
        expected = None if remembered.expected is None else sorted(remembered.expected)
        head = {"registry_id": source.registry_id, "region": source.region, "repository": repository}
        for destinations, images in alike.items():
            for start in range(0, len(images), _LINE_IMAGES):
                some = images[start : start + _LINE_IMAGES]
                rows = {digest: (s.replicated_from, s.answered_time) for digest, s in some}
                yield {**head, "owed": expected, "complete": destinations, "images": rows}


def settled(store: Store, clock: Clock) -> dict[tuple[Source, str], Remembered]:
    """What the store knows to be settled, also where its listing is stale."""
    boot = clock.time() - clock.monotonic()
    found = {}
    for source, repository, expected, images in store.settled():
        rows = {
            image.digest: Settled(
                image.replicated_from,
                round(image.answered_at + boot, 1),
                tuple(replication.destination for replication in image.replications or ()),
            )
            for image in images
        }
        found[source, repository] = Remembered(expected, rows)
    return found


# -- the writer ----------------------------------------------------------------------------------


class Watcher(Protocol):
    """Counts reads and writes for the metrics."""

    def state_written(self, *, at: float) -> None: ...

    def state_failed(self, operation: str) -> None: ...

    def state_moved(self) -> None: ...


class StateFileWriter:
    """Reads the state file once. Writes it in a thread of its own, every WRITE_EVERY seconds and at the end.

    It replaces only a file that is a state file. Another file is moved aside, because its path may be a
    mistake in the configuration.
    """

    def __init__(self, *, settings: Settings, store: Store, clock: Clock, watcher: Watcher) -> None:
        self.memory = StateCache()
        self._settings = settings
        self._store = store
        self._clock = clock
        self._watcher = watcher
        self._folds = logs.Folds(_log, clock=clock.monotonic)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="statefile", daemon=True)
        #: The path that is known to be a state file, or free.
        self._ours: str | None = None
        if settings.state_file:
            self._read(settings.state_file)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def configure(self, settings: Settings) -> None:
        """Write to another file from now on, or to none. A file that is there already is not read."""
        if settings.state_file != self._settings.state_file:
            self._watcher.state_moved()
        self._settings = settings

    def stop(self) -> None:
        """Begin to write for the last time."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait at most so many seconds for the last write. Without it the previous file stays."""
        self._thread.join(timeout)

    def write(self) -> None:
        """Write what is settled now, and what is remembered of repositories that were not listed yet."""
        path = self._settings.state_file
        if not path:
            return
        settings, now = self._settings, self._clock.time()
        self.memory.forget_before(now - settings.settled_interval - settings.stale_after)
        try:
            if path != self._ours:
                _make_room(path, now)
                self._ours = path
            write(path, settled(self._store, self._clock) | self.memory.rest())
        except Exception as error:  # noqa: BLE001 - the metrics and the log show it
            self._watcher.state_failed("write")
            self._folds.failed(path, path, "state_file_not_written", error=str(error))
        else:
            self._watcher.state_written(at=self._clock.time())
            self._folds.recovered(path, path)

    def _read(self, path: str) -> None:
        try:
            self.memory = read(path)
            self._ours = path
            _log.info("state_file_read", file=path, images=len(self.memory))
        except (OSError, UnusableError) as error:
            self._watcher.state_failed("read")
            _log.warning("state_file_unusable", file=path, error=str(error), consequence="a cold start")

    def _keep(self) -> None:
        # The first write is early, so that a path that cannot be written is noticed early.
        wait = FIRST_WRITE_AFTER
        while not self._stopping.wait(wait):
            self.write()
            wait = WRITE_EVERY
        self.write()


def _make_room(path: str, now: float) -> None:
    """Move a file aside that is not a state file. Raises OSError if it cannot be moved or read."""
    try:
        read(path)
    except UnusableError:
        os.replace(path, f"{path}.unusable-{now:.0f}")  # noqa: PTH105
