"""What a scrape gets: the catalogue's rows as text, rendered when facts change and kept until they do.

Ten thousand images with three destinations each are a hundred thousand lines, and prometheus_client
takes seconds for them. Two things make that cheap. The lines of an image are alike: its own labels,
then one of the few continuations that images in the same states share, which are rendered once for
each combination of states. And few facts change between two scrapes: images stand in blocks, whose
text, plain or compressed, is kept while they are the same. What the catalogue says is all there is to
know here; a test holds the text equal to prometheus_client's.

Text 0.0.4 and OpenMetrics 1.0 write gauges the same way, so one rendering serves both.
"""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from operator import is_
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from exporter.metrics.catalogue import DOMAIN, I, ImageRow, RegistryRow, RepositoryRow, Row, S, Sample
from exporter.metrics.self_metrics import Clock, Figures, Gauges, Instruments
from exporter.replication.model import Source
from exporter.replication.store import ImageFacts, RegistrySnapshot, Snapshot, Store

#: Combinations of states that are kept rendered; a world has a few dozen.
_TEMPLATES = 4096
#: Images whose text is kept together: one that changes costs the rendering of so many. Smaller ones
#: compress worse, and every member of a gzip file is a chance to wait for the interpreter.
_BLOCK = 16
#: Fast, and still a fifteenth of the size: these lines repeat themselves.
_GZIP_LEVEL = 1
#: Seconds that plain text is kept after it was asked for: it takes fifteen times the memory, and
#: Prometheus asks for compressed pages.
_PLAIN_KEPT = 600.0
_OPENMETRICS = "application/openmetrics-text"


# -- rows as text --------------------------------------------------------------------------------


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True))


def _head(row: Row) -> str:
    return f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n"


def _lines(row: Row, samples: Iterable[Sample]) -> str:
    return "".join(
        f"{row.name}{{{_pairs(row.labels, labels)}}} {floatToGoString(value)}\n" for labels, value in samples
    )


def _continuations(row: ImageRow, fact: Any) -> tuple[str, ...]:
    """What follows an image's own labels on each of its lines, for all images with the fact."""
    rest = row.labels[len(I) :]
    lines = [
        f"{',' if rest else ''}{_pairs(rest, labels)}}} {floatToGoString(value)}\n"
        for labels, value in row.samples(fact)
    ]
    return ("", *lines) if lines else ()


_template = lru_cache(maxsize=_TEMPLATES)(_continuations)


def _image_lines(row: ImageRow, source: Source, repository: str, images: Iterable[ImageFacts]) -> str:
    before = f'{row.name}{{{_pairs(I[:1], (repository,))},tag="'
    after = f'",{_pairs(S, source)}'
    continuations = _template if row.shared else _continuations
    text = []
    for image in images:
        if template := continuations(row, row.fact(image)):
            for name in image.names:
                digest = image.digest if row.digest else name.digest
                own = f'{before}{_escaped(name.tag)}",digest="{_escaped(digest)}{after}'
                text.append(own.join(template))
    return "".join(text)


# -- text that is kept ---------------------------------------------------------------------------


def _packed(text: str) -> bytes:
    """A member of a gzip file, which may have any number of them (RFC 1952)."""
    return gzip.compress(text.encode(), _GZIP_LEVEL, mtime=0) if text else b""


@cache
def _heading(row: Row, *, packed: bool) -> bytes:
    return _packed(_head(row)) if packed else _head(row).encode()


@dataclass(slots=True)
class _Kept:
    """The text of some rows about facts that stay the same, as it was asked for so far."""

    facts: Sequence[ImageFacts]
    plain: dict[str, bytes] = field(default_factory=dict)
    packed: dict[str, bytes] = field(default_factory=dict)

    def text(self, row: Row, render: Callable[[], str], *, packed: bool) -> bytes:
        """What the row says of the facts, rendered if nobody asked before."""
        kept = self.packed if packed else self.plain
        if row.name not in kept:
            text = render()
            kept[row.name] = _packed(text) if packed else text.encode()
        return kept[row.name]

    def says(self, facts: Sequence[ImageFacts]) -> bool:
        """Whether the facts say the same, whenever that was; if so, they are held instead of the old ones."""
        same = self.facts == facts
        if same:
            self.facts = facts
        return same

    def now(self, facts: Sequence[ImageFacts]) -> _Kept:
        """With other facts about the images: text of rows for which they are the same stays."""
        if self.says(facts):
            return self
        same = {row.name for row in _IMAGE_ROWS if _told(row, self.facts) == _told(row, facts)}
        # Copied first: what renders ahead may add to them meanwhile.
        plain = {name: text for name, text in self.plain.copy().items() if name in same}
        return _Kept(facts, plain, {name: text for name, text in self.packed.copy().items() if name in same})


