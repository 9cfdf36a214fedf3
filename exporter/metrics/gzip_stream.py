"""One gzip member (RFC 1952) out of pieces that are compressed separately and kept.

Measured on 10,000 images in 418 pieces (28.6 MB of text): zlib-ng 1.1.0 at level 2 makes 766 KB. Level 3
makes 734 KB in 1.4 times the time. isal 1.9.1 at level 1 makes 777 KB in 0.8 of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from zlib_ng import zlib_ng

_LEVEL = 2
#: No file name, no time, unknown operating system.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
#: An empty last block with fixed codes (RFC 1951).
_END = b"\x03\x00"


class Piece(NamedTuple):
    """Raw deflate that ends at a byte boundary and is not the last block; CRC-32 and bytes of its text."""

    deflate: bytes = b""
    crc: int = 0
    size: int = 0


def compress(text: bytes) -> Piece:
    """Compress text on its own: the piece refers to no text before it."""
    if not text:
        return Piece()
    compressor = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, -zlib_ng.MAX_WBITS)
    deflate = compressor.compress(text) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)
    return Piece(deflate, zlib_ng.crc32(text), len(text))


class Joined(NamedTuple):
    """Pieces in order, which are not copied; CRC-32 and bytes of their text."""

    deflates: tuple[bytes, ...]
    crc: int
    size: int


def join(pieces: Iterable[Piece]) -> Joined:
    """The texts in order."""
    deflates, crc, size = [], 0, 0
    for piece in pieces:
        deflates.append(piece.deflate)
        crc = zlib_ng.crc32_combine(crc, piece.crc, piece.size)
        size += piece.size
    return Joined(tuple(deflates), crc, size)


def member(*parts: Piece | Joined) -> tuple[bytes, ...]:
    """A whole gzip stream with the texts in order, as parts to send one after the other."""
    deflates, crc, size = [_HEADER], 0, 0
    for part in parts:
        deflates += part.deflates if isinstance(part, Joined) else [part.deflate]
        crc = zlib_ng.crc32_combine(crc, part.crc, part.size)
        size += part.size
    trailer = crc.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return (*filter(None, deflates), _END + trailer)
