"""The state file: what is known of images on disk, so that a restart loses none of it.

Settled images are not asked for again after a restart, and unfinished ones keep the time since which they
are in their state. It is a gzip file of JSON lines. The first line names the format. Each other line has
images of one repository that are COMPLETE at the same destinations, or unfinished in the same states since
the same times. A new file is written beside the old one and then replaces it, so that a whole file exists
at every moment. A file that cannot be read is a warning and a cold start.
"""

from __future__ import annotations

import gzip
import os
import socket
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from exporter import logs
from exporter.config.settings import Settings
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Since, Source
from exporter.replication.replicas import complete_at
from exporter.replication.store import Store

#: The first line. Another version of the format has another number.
_HEAD = b'{"format":"ecr-replication-exporter state","version":3}\n'
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
        self,
        image: ImageFacts,
        *,
        clock: Clock,
        expected: frozenset[Destination],
        settled_interval: float,
        stale_after: float,
    ) -> ImageFacts:
        """The facts of the image with this answer.

        They are unchanged if it is not COMPLETE wherever it is expected, if the image was replicated again
        since, if the answer is too old, or if it is from the future because the clock was set back.
        """
        destinations = frozenset(self.destinations)
        if not expected <= destinations:
            return image
        age = clock.time() - self.answered_time
        good_for = settled_interval + stale_after
        if self.replicated_from != image.replicated_from or not 0 <= age <= good_for:
            return image
        answered_at = clock.monotonic() - age
        return replace(
            image,
            replications=complete_at(destinations),
            state=ImageState.SETTLED,
            answered_at=answered_at,
            good_until=answered_at + good_for,
        )


class Unfinished(NamedTuple):
    """An image that was not COMPLETE everywhere, when ECR said so (Unix time), and since when."""

    replicated_from: float | None
    answered_time: float
    #: Destination, status, and the Unix time at which the image was first seen so.
    states: tuple[tuple[Destination, str, float], ...]

    def recall(
        self,
        image: ImageFacts,
        *,
        clock: Clock,
        expected: frozenset[Destination],
        settled_interval: float,
        stale_after: float,
    ) -> ImageFacts:
        """The facts of the image with these times, which are of use once ECR reports the same states.

        They are unchanged if the image was replicated again since. Times of the future are left out, because
        the clock was set back.
        """
        del expected, settled_interval, stale_after
        if self.replicated_from != image.replicated_from:
            return image
        now = clock.time()
        since = tuple(Since(*state, shown=False) for state in self.states if state[2] <= now)
        return replace(image, since=since, answered_at=clock.monotonic() - (now - self.answered_time))


Remembered = Settled | Unfinished
#: What is remembered of the images of one repository, by digest.
Images = Mapping[str, Remembered]
_Key = tuple[Source, str]
Repositories = Mapping[_Key, Images]


class StateCache:
    """What the state file held, until each repository has taken its part."""

    def __init__(self, repositories: Iterable[tuple[_Key, Images]] = ()) -> None:
        self._repositories = dict(repositories)

    def __len__(self) -> int:
        return sum(map(len, self.rest().values()))

    def of(self, source: Source, repository: str) -> Images:
        """What is remembered of the repository, by digest."""
        return self._repositories.get((source, repository), {})

    def forget(self, source: Source, repository: str) -> None:
        """Drop what is remembered of a repository, because it was listed."""
        self._repositories.pop((source, repository), None)

    def rest(self, *, since: float = 0.0) -> dict[_Key, Images]:
        """What is not forgotten yet, of repositories with an answer since that Unix time. From any thread."""
        return {
            key: images
            for key, images in dict(self._repositories).items()
            if any(image.answered_time >= since for image in images.values())
        }


# -- the file ------------------------------------------------------------------------------------


class UnusableError(Exception):
    """The file is damaged, foreign or of another version."""


class _Line(BaseModel):
    """Images of one repository: either COMPLETE at the same destinations, or unfinished alike."""

    model_config = ConfigDict(allow_inf_nan=False)

    source: Source
    repository: str
    complete: tuple[Destination, ...] = ()
    #: As in `Unfinished`. Settled images have none.
    unfinished: tuple[tuple[Destination, str, float], ...] = ()
    #: By digest: `replicated_from` and `answered_time`.
    images: dict[str, tuple[float | None, float]]


def read(path: str) -> Repositories:
    """What the file holds; nothing if there is none. Raises OSError and UnusableError."""
    repositories: dict[tuple[Source, str], dict[str, Remembered]] = defaultdict(dict)
    try:
        with _opened(path) as file:
            while text := file.readline(_LINE_BYTES):
                line = _Line.model_validate_json(text)
                images = repositories[line.source, line.repository]
                for digest, times in line.images.items():
                    images[digest] = (
                        Unfinished(*times, line.unfinished)
                        if line.unfinished
                        else Settled(*times, line.complete)
                    )
    except FileNotFoundError:
        directory = os.path.dirname(path) or "."  # noqa: PTH120 - a path as the operator wrote it
        if not Path(directory).is_dir():
            raise OSError(f"there is no directory {directory} to keep it in") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableError(f"it is damaged, or not a state file: {error}") from error
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UnusableError(f"a line of it is not that of a state file: {where}: {problem['msg']}") from error
    return repositories


