"""The page of a scrape: the catalogue's rows as text and as one gzip stream, kept until facts change.

Three things make a page with hundreds of thousands of lines cheap. The labels of an image are rendered
once for all its lines. What follows them depends on few facts and is cached. And images stand in blocks,
whose text is kept while their facts stay the same. A test compares the page with prometheus_client's.

Text 0.0.4 and OpenMetrics 1.0 write gauges in the same way, so one rendering serves both.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from exporter.metrics import gzip_stream
from exporter.metrics.catalogue import DOMAIN, I, ImageRow, RegistryRow, RepositoryRow, Row, S, Sample
from exporter.metrics.gzip_stream import Piece
from exporter.metrics.self_metrics import Clock, Figures, Gauges, Instruments
from exporter.replication.model import Source
from exporter.replication.store import ImageFacts, RegistrySnapshot, Snapshot, Store

#: Cached templates of a row; a fleet has a few dozen combinations of states.
_TEMPLATES = 4096
#: The fewest images of a block, on average a quarter more: of rows with a line for each state
#: and destination, and of rows with one line. Small blocks compress worse; in large ones, an image that
#: changes costs the rendering of many.
_MANY_LINES, _ONE_LINE = 24, 192
#: Seconds for which plain text is kept after the last request for it. It takes forty times the memory of
#: compressed text, which is what Prometheus asks for.
_PLAIN_KEPT = 600.0
_OPENMETRICS = "application/openmetrics-text"


# -- rows as text --------------------------------------------------------------------------------


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True))


def _head(row: Row) -> str:
    return f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n"


@cache
def _packed_head(row: Row) -> Piece:
    return gzip_stream.compress(_head(row).encode())


def _lines(row: Row, samples: Iterable[Sample]) -> str:
    return "".join(
        f"{row.name}{{{_pairs(row.labels, labels)}}} {floatToGoString(value)}\n" for labels, value in samples
    )


@cache
def _template_of(row: ImageRow) -> Callable[[Any], tuple[str, ...]]:
    """A function from an image's fact to the text around its own labels: `labels.join(template)` is lines."""
    start = f"{row.name}{{"
    rest = row.labels[len(I) :]

    def template(fact: Any) -> tuple[str, ...]:
        ends = [
            f"{',' + _pairs(rest, labels) if rest else ''}}} {floatToGoString(value)}\n"
            for labels, value in row.samples(fact)
        ]
        return (start, *(end + start for end in ends[:-1]), ends[-1]) if ends else ()

    return lru_cache(_TEMPLATES)(template) if row.shared else template


# -- blocks --------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Images of one repository: all of them, or those in one block."""

    source: Source
    repository: str
    images: tuple[ImageFacts, ...]


