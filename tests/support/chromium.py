"""Chromium without a window, and without its own traffic to the internet."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.command import PATIENCE

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--enable-logging=stderr",
)


class Visit(NamedTuple):
    """A page as Chromium has it: the document after loading, and what it wrote to the console."""

    document: str
    console: list[str]


def visit(chromium: str, url: str, profile: Path, *flags: str) -> Visit:
    """Load a page. `chromium` is the path of the program, `profile` that of an empty folder."""
    done = subprocess.run(
        [chromium, *_FLAGS, "--dump-dom", f"--user-data-dir={profile}", *flags, url],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@contextmanager
def showing(chromium: str, url: str, profile: Path) -> Iterator[None]:
    """Keep a page open meanwhile."""
    command = [chromium, *_FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
