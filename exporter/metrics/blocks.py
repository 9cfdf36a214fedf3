"""The text of rows about images and repositories, kept in blocks until the facts of a block change.

The labels of an image are rendered once for all its lines. What follows them depends on few facts and is
cached. A block keeps its text, plain and compressed. Block ends depend on names, not on positions, so an
image that comes or goes changes the block that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from zlib import crc32

from prometheus_client.utils import floatToGoString

from exporter.metrics import gzip_stream
from exporter.metrics.catalogue import DOMAIN, Group, I, ImageRow, RepositoryRow, Row, S, Sample, alike
from exporter.metrics.gzip_stream import Piece
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Source
from exporter.replication.store import RegistrySnapshot

#: Cached templates; a fleet has a few dozen combinations of states.
_TEMPLATES = 4096
#: The fewest images of a block, on average a quarter more: of rows with a line for each state
#: and destination, and of rows with one line. Small blocks compress worse; in large ones, an image that
#: changes costs the rendering of many.
MANY_LINES, ONE_LINE = 26, 256

IMAGE_ROWS = tuple(row for row in DOMAIN if isinstance(row, ImageRow))
_ROW_OF = {row.name: row for row in IMAGE_ROWS}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


#: For values that many lines share, such as Regions.
_shared_escaped = lru_cache(maxsize=4096)(_escaped)


def _number(value: float) -> str:
    """The shortest text that reads as the value. Go's notation costs more, and only infinities need it."""
    text = repr(value)
    return text if text[-1].isdigit() else str(floatToGoString(value))


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(
        [f'{label}="{_shared_escaped(value)}"' for label, value in zip(labels, values, strict=True)]
    )


def heading(row: Row) -> str:
    """The HELP and TYPE lines of a row."""
    return f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n"


def lines(row: Row, samples: Iterable[Sample]) -> str:
    """One line for each sample."""
    return "".join(
        [f"{row.name}{{{_pairs(row.labels, labels)}}} {_number(value)}\n" for labels, value in samples]
    )


#: An image under one of its names: the facts, the labels I as text, the same with the image's digest, and
#: the position of the name.
_Named = tuple[ImageFacts, str, str, int]


def _values(row: ImageRow, value_of: Callable[[ImageFacts], float | None], named: Sequence[_Named]) -> bytes:
    """The lines of a row without further labels."""
    return "".join(
        [
            f"{row.name}{{{full if row.digest else own}}} {_number(value)}\n"
            for image, own, full, _ in named
            if (value := value_of(image)) is not None
        ]
    ).encode()


@lru_cache(maxsize=_TEMPLATES)
def _template(name: str, fact: Any) -> tuple[bytes, ...]:
    """The text around an image's own labels in the row of that name: `labels.join(template)` is its lines."""
    row = _ROW_OF[name]
    start, rest = f"{row.name}{{", row.labels[len(I) :]
    ends = [f",{_pairs(rest, labels)}}} {_number(value)}\n" for labels, value in row.samples(fact)]
    texts = (start, *(end + start for end in ends[:-1]), ends[-1]) if ends else ()
    return tuple(text.encode() for text in texts)


def _states(row: ImageRow, named: Sequence[_Named]) -> bytes:
    """The lines of a row with further labels. Most images of a block hold the same object as their fact."""
    fact_of = row.fact
    seen: dict[int, tuple[bytes, ...]] = {}
    texts = []
    for image, own, full, position in named:
        fact = fact_of(image)
        if row.by_name and fact:
            fact = fact[position]
        template = seen.get(id(fact))
        if template is None:
            template = seen[id(fact)] = _template(row.name, fact)
        if template:
            texts.append((full if row.digest else own).encode().join(template))
    return b"".join(texts)


def _ends(name: str, one_in: int) -> bool:
    """Whether a block ends after that name. The same at each start, unlike `hash`, which is salted."""
    return not crc32(name.encode()) % one_in