_IMAGE_ROWS = tuple(row for row in DOMAIN if isinstance(row, ImageRow))


def _told(row: ImageRow, images: Iterable[ImageFacts]) -> list[tuple[Any, ...]]:
    """All that the row's lines are made of."""
    return [(image.digest, image.names, row.fact(image)) for image in images]


class _Repository:
    """All rows about one repository: its own lines, and its images in blocks.

    An image keeps its place, and one that is deleted leaves a hole for the next: so whichever images come
    and go, only their own blocks change.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name
        self._whole = _Kept(())
        self._blocks: list[_Kept] = []
        self._places: list[ImageFacts | None] = []
        self._place_of: dict[str, int] = {}
        self._holes: list[int] = []

    def update(self, images: tuple[ImageFacts, ...]) -> None:
        """Take the images of now. Blocks in which nothing changed stay as they are.

        Facts are replaced whole, so that this compares references, and looks closer only where one
        is another.
        """
        if len(images) == len(self._whole.facts) and all(map(is_, images, self._whole.facts)):
            return
        if not self._whole.says(images):
            self._whole = _Kept(images)
        if len(self._holes) > len(images):
            self._places, self._place_of, self._holes, self._blocks = [], {}, [], []
        for block in self._take_places(images):
            facts = tuple(filter(None, self._places[block * _BLOCK : (block + 1) * _BLOCK]))
            if block == len(self._blocks):
                self._blocks.append(_Kept(facts))
            else:
                self._blocks[block] = self._blocks[block].now(facts)

    def _take_places(self, images: tuple[ImageFacts, ...]) -> list[int]:
        """Put each image where it stands; the blocks in which any is another now, in order."""
        changed = set()
        for digest in self._place_of.keys() - {image.digest for image in images}:
            place = self._place_of.pop(digest)
            self._places[place] = None
            self._holes.append(place)
            changed.add(place // _BLOCK)
        for image in images:
            place = self._place_of.get(image.digest, -1)
            if place < 0:
                if not self._holes:
                    self._holes.append(len(self._places))
                    self._places.append(None)
                place = self._place_of[image.digest] = self._holes.pop()
            if self._places[place] is not image:
                self._places[place] = image
                changed.add(place // _BLOCK)
        return sorted(changed)

    def forget_plain(self) -> None:
        """Keep compressed text only."""
        for kept in (self._whole, *self._blocks):
            kept.plain.clear()

    def pieces(self, row: Row, *, packed: bool) -> Iterator[bytes]:
        """The lines of a row, piece by piece."""
        if isinstance(row, ImageRow):
            for block in self._blocks:
                yield block.text(row, partial(self._image_lines, row, block), packed=packed)
        elif isinstance(row, RepositoryRow):
            yield self._whole.text(row, partial(self._own_lines, row), packed=packed)

    def _image_lines(self, row: ImageRow, block: _Kept) -> str:
        return _image_lines(row, self._source, self._name, block.facts)

    def _own_lines(self, row: RepositoryRow) -> str:
        return _lines(row, row.samples(self._source, self._name, self._whole.facts))


# -- pages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """What a scrape gets: a body in pieces, which other scrapes may share, and headers."""

    body: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...]

    def whole(self) -> bytes:
        """The body in one piece: a copy."""
        return b"".join(self.body)


@dataclass(frozen=True, slots=True)
class _Large:
    """The image and repository rows as of one version of the facts."""

    version: int
    good_until: float
    pieces: tuple[bytes, ...]


_SMALL = tuple(row for row in DOMAIN if isinstance(row, RegistryRow))
_LARGE = tuple(row for row in DOMAIN if not isinstance(row, RegistryRow))
_NOTHING = _Large(-1, 0.0, ())


class Exposition:
    """Everything that /metrics tells. Called from any thread; never calls AWS.

    The text about images is large and changes seldom: it is kept. The rest is small and rendered every
    time. Compressed, the pieces are members of one gzip file.
    """

    def __init__(self, *, instruments: Instruments, store: Store, figures: Figures, clock: Clock) -> None:
        self._own = instruments.registry
        self._own.register(Gauges(store, figures, clock))
        self._store = store
        self._clock = clock
        #: One renders, the others wait and find it done.
        self._lock = threading.Lock()
        self._repositories: dict[tuple[Source, str], _Repository] = {}
        #: The last page, plain and compressed; and when plain text was last asked for, 0 if none is kept.
        self._last = {False: _NOTHING, True: _NOTHING}
        self._plain_at = 0.0

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        """The exposition in the best format that is accepted; of `names` only, if there are any."""
        encode, content_type = choose_encoder(_OPENMETRICS if accepts_openmetrics(accept) else "")
        own: Any = self._own.restricted_registry(names) if names else self._own
        packed = accepts_gzip(accept_encoding)
        if not packed:
            self._plain_at = self._clock.monotonic()
        large = self._some(names, packed=packed) if names else self._all(packed=packed)
        registries = self._store.snapshot(self._clock.monotonic(), images=False).registries
        small = "".join(_registry_lines(registries, names)) + encode(own).decode()
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        return Page((*large, _packed(small) if packed else small.encode()), tuple(headers))

    def refresh(self) -> None:
        """Have the compressed page ready for whoever asks next, and forget a plain one that nobody wants.

        No scrape waits for that: it is rendered without the lock, since who renders the same text at the
        same time gets the same.
        """
        if not self._current(self._last[True]):
            with self._lock:
                self._update()
            for _ in self._pieces(_LARGE, packed=True):
                pass
            self._all(packed=True)
        with self._lock:
            if self._plain_at and self._clock.monotonic() > self._plain_at + _PLAIN_KEPT:
                self._plain_at = 0.0
                self._last[False] = _NOTHING
                for repository in self._repositories.values():
                    repository.forget_plain()

    def _all(self, *, packed: bool) -> tuple[bytes, ...]:
        last = self._last[packed]
        if self._current(last):
            return last.pieces
        with self._lock:
            last = self._last[packed]
            if not self._current(last):
                snapshot = self._update()
                pieces = tuple(self._pieces(_LARGE, packed=packed))
                self._rendered(packed=packed)
                last = self._last[packed] = _Large(snapshot.version, snapshot.good_until, pieces)
            return last.pieces

    def _current(self, page: _Large) -> bool:
        return page.version == self._store.version and self._clock.monotonic() <= page.good_until

    def _some(self, names: Sequence[str], *, packed: bool) -> tuple[bytes, ...]:
        rows = list(_named(_LARGE, names))
        if not rows:
            return ()
        with self._lock:
            self._update()
            self._rendered(packed=packed)
            return tuple(self._pieces(rows, packed=packed))

    def _rendered(self, *, packed: bool) -> None:
        """Note that text is kept which is to be forgotten some day. For who holds the lock."""
        if not packed:
            self._plain_at = self._clock.monotonic()

    def _update(self) -> Snapshot:
        snapshot = self._store.snapshot(self._clock.monotonic())
        # If this breaks in the middle, nothing half done stays: all is rendered anew.
        known, self._repositories = self._repositories, {}
        repositories = {}
        for registry in snapshot.registries:
            for name, images in registry.repositories:
                key = (registry.source, name)
                repositories[key] = known.get(key) or _Repository(*key)
                repositories[key].update(images)
        self._repositories = repositories
        return snapshot

    def _pieces(self, rows: Iterable[Row], *, packed: bool) -> Iterator[bytes]:
        for row in rows:
            yield _heading(row, packed=packed)
            for repository in self._repositories.values():
                yield from repository.pieces(row, packed=packed)


def _registry_lines(registries: Iterable[RegistrySnapshot], names: Sequence[str]) -> Iterator[str]:
    for row in _named(_SMALL, names):
        yield _head(row)
        for registry in registries:
            yield _lines(row, row.samples(registry))


def _named(rows: Iterable[Any], names: Sequence[str]) -> Iterator[Any]:
    return (row for row in rows if not names or row.name in names)


def _weights(accepted: str) -> dict[str, float]:
    """A header like Accept taken apart (RFC 9110): what is accepted, and how gladly; 0 is not at all."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        version, weight = "", 1.0
        for parameter in parameters:
            if match := re.fullmatch(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)", parameter):
                weight = float(match[1])
            elif match := re.fullmatch(r"version\s*=\s*(.*)", parameter):
                version = match[1].strip('"')
        name = f"{name};{version}" if version else name
        weights[name] = max(weight, weights.get(name, 0.0))
    return weights


def accepts_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0.0 is asked for, and text 0.0.4 not preferred.

    prometheus_client knows no weights, and breaks over a version that is no number.
    """
    weights = _weights(accept)
    wanted = max(weights.get(_OPENMETRICS, 0.0), weights.get(f"{_OPENMETRICS};1.0.0", 0.0))
    plain = (weights.get(name, 0.0) for name in ("text/plain", "text/plain;0.0.4", "text/*", "*/*"))
    return wanted > 0.0 and wanted >= max(plain)


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a body may be compressed, by RFC 9110: `gzip`, or `*`, unless its weight is 0."""
    weights = _weights(accept_encoding)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0.0
