"""Reads requests strictly: what a proxy in front could read in another way is refused."""

from __future__ import annotations

import io
from email.message import Message
from http.client import LineTooLong
from urllib.parse import parse_qs, unquote, urlsplit

from exporter.http.routes import Request

#: Bytes of the longest request line with its headers, and of the longest body.
HEAD, BODY = 16 * 1024, 64 * 1024


class HeadReader(io.BufferedReader):
    """Reads a request's head line by line, within HEAD, and looks at each line as it came."""

    def request_line(self) -> bytes:
        """Raises as `readline`."""
        self._left, self.ambiguous = HEAD, False
        while (line := self.readline()) in (b"\r\n", b"\n"):
            pass  # some clients end a body with one line end too many
        return line

    def readline(self, _size: int | None = -1, /) -> bytes:
        """Raises LineTooLong for a head that is too long, OSError for one that has no end."""
        line = super().readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client left in the middle of a request")
        stray = b"\0" in line or b"\r" in line[:-1].removesuffix(b"\r")
        self.ambiguous |= stray or line.startswith((b" ", b"\t"))  # a folded line
        return line

    def skip(self, length: int) -> None:
        """Read a body. Raises OSError if it has no end."""
        if len(self.read(length)) < length:
            raise ConnectionAbortedError("the client left in the middle of a request")


def read_request(method: str, target: str, version: str, head: Message) -> Request:
    """What is asked. Raises ValueError, as a sentence for the client, if that is not clear."""
    hosts = len(head.get_all("Host", ()))
    if head.defects or version == "HTTP/0.9":
        raise ValueError("This is not a request of HTTP/1.")
    if hosts > 1 or (hosts == 0 and version != "HTTP/1.0"):
        raise ValueError("A request of HTTP/1.1 has one Host header.")
    headers: dict[str, str] = {}
    for name, value in head.items():
        known = headers.get(name.lower())
        headers[name.lower()] = value if known is None else f"{known}, {value}"
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True, max_num_fields=100)
    return Request(method, unquote(url.path), query, headers)


def body_length(request: Request) -> int | None:
    """Bytes of the body; None if it is too long to read, of unknown length, or waits to be asked for.

    Raises ValueError for a length that is no number; two lengths are none either.
    """
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise ValueError("A request has one length at most, in digits.")
    unknown = {"transfer-encoding", "expect"} & request.headers.keys()
    return None if unknown or len(length) > 9 or int(length) > BODY else int(length)


def is_last(request: Request, version: str) -> bool:
    """Whether the client closes the connection after the answer."""
    options = request.headers.get("connection", "").lower().split(",")
    return version != "HTTP/1.1" or "close" in (option.strip() for option in options)