def image_blocks(registries: Iterable[RegistrySnapshot], size: int) -> Iterator[tuple[Group, ...]]:
    """Images with series of their own, in order, in blocks of at least `size` and a quarter more on average.

    Blocks cross repositories. A digest's checksum decides whether a block ends there, so an image that comes
    or goes moves only the boundaries near it.
    """
    block: list[Group] = []
    room = size
    for registry in registries:
        for repository, images in registry.shown:
            start = 0
            for end, image in enumerate(images, 1):
                room -= 1
                if room <= 0 and _ends(image.digest, size // 4):
                    yield (*block, Group(registry.source, repository, images[start:end]))
                    block, room, start = [], size, end
            if start < len(images):
                block.append(Group(registry.source, repository, images[start:]))
    if block:
        yield tuple(block)


def repository_blocks(registries: Iterable[RegistrySnapshot]) -> Iterator[tuple[Group, ...]]:
    """All repositories in order, in blocks of small ones. A large repository ends its block."""
    block: list[Group] = []
    for registry in registries:
        for repository, images in registry.repositories:
            block.append(Group.whole(registry, repository, images))
            if len(images) > 64 or (len(block) >= MANY_LINES and _ends(repository, MANY_LINES // 4)):
                yield tuple(block)
                block = []
    if block:
        yield tuple(block)


@dataclass(slots=True)
class Block:
    """Facts that are rendered together, and the text of rows about them as far as it was asked for."""

    groups: tuple[Group, ...]
    plain: dict[str, bytes] = field(default_factory=dict)
    packed: dict[str, Piece] = field(default_factory=dict)

    def render(self, rows: Iterable[Row], *, packed: bool) -> None:
        """Have the text of the rows, all of images or all of repositories."""
        kept: dict[str, Any] = self.packed if packed else self.plain
        missing = [row for row in rows if row.name not in kept]
        for row, text in zip(missing, _rendered(missing, self.groups), strict=True):
            kept[row.name] = gzip_stream.compress(text) if packed else text

    def with_facts(self, groups: tuple[Group, ...]) -> Block:
        """The block with newer facts. It keeps the text of rows that they do not change."""
        if self.groups == groups:
            self.groups = groups  # Equal facts; the older objects are released.
            return self
        same = _unaffected(self.groups, groups)
        # Another thread may add text meanwhile, hence the copies.
        plain = {name: text for name, text in self.plain.copy().items() if name in same}
        return Block(groups, plain, {name: text for name, text in self.packed.copy().items() if name in same})


def _rendered(rows: Sequence[Row], groups: Sequence[Group]) -> Iterator[bytes]:
    """The lines of each row. They are all of images or all of repositories."""
    image_rows = [row for row in rows if isinstance(row, ImageRow)]
    repositories = [] if image_rows else [(group, alike(group.images)) for group in groups if rows]
    digests = any(row.digest for row in image_rows)
    named = list(_named_images(groups, digests=digests)) if image_rows else []
    for row in rows:
        if isinstance(row, ImageRow):
            yield _values(row, row.value, named) if row.value else _states(row, named)
        elif isinstance(row, RepositoryRow):
            yield "".join([lines(row, row.samples(*each)) for each in repositories]).encode()


def _named_images(groups: Iterable[Group], *, digests: bool) -> Iterator[_Named]:
    """Each name of each image: the facts, the text of the labels I, and, with `digests`, the same with the
    image's digest.
    """
    for source, repository, images, *_ in groups:
        before, after = f'{_pairs(I[:1], (repository,))},tag="', f'",{_pairs(S, source)}'
        for image in images:
            digest = _escaped(image.digest) if digests else ""
            for position, name in enumerate(image.names):
                start = f'{before}{_escaped(name.tag)}",digest="'
                own = f"{start}{_escaped(name.digest)}{after}" if name.digest else f"{start}{after}"
                yield image, own, f"{start}{digest}{after}" if digests else own, position


def _unaffected(old: Sequence[Group], new: Sequence[Group]) -> set[str]:
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
    return {
        row.name
        for row in IMAGE_ROWS
        if all(row.depends_on(was) == row.depends_on(now) for was, now in changed)
    }


Key = tuple[Source, str, str]


def updated(known: dict[Key, Block], blocks: Iterable[tuple[Group, ...]]) -> dict[Key, Block]:
    """A block for each of the given facts: the known one that begins with the same image, or a new one."""
    updated = {}
    for groups in blocks:
        source, repository, images, *_ = groups[0]
        key = (source, repository, images[0].digest if images else "")
        block = known.get(key)
        updated[key] = block.with_facts(groups) if block else Block(groups)
    return updated
