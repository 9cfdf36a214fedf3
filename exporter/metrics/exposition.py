"""What a scrape gets: the catalogue's rows as text, in one of two formats, plain or as one gzip stream.

The rows about images and repositories are large and seldom change, so `blocks` keeps their text. The other
rows are rendered at each scrape. A test compares the page with that of prometheus_client.

Text 0.0.4 and OpenMetrics 1.0 write gauges in the same way, so one rendering serves both.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from exporter.metrics import gzip_stream
from exporter.metrics.blocks import (
    IMAGE_ROWS,
    MANY_LINES,
    ONE_LINE,
    Block,
    Key,
    heading,
    image_blocks,
    lines,
    repository_blocks,
    updated,
)
from exporter.metrics.catalogue import DOMAIN, DestinationRow, I, RegistryRow, RepositoryRow, Row
from exporter.metrics.self_metrics import Clock, Figures, Gauges, Instruments
from exporter.replication.store import Snapshot, Store

#: Seconds for which plain text is kept after the last request for it. It takes forty times the memory of
#: compressed text, which is what Prometheus asks for.
_PLAIN_KEPT = 600.0
_OPENMETRICS = "application/openmetrics-text"


@cache
def _heading(row: Row, *, packed: bool) -> Any:
    text = heading(row).encode()
    return gzip_stream.compress(text) if packed else text


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


_SMALL = tuple(row for row in DOMAIN if isinstance(row, RegistryRow | DestinationRow))
#: Rows whose text stands in blocks of the same layout. A page has them in this order.
_KINDS: tuple[tuple[Row, ...], ...] = (
    tuple(row for row in IMAGE_ROWS if len(row.labels) > len(I)),
    tuple(row for row in IMAGE_ROWS if len(row.labels) == len(I)),
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
        self._blocks: list[dict[Key, Block]] = [{} for _ in _KINDS]
        #: The last page, plain and compressed.
        self._last = {False: _NOTHING, True: _NOTHING}
        #: Monotonic time of the last request for plain text; 0 if none is kept.
        self._plain_at = 0.0
        #: The last page, what was asked for, and the monotonic time at which its rendering began.
        self._made: tuple[Page, Any, float] | None = None

    def page(
        self, *, accept: str, accept_encoding: str, names: Sequence[str], asked_at: float = float("inf")
    ) -> Page:
        """The page in the best accepted format.

        `names` selects families and samples by name; empty selects everything. `asked_at` is the monotonic
        time of the request. Equal requests that came before a page was begun share it, so that a crowd that
        waits for one another is served at once.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if accepts_openmetrics(accept) else "")
        packed = accepts_gzip(accept_encoding)
        wanted, began = (content_type, packed, tuple(names)), self._clock.monotonic()
        if (made := self._made) and made[1] == wanted and made[2] >= asked_at:
            return made[0]
        large, snapshot = self._some(names, packed=packed) if names else self._all(packed=packed)
        snapshot = snapshot or self._store.snapshot(self._clock.monotonic(), images=False)
        own: Any = _Selected(self._own, frozenset(names)) if names else self._own
        small = "".join(_registry_lines(snapshot, names)).encode() + encode(own)
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        else:
            self._plain_at = self._clock.monotonic()
        body = gzip_stream.member(*large, gzip_stream.compress(small)) if packed else (*large, small)
        page = Page(body, tuple(headers))
        self._made = page, wanted, began
        return page

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
                self._made = None
                self._last[False] = _NOTHING
                for kept in self._blocks:
                    for block in kept.values():
                        block.plain.clear()

    def _all(self, *, packed: bool) -> tuple[tuple[Any, ...], Snapshot | None]:
        """The text of all rows about images and repositories; the snapshot if one was taken for it."""
        last = self._last[packed]
        if self._current(last):
            return last.pieces, None
        with self._lock:
            last = self._last[packed]
            if self._current(last):
                return last.pieces, None
            snapshot = self._update()
            pieces = self._pieces(_LARGE, packed=packed)
            self._last[packed] = _Large(snapshot.version, snapshot.good_until, pieces)
            return pieces, snapshot

    def _current(self, page: _Large) -> bool:
        return page.version == self._store.version and self._clock.monotonic() <= page.good_until

    def _some(self, names: Sequence[str], *, packed: bool) -> tuple[tuple[Any, ...], Snapshot | None]:
        rows = _chosen(_LARGE, names)
        if not rows:
            return (), None
        with self._lock:
            snapshot = self._update()
            return self._pieces(rows, packed=packed), snapshot

    def _update(self) -> Snapshot:
        snapshot = self._store.snapshot(self._clock.monotonic())
        registries = snapshot.registries
        # If an exception ends this half-way, the next call renders everything.
        known, self._blocks = self._blocks, [{} for _ in _KINDS]
        layouts = (
            image_blocks(registries, MANY_LINES),
            image_blocks(registries, ONE_LINE),
            repository_blocks(registries),
        )
        self._blocks = [updated(*each) for each in zip(known, layouts, strict=True)]
        return snapshot

    def _pieces(self, rows: Sequence[Row], *, packed: bool) -> tuple[Any, ...]:
        """The text of the rows, rendered where it is not kept. The caller holds the lock."""
        found: list[Any] = []
        for kind, blocks in zip(_KINDS, self._blocks, strict=True):
            mine = [row for row in kind if row in rows]
            for block in blocks.values():
                block.render(mine, packed=packed)
            for row in mine:
                found.append(_heading(row, packed=packed))
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


def _registry_lines(snapshot: Snapshot, names: Sequence[str]) -> Iterator[str]:
    for row in _chosen(_SMALL, names):
        yield heading(row)
        facts = snapshot.destinations if isinstance(row, DestinationRow) else snapshot.registries
        for each in facts:
            yield lines(row, row.samples(each))


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
