"""Scrapes beside a hostile crowd, here and in another checkout, in one run.

Run it with `make bench-hostile ARGS="--baseline DIR"`. DIR is a checkout of this project with its own
`.venv`. The crowd and the scrapes share the machine with the server, so compare the two checkouts.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polling
import servers
from support import hostile

HERE = Path(__file__).parent.parent
#: Seconds for which scrapes are counted after the crowd began, between two of them, and of its arrival.
FOR, PAUSE, ARRIVAL = 20.0, 0.1, 8.0


@contextmanager
def running(checkout: Path, folder: Path, *, tls: bool) -> Iterator[tuple[str, int]]:
    """The address and the process id of the demo of a checkout, HTTPS with `tls`."""
    log = folder / "log"
    web = [f"--web.config.file={servers.certificate(folder)}"] if tls else []
    command = [str(checkout / ".venv/bin/python"), "-m", "exporter", "--demo", *web]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--web.listen-address=127.0.0.1:0"], stderr=stderr, env=os.environ, cwd=checkout
        )
    try:
        found = polling.eventually(lambda: re.search(r"addresses=(\S+)", log.read_text()), every=0.02)
        yield f"{'https' if tls else 'http'}://{found[1]}", process.pid
    finally:
        process.kill()
        process.wait()


def mebibytes(pid: int, name: str) -> float:
    """VmRSS or VmHWM, as Linux counts it."""
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def measure(checkout: Path, *, tls: bool) -> dict[str, float]:
    """Seconds of scrapes while the crowd arrives and afterwards, those that failed, and MiB more."""
    pause, taken, failed = threading.Event(), [], 0
    with tempfile.TemporaryDirectory() as folder, running(checkout, Path(folder), tls=tls) as (url, pid):
        pause.wait(3.0)  # the first pass
        servers.scrape(url)
        before = mebibytes(pid, "VmRSS")
        host, port = url.rpartition("/")[2].split(":")
        began = time.perf_counter()
        with hostile.crowd(host, int(port), tls=tls):
            while (at := time.perf_counter() - began) < FOR:
                try:
                    taken.append((at, servers.scrape(url)[0]))
                except (OSError, http.client.HTTPException):
                    failed += 1
                pause.wait(PAUSE)
        more = mebibytes(pid, "VmHWM") - before
    arriving = [seconds for at, seconds in taken if at < ARRIVAL]
    after = [seconds for at, seconds in taken if at >= ARRIVAL]
    return {
        "worst while the crowd arrives, s": max(arriving),
        "median afterwards, s": statistics.median(after),
        "worst afterwards, s": max(after),
        "scrapes that failed": failed,
        "more memory, MiB": more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, default=HERE, help="another checkout; this one by default")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for tls in (False, True):
        taken: dict[str, list[dict[str, float]]] = {"baseline": [], "here": []}
        for _ in range(arguments.rounds):
            for name, checkout in (("baseline", arguments.baseline), ("here", HERE)):
                taken[name].append(measure(checkout.resolve(), tls=tls))
        rows = {
            f"{name}: {what}": ", ".join(f"{found[what]:.2f}" for found in rounds)
            for name, rounds in taken.items()
            for what in rounds[0]
        }
        polling.table(f"Beside {hostile.SLOW} slow clients and others, {'TLS' if tls else 'plain'}", rows)


if __name__ == "__main__":
    main()
