"""The state file: what is settled, kept on disk, so that a restart need not ask for it again.

One gzip file of JSON lines, which checks itself when it is read. The first line says what it is; each
of the others holds images of one repository that are COMPLETE at the same destinations, so nothing but
that can come out of it. It is written beside its place and then moved there: whenever the process dies,
the last whole file is there. What cannot be read is a warning and a cold start.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from exporter import log
from exporter.config import Settings
from exporter.model import Destination, ImageState, Replication, Source, Status
from exporter.state import ImageFacts, Ledger

FORMAT = "ecr-replication-exporter state"
VERSION = 1
#: Seconds between two writings. What is settled meanwhile is asked for again after a kill.
WRITE_EVERY = 600.0
#: Images in a line, and the longest line in bytes: so much is in memory twice, and no more.
_LINE_IMAGES = 1000
_LINE_BYTES = 4 * 1024 * 1024
#: Fast, and still a third of the size: digests do not compress.
_GZIP_LEVEL = 1

_log = log.get("statefile")


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
        """What is known of the image; nothing new if it was replicated anew, or this is too long ago.

        An answer from the future comes of a clock that was set: it is not believed either.
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
    """What is settled in one repository, and where the rules sent its images; None if nobody knew."""

    owed: frozenset[Destination] | None
    images: dict[str, Settled]


class Memory:
    """What the state file held, until each repository has taken its part."""

    def __init__(self, repositories: Mapping[tuple[Source, str], Remembered] | None = None) -> None:
        self._repositories = dict(repositories or {})

    def __len__(self) -> int:
        return sum(len(remembered.images) for remembered in self.rest().values())

    def take(
        self, source: Source, repository: str, *, owed: frozenset[Destination] | None
    ) -> Mapping[str, Settled]:
        """What is remembered of the repository, by digest, and no longer here.

        Nothing, if its images are owed to other destinations now than they were then.
        """
        remembered = self._repositories.pop((source, repository), None)
        return remembered.images if remembered and remembered.owed == owed else {}

    def rest(self) -> dict[tuple[Source, str], Remembered]:
        """What nobody took so far. From any thread."""
        return dict(self._repositories)


# -- the file ------------------------------------------------------------------------------------


class UnusableError(Exception):
    """The file is damaged, foreign or of another version."""


def read(path: str) -> Memory:
    """What the file holds; nothing if there is none. Raises OSError and UnusableError."""
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
            return Memory(repositories)
    except FileNotFoundError:
        return Memory()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UnusableError(f"it is damaged, or not a state file: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnusableError(f"it does not hold what a state file holds: {error!r}") from error


def _take_line(repositories: dict[tuple[Source, str], Remembered], line: dict[str, Any]) -> None:
    source = Source(_text(line["registry_id"]), _text(line["region"]))
    owed = None if line["owed"] is None else frozenset(_destinations(line["owed"]))
    destinations = _destinations(line["complete"])
    remembered = repositories.setdefault((source, _text(line["repository"])), Remembered(owed, {}))
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
    draft = f"{path}.new"
    with open(draft, "wb") as raw:  # noqa: PTH123 - a path as the operator wrote it
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_GZIP_LEVEL) as file:
            for line in _lines(repositories):
                file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        raw.flush()
        os.fsync(raw.fileno())
    os.replace(draft, path)  # noqa: PTH105
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # noqa: PTH120
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
        owed = None if remembered.owed is None else sorted(remembered.owed)
        head = {"registry_id": source.registry_id, "region": source.region, "repository": repository}
        for destinations, images in alike.items():
            for start in range(0, len(images), _LINE_IMAGES):
                some = images[start : start + _LINE_IMAGES]
                rows = {digest: (s.replicated_from, s.answered_time) for digest, s in some}
                yield {**head, "owed": owed, "complete": destinations, "images": rows}


def settled(ledger: Ledger, clock: Clock) -> dict[tuple[Source, str], Remembered]:
    """What is settled by the ledger, whatever its listings are worth by now."""
    boot = clock.time() - clock.monotonic()
    found = {}
    for source, repository, owed, images in ledger.settled():
        rows = {
            image.digest: Settled(
                image.replicated_from,
                round(image.answered_at + boot, 1),
                tuple(replication.destination for replication in image.replications or ()),
            )
            for image in images
        }
        found[source, repository] = Remembered(owed, rows)
    return found


# -- its keeper ----------------------------------------------------------------------------------


class Watcher(Protocol):
    """Told how reading and writing go, for the metrics."""

    def state_written(self, *, at: float) -> None: ...

    def state_failed(self, operation: str) -> None: ...


class Keeper:
    """Reads the state file once, and writes it now and then in a thread of its own, and in the end."""

    def __init__(self, *, settings: Settings, ledger: Ledger, clock: Clock, watcher: Watcher) -> None:
        self.memory = Memory()
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._watcher = watcher
        self._folds = log.Folds(_log, clock=clock.monotonic)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="statefile", daemon=True)
        #: A file that is not ours to overwrite.
        self._foreign: str | None = None
        if settings.state_file:
            self._read(settings.state_file)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def configure(self, settings: Settings) -> None:
        """Another file from now on, or none."""
        self._settings = settings

    def stop(self) -> None:
        """Begin to write for the last time."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for so many seconds until that is done; the last file stays if it is not."""
        self._thread.join(timeout)

    def _read(self, path: str) -> None:
        try:
            self.memory = read(path)
            _log.info("state_file_read", file=path, images=len(self.memory))
        except (OSError, UnusableError) as error:
            self._foreign = path
            self._watcher.state_failed("read")
            _log.warning("state_file_unusable", file=path, error=str(error), remedy="starting cold")

    def _keep(self) -> None:
        while not self._stopping.wait(WRITE_EVERY):
            self.write()
        self.write()

    def write(self) -> None:
        """Write what is settled now, and what is remembered of repositories that were not listed yet."""
        path = self._settings.state_file
        if not path:
            return
        try:
            if path == self._foreign:
                # It may be somebody's who mistyped a path: it is moved, not lost.
                with suppress(FileNotFoundError):
                    os.replace(path, f"{path}.unusable")  # noqa: PTH105
                self._foreign = None
            write(path, self._rest() | settled(self._ledger, self._clock))
        except OSError as error:
            self._watcher.state_failed("write")
            self._folds.failed(path, path, "state_file_not_written", error=str(error))
        else:
            self._watcher.state_written(at=self._clock.time())
            self._folds.recovered(path, path)

    def _rest(self) -> dict[tuple[Source, str], Remembered]:
        """What may still be of use to a repository that is not listed yet."""
        useful_since = self._clock.time() - self._settings.settled_interval - self._settings.stale_after
        rest = {}
        for key, (owed, images) in self.memory.rest().items():
            useful = {digest: s for digest, s in images.items() if s.answered_time >= useful_since}
            if useful:
                rest[key] = Remembered(owed, useful)
        return rest