def _image_blocks(registries: Iterable[RegistrySnapshot], size: int) -> Iterator[tuple[_Group, ...]]:
    """All images in order, in blocks of at least `size` and a quarter more on average.

    Blocks cross repositories. A digest's hash decides whether a block ends there, so an image that comes
    or goes moves only the boundaries near it.
    """
    block: list[_Group] = []
    room = size
    for registry in registries:
        for repository, images in registry.repositories:
            start = 0
            for end, image in enumerate(images, 1):
                room -= 1
                if room <= 0 and not hash(image.digest) % (size // 4):
                    yield (*block, _Group(registry.source, repository, images[start:end]))
                    block, room, start = [], size, end
            if start < len(images):
                block.append(_Group(registry.source, repository, images[start:]))
    if block:
        yield tuple(block)


def _repository_blocks(registries: Iterable[RegistrySnapshot]) -> Iterator[tuple[_Group, ...]]:
    """All repositories in order, in blocks of small ones. A large repository ends its block."""
    block: list[_Group] = []
    for registry in registries:
        for repository, images in registry.repositories:
            block.append(_Group(registry.source, repository, images))
            if len(images) > 64 or (len(block) >= _MANY_LINES and not hash(repository) % (_MANY_LINES // 4)):
                yield tuple(block)
                block = []
    if block:
        yield tuple(block)


@dataclass(slots=True)
class _Block:
    """Facts that are rendered together, and the text of rows about them as far as it was asked for."""

    groups: tuple[_Group, ...]
    plain: dict[str, bytes] = field(default_factory=dict)
    packed: dict[str, Piece] = field(default_factory=dict)

    def render(self, rows: Iterable[Row], *, packed: bool) -> None:
        """Have the text of the rows, all of images or all of repositories."""
        kept: dict[str, Any] = self.packed if packed else self.plain
        missing = [row for row in rows if row.name not in kept]
        for row, text in zip(missing, _rendered(missing, self.groups), strict=True):
            kept[row.name] = gzip_stream.compress(text.encode()) if packed else text.encode()

    def with_facts(self, groups: tuple[_Group, ...]) -> _Block:
        """The block with newer facts. It keeps the text of rows that they do not change."""
        if self.groups == groups:
            self.groups = groups  # Equal facts; the older objects are released.
            return self
        same = _unaffected(self.groups, groups)
        # Another thread may add text meanwhile, hence the copies.
        plain = {name: text for name, text in self.plain.copy().items() if name in same}
        return _Block(
            groups, plain, {name: text for name, text in self.packed.copy().items() if name in same}
        )


def _rendered(rows: Sequence[Row], groups: Sequence[_Group]) -> Iterator[str]:
    """The lines of each row."""
    image_rows = [row for row in rows if isinstance(row, ImageRow)]
    digests = any(row.digest for row in image_rows)
    named = list(_named_images(groups, digests=digests)) if image_rows else []
    for row in rows:
        if isinstance(row, ImageRow):
            template, fact = _template_of(row), row.fact
            yield "".join(
                [(full if row.digest else own).join(template(fact(image))) for image, own, full in named]
            )
        elif isinstance(row, RepositoryRow):
            yield "".join(_lines(row, row.samples(*group)) for group in groups)


def _named_images(groups: Iterable[_Group], *, digests: bool) -> Iterator[tuple[ImageFacts, str, str]]:
    """Each name of each image: the facts, the text of the labels I, and, with `digests`, the same with the
    image's digest.
    """
    for source, repository, images in groups:
        before, after = f'{_pairs(I[:1], (repository,))},tag="', f'",{_pairs(S, source)}'
        for image in images:
            digest = _escaped(image.digest) if digests else ""
            for name in image.names:
                start = f'{before}{_escaped(name.tag)}",digest="'
                own = f"{start}{_escaped(name.digest)}{after}" if name.digest else f"{start}{after}"
                yield image, own, f"{start}{digest}{after}" if digests else own


def _unaffected(old: Sequence[_Group], new: Sequence[_Group]) -> set[str]:
    """The names of the image rows that say the same of both."""
    if [(*group[:2], len(group.images)) for group in old] != [(*g[:2], len(g.images)) for g in new]:
        return set()
    changed = [
        (was, now)
        for before, after in zip(old, new, strict=True)
        for was, now in zip(before.images, after.images, strict=True)
        if was is not now
    ]
    if any(was.digest != now.digest or was.names != now.names for was, now in changed):
        return set()
    return {row.name for row in _IMAGE_ROWS if all(row.fact(was) == row.fact(now) for was, now in changed)}


_Key = tuple[Source, str, str]


def _updated(known: dict[_Key, _Block], blocks: Iterable[tuple[_Group, ...]]) -> dict[_Key, _Block]:
    """A block for each of the given facts: the known one that begins with the same image, or a new one."""
    updated = {}
    for groups in blocks:
        source, repository, images = groups[0]
        key = (source, repository, images[0].digest if images else "")
        block = known.get(key)
        updated[key] = block.with_facts(groups) if block else _Block(groups)
    return updated


# -- pages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a scrape: a body in pieces, which other answers may share, and headers."""

    body: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...]

    def whole(self) -> bytes:
        """A copy of the body in one piece."""
        return b"".join(self.body)


@dataclass(frozen=True, slots=True)
class _Large:
    """The image and repository rows of one version of the facts; compressed they are one piece."""

    version: int
    good_until: float
    pieces: tuple[Any, ...]


_IMAGE_ROWS = tuple(row for row in DOMAIN if isinstance(row, ImageRow))
_SMALL = tuple(row for row in DOMAIN if isinstance(row, RegistryRow))
#: Rows whose text stands in blocks of the same layout. A page has them in this order.
_KINDS: tuple[tuple[Row, ...], ...] = (
    tuple(row for row in _IMAGE_ROWS if len(row.labels) > len(I)),
    tuple(row for row in _IMAGE_ROWS if len(row.labels) == len(I)),
    tuple(row for row in DOMAIN if isinstance(row, RepositoryRow)),
)
_LARGE = tuple(row for kind in _KINDS for row in kind)
_NOTHING = _Large(-1, 0.0, ())


class Exposition:
    """Renders /metrics. Safe to call from any thread; never calls AWS.

    The text about images is large and seldom changes, so it is kept. The rest is rendered every time.
    """

    def __init__(self, *, instruments: Instruments, store: Store, figures: Figures, clock: Clock) -> None:
        self._own = instruments.registry
        self._own.register(Gauges(store, figures, clock))
        self._store = store
        self._clock = clock
        #: One thread renders; the others wait and find the text.
        self._lock = threading.Lock()
        #: The blocks of each kind of rows, in the order of the page.
        self._blocks: list[dict[_Key, _Block]] = [{} for _ in _KINDS]
        #: The last page, plain and compressed.
        self._last = {False: _NOTHING, True: _NOTHING}
        #: Monotonic time of the last request for plain text; 0 if none is kept.
        self._plain_at = 0.0

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        """The page in the best accepted format.

        `names` selects families and samples by name; empty selects everything.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if accepts_openmetrics(accept) else "")
        packed = accepts_gzip(accept_encoding)
        large = self._some(names, packed=packed) if names else self._all(packed=packed)
        registries = self._store.snapshot(self._clock.monotonic(), images=False).registries
        own: Any = _Selected(self._own, frozenset(names)) if names else self._own
        small = "".join(_registry_lines(registries, names)).encode() + encode(own)
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        else:
            self._plain_at = self._clock.monotonic()
        body = gzip_stream.member(*large, gzip_stream.compress(small)) if packed else (*large, small)
        return Page(body, tuple(headers))

    def refresh(self) -> None:
        """Render the compressed page ahead of the next scrape, and drop plain text that is not asked for.

        Rendering happens outside the lock, so that no scrape waits for it: two threads that render the
        same facts get the same text.
        """
        if not self._current(self._last[True]):
            with self._lock:
                self._update()
                kinds = [list(blocks.values()) for blocks in self._blocks]
            for rows, blocks in zip(_KINDS, kinds, strict=True):
                for block in blocks:
                    block.render(rows, packed=True)
            self._all(packed=True)
        with self._lock:
            if self._plain_at and self._clock.monotonic() > self._plain_at + _PLAIN_KEPT:
                self._plain_at = 0.0
                self._last[False] = _NOTHING
                for kept in self._blocks:
                    for block in kept.values():
                        block.plain.clear()

    def _all(self, *, packed: bool) -> tuple[Any, ...]:
        last = self._last[packed]
        if self._current(last):
            return last.pieces
        with self._lock:
            last = self._last[packed]
            if not self._current(last):
                snapshot = self._update()
                pieces = self._pieces(_LARGE, packed=packed)
                last = self._last[packed] = _Large(snapshot.version, snapshot.good_until, pieces)
            return last.pieces

    def _current(self, page: _Large) -> bool:
        return page.version == self._store.version and self._clock.monotonic() <= page.good_until

    def _some(self, names: Sequence[str], *, packed: bool) -> tuple[Any, ...]:
        rows = _chosen(_LARGE, names)
        if not rows:
            return ()
        with self._lock:
            self._update()
            return self._pieces(rows, packed=packed)

    def _update(self) -> Snapshot:
        snapshot = self._store.snapshot(self._clock.monotonic())
        registries = snapshot.registries
        # If an exception ends this half-way, the next call renders everything.
        known, self._blocks = self._blocks, [{} for _ in _KINDS]
        layouts = (
            _image_blocks(registries, _MANY_LINES),
            _image_blocks(registries, _ONE_LINE),
            _repository_blocks(registries),
        )
        self._blocks = [_updated(*each) for each in zip(known, layouts, strict=True)]
        return snapshot

    def _pieces(self, rows: Sequence[Row], *, packed: bool) -> tuple[Any, ...]:
        """The text of the rows, rendered where it is not kept. The caller holds the lock."""
        found: list[Any] = []
        for kind, blocks in zip(_KINDS, self._blocks, strict=True):
            mine = [row for row in kind if row in rows]
            for block in blocks.values():
                block.render(mine, packed=packed)
            for row in mine:
                found.append(_packed_head(row) if packed else _head(row).encode())
                found += [(block.packed if packed else block.plain)[row.name] for block in blocks.values()]
        return (gzip_stream.join(found),) if packed else tuple(found)


class _Selected:
    """The families of a registry whose name, or the name of one of whose samples, is asked for."""

    def __init__(self, registry: CollectorRegistry, names: frozenset[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """Whole families by their names, and the rest with only the samples that are named."""
        for family in self._registry.collect():
            if family.name not in self._names:
                family.samples = [sample for sample in family.samples if sample.name in self._names]
            if family.samples:
                yield family


def _registry_lines(registries: Iterable[RegistrySnapshot], names: Sequence[str]) -> Iterator[str]:
    for row in _chosen(_SMALL, names):
        yield _head(row)
        for registry in registries:
            yield _lines(row, row.samples(registry))


def _chosen(rows: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    return [row for row in rows if not names or row.name in names]


def _weights(accepted: str) -> dict[str, float]:
    """The weight of each item of a header such as Accept (RFC 9110); 0 refuses it."""
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
    """Whether the client accepts OpenMetrics 1.0.0 and does not prefer text 0.0.4.

    prometheus_client ignores weights and raises ValueError for a version that is not a number.
    """
    weights = _weights(accept)
    wanted = max(weights.get(_OPENMETRICS, 0.0), weights.get(f"{_OPENMETRICS};1.0.0", 0.0))
    plain = (weights.get(name, 0.0) for name in ("text/plain", "text/plain;0.0.4", "text/*", "*/*"))
    return wanted > 0.0 and wanted >= max(plain)


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether to compress the body (RFC 9110): the greater weight wins, and gzip wins a tie.

    `*` stands for each encoding that is not listed. An absent identity never outweighs gzip.
    """
    weights = _weights(accept_encoding)
    other = weights.get("*", 0.0)
    gzip = weights.get("gzip", weights.get("x-gzip", other))
    return gzip > 0.0 and gzip >= weights.get("identity", other)