@contextmanager
def _opened(path: str) -> Iterator[gzip.GzipFile]:
    """The state file, after its first line."""
    _refuse_special(path)
    with gzip.open(path) as file:
        if file.readline(_LINE_BYTES) != _HEAD:
            raise UnusableError("it is not a state file, or one of another version")
        yield file


def _refuse_special(path: str) -> None:
    """Raise OSError unless the path is a regular file or missing. To open a pipe would hang."""
    if Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path} is not a regular file")


def write(path: str, repositories: Iterable[tuple[_Key, Images]]) -> None:
    """Replace the file in one step. Raises OSError, and leaves the last file in its place then.

    It holds what is remembered of one repository at a time.
    """
    _refuse_special(path)
    file = Path(path).resolve()  # the file is replaced, not a link to it
    # Two exporters that overlap have different names here. After a kill the name is the same again.
    draft = file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}.new")
    try:
        with draft.open("wb") as raw:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_GZIP_LEVEL) as packed:
                packed.write(_HEAD)
                for line in _lines(repositories):
                    packed.write(line.model_dump_json().encode() + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(file)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the move may be lost with the power
    finally:
        os.close(directory)


def _lines(repositories: Iterable[tuple[_Key, Images]]) -> Iterator[_Line]:
    for (source, repository), images in repositories:
        alike: dict[Any, dict[str, Any]] = defaultdict(dict)
        for digest, (replicated_from, answered_time, *rest) in images.items():
            kind = "unfinished" if isinstance(images[digest], Unfinished) else "complete"
            alike[kind, *rest][digest] = (replicated_from, answered_time)
        for (kind, states), rows in alike.items():
            for start in range(0, len(rows), _LINE_IMAGES):
                some = dict(islice(rows.items(), start, start + _LINE_IMAGES))
                yield _Line(source=source, repository=repository, images=some, **{kind: states})


def remembered(store: Store, clock: Clock) -> Iterator[tuple[_Key, Images]]:
    """What the store knows of settled and unfinished images, also where its listing is stale."""
    now = clock.monotonic()
    boot = clock.time() - now
    for key, images in store.listed_images().items():
        yield key, {image.digest: kept for image in images if (kept := _kept(image, now, boot))}


def _kept(image: ImageFacts, now: float, boot: float) -> Remembered | None:
    """What is worth to be kept of the image at the monotonic time `now`. `boot` is the Unix time at 0.

    What looks confirm needs no newer answer of ECR, so it is as good as one.
    """
    answered_time = round((now if image.confirmed else image.answered_at) + boot, 1)
    if image.since:
        states = tuple(since[:3] for since in image.since)
        return Unfinished(image.replicated_from, answered_time, states)
    if image.state is ImageState.SETTLED and not image.unverified:
        destinations = tuple(replication.destination for replication in image.replications or ())
        return Settled(image.replicated_from, answered_time, destinations)
    return None


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
        """Write what is known now, and what is remembered of repositories that were not listed yet."""
        path = self._settings.state_file
        if not path:
            return
        try:
            _make_room(path, self._clock.time())
            write(path, self._known())
        except Exception as error:  # noqa: BLE001 - the metrics and the log show it
            self._watcher.state_failed("write")
            self._folds.failed(path, path, "state_file_not_written", error=str(error))
        else:
            self._watcher.state_written(at=self._clock.time())
            self._folds.recovered(path, path)

    def _known(self) -> Iterator[tuple[_Key, Images]]:
        """What the store knows, and what is remembered of repositories that were not listed yet."""
        settings = self._settings
        # Before the store: a repository that is listed meanwhile is in both then, and not in neither.
        rest = self.memory.rest(since=self._clock.time() - settings.settled_interval - settings.stale_after)
        for key, images in remembered(self._store, self._clock):
            rest.pop(key, None)
            yield key, images
        yield from rest.items()

    def _read(self, path: str) -> None:
        try:
            self.memory = StateCache(read(path).items())
        except (OSError, UnusableError) as error:
            self._watcher.state_failed("read")
            _log.warning("state_file_unusable", file=path, error=str(error), consequence="a cold start")
        else:
            if Path(path).exists():
                _log.info("state_file_read", file=path, images=len(self.memory))

    def _keep(self) -> None:
        # The first write is early, so that a path that cannot be written is noticed early.
        wait = FIRST_WRITE_AFTER
        while not self._stopping.wait(wait):
            self.write()
            wait = WRITE_EVERY
        self.write()


def _make_room(path: str, now: float) -> None:
    """Move a file aside that does not begin as a state file. Raises OSError if that is not possible."""
    try:
        with suppress(FileNotFoundError), _opened(path):
            pass
    except (EOFError, zlib.error, gzip.BadGzipFile, UnusableError):
        Path(path).replace(f"{path}.unusable-{now:.0f}")
