"""A crowd of hostile HTTP clients, in a process of its own: `python tests/hostile.py HOST PORT [--tls]`.

It says "here" on stdout when the slow ones have connected once, and goes on until it is killed. Every
one that is thrown out comes back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import ssl
import subprocess
import sys
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

#: Connections that send a byte of a head every second or two, and how many of each other kind.
SLOW = 500
OTHERS = 4
STALLED = 60
#: Seconds until one that was thrown out is back: a slow one, and one of each other kind.
AWAY = (1.0, 0.1)
#: So many times as long with TLS, because a handshake costs the crowd as much as the server, and they
#: may share a machine.
TLS = 5

Client = Callable[[Reader, Writer], Awaitable[None]]

_GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"


async def slow(_: Reader, writer: Writer) -> None:
    """A head that comes byte by byte."""
    writer.write(_GET + b"X: ")
    await _for_ever(writer, b"a", pause=1.5)


async def slow_handshake(_: Reader, writer: Writer) -> None:
    """The same beneath TLS."""
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
    await _for_ever(writer, b"\x01", pause=1.5)


async def endless_headers(_: Reader, writer: Writer) -> None:
    writer.write(_GET)
    await _for_ever(writer, b"X-Header: value\r\n" * 200, pause=0.02)


async def endless_target(_: Reader, writer: Writer) -> None:
    writer.write(b"GET /")
    await _for_ever(writer, b"a" * 4096, pause=0.02)


async def huge_body(_: Reader, writer: Writer) -> None:
    writer.write(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
    await _for_ever(writer, b"a" * 65536, pause=0.02)


async def endless_chunks(_: Reader, writer: Writer) -> None:
    writer.write(b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _for_ever(writer, b"1000\r\n" + b"a" * 4096 + b"\r\n", pause=0.02)


async def garbage(reader: Reader, writer: Writer) -> None:
    """What begins like a TLS handshake and is none."""
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(512))
    await reader.read()


async def aborted_download(reader: Reader, writer: Writer) -> None:
    writer.write(_GET + b"\r\n")
    await reader.read(1024)
    writer.transport.abort()


async def stalled_download(_: Reader, writer: Writer) -> None:
    """Asks so often that no buffer holds the answers, and takes none of them."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write((_GET + b"\r\n") * 1000)
    await _for_ever(writer, b"", pause=1.0)


async def _for_ever(writer: Writer, data: bytes, *, pause: float) -> None:
    while not writer.is_closing():
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause)


_KINDS: tuple[Client, ...] = (
    endless_headers,
    endless_target,
    huge_body,
    endless_chunks,
    garbage,
    aborted_download,
)
_SLOW: tuple[Client, ...] = (slow, slow_handshake)
#: These speak beneath TLS.
_RAW: tuple[Client, ...] = (slow_handshake, garbage)


async def _crowd(host: str, port: int, *, tls: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connected = itertools.count(1)

    async def once(client: Client) -> None:
        secure = context if tls and client not in _RAW else None
        reader, writer = await asyncio.open_connection(host, port, ssl=secure)
        try:
            if client in _SLOW and next(connected) == SLOW:
                sys.stdout.write("here\n")
                sys.stdout.flush()
            await client(reader, writer)
        finally:
            writer.transport.abort()

    async def again_and_again(client: Client) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
                await once(client)
            await asyncio.sleep(AWAY[client not in _SLOW] * (TLS if tls else 1))

    others = [kind for kind in _KINDS for _ in range(OTHERS)]
    everybody = [_SLOW[tls]] * SLOW + [stalled_download] * STALLED + others
    await asyncio.gather(*map(again_and_again, everybody))


@contextmanager
def crowd(host: str, port: int, *, tls: bool = False) -> Iterator[None]:
    """Let it loose on the server, until the end of the block."""
    command = [sys.executable, __file__, host, str(port), *(["--tls"] if tls else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "here\n"
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(_crowd(arguments.host, arguments.port, tls=arguments.tls))
