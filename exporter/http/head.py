"""The head of an HTTP/1 request: read by the standard library, and then judged strictly.

What a proxy in front could read in another way than this is refused rather than guessed at: folded
lines, lines without a colon, bare carriage returns, two lengths, two hosts.
"""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlsplit

from exporter.http.routes import Request, Response, text

_BAD = text(400, "This is not a request.")
_HOSTS = text(400, "A request of HTTP/1.1 has one Host header.")


class UnreadableError(Exception):
    """A request that cannot be read, and what to say before the connection is closed."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Head(BaseHTTPRequestHandler):
    """The standard library's reading of a request's head, without its socket. Raises UnreadableError."""

    protocol_version = "HTTP/1.1"

    def __init__(self, head: bytes) -> None:
        self.rfile = BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        if not self.parse_request() or self.request_version == "HTTP/0.9" or self._is_ambiguous(head):
            raise UnreadableError(_BAD)
        hosts = len(self.headers.get_all("Host", ()))
        if hosts > 1 or (hosts == 0 and self.request_version == "HTTP/1.1"):
            raise UnreadableError(_HOSTS)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        raise UnreadableError(text(code, explain or message or HTTPStatus(code).phrase))

    def handle_expect_100(self) -> bool:
        """Nobody is asked to go on: no body is of interest."""
        return True

    def _is_ambiguous(self, head: bytes) -> bool:
        stray = b"\0" in head or b"\r" in head.replace(b"\r\n", b"\n")
        # A folded line has its line end in the value.
        folded = any("\n" in value for value in self.headers.values())
        return bool(stray or folded or self.headers.defects)

    def is_last(self) -> bool:
        """Whether the client wants the connection to end with the answer."""
        options = ",".join(self.headers.get_all("Connection", ())).lower().split(",")
        close = "close" in (option.strip() for option in options)
        return close or self.close_connection or self.request_version != "HTTP/1.1"

    def request(self) -> Request:
        """What is asked, decoded."""
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=100)
        except ValueError as error:
            raise UnreadableError(_BAD) from error
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            known = headers.get(name.lower())
            headers[name.lower()] = value if known is None else f"{known}, {value}"
        return Request(self.command, unquote(parts.path), query, headers)

    def body_length(self) -> int | None:
        """How many bytes follow; None if that cannot be told, or they wait to be asked for."""
        lengths = set(self.headers.get_all("Content-Length", ["0"]))
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise UnreadableError(_BAD)
        unknown = "Transfer-Encoding" in self.headers or "Expect" in self.headers
        return None if unknown or len(length) > 9 else int(length)


def head_length(received: bytes, looked_at: int) -> int:
    """Where the empty line ends that ends the head; 0 if it has not come."""
    marks = (b"\n\r\n", b"\n\n")
    return min((at + len(m) for m in marks if (at := received.find(m, looked_at)) >= 0), default=0)
