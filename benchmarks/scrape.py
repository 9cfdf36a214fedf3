"""Cost of a scrape: this exporter, prometheus_client and client_golang serve the same facts over HTTP.

Run all parts with `make bench-scrape`, or some with `make bench-scrape ARGS="times polling"`. With
`ARGS="--baseline DIR"` it compares this checkout with another one, which has its own .venv. Needs Linux
(/proc). client_golang is measured if Go and the Debian packages are installed. Each server has its own
process. All are scraped in turn. Figures are medians of one run on one machine, so compare the ratios.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import polling
from fast_ecr import repository_name

HERE = Path(__file__).parent
IMAGES = 10_000
EXPORTER, PYTHON, GO = "exporter", "prometheus_client", "client_golang"
GOPATH = Path("/usr/share/gocode")
GO_PACKAGES = "golang-go golang-github-prometheus-client-golang-dev"
ENCODINGS = ("plain", "gzip")
MIB = 2**20

_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Scrape(NamedTuple):
    """Seconds until the last byte, seconds of the server's processor time, and bytes of the body."""

    wall: float
    processor: float
    size: int


class Taker:
    """Reads pages with little processor time, without keeping them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = bytearray(MIB)

    def take(self, encoding: str, *, keep: bytearray | None = None, path: str = "/metrics") -> int:
        """Read a page and return the bytes of its body. Uses HTTP/1.0, so the body has no chunks."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=polling.PATIENCE) as connection:
            accept = "Accept-Encoding: gzip\r\n" if encoding == "gzip" else ""
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{accept}\r\n".encode())
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(MIB)
            head, _, body = received.partition(b"\r\n\r\n")
            size = len(body)
            if keep is not None:
                keep += body
            while more := connection.recv_into(self._buffer):
                size += more
                if keep is not None:
                    keep += self._buffer[:more]
        assert b" 200 " in head.partition(b"\r\n")[0], head
        return size


class Server:
    """A server that is measured."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.port = int(self._line())
        self._taker = Taker(self.port)

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def change(self, images: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{images}\n")
        self._process.stdin.flush()
        assert self._line() == "changed\n"

    def scrape(self, encoding: str, path: str = "/metrics") -> Scrape:
        before, began = processor(self.pid), time.perf_counter()
        size = self._taker.take(encoding, path=path)
        return Scrape(time.perf_counter() - began, processor(self.pid) - before, size)

    def series(self) -> Counter[tuple[str, frozenset[tuple[str, str]], float]]:
        """The series of images and repositories, with any order of lines and labels."""
        page = bytearray()
        self._taker.take("gzip", keep=page)
        lines = (line for line in gzip.decompress(page).decode().splitlines() if line.startswith("ecr_"))
        facts = ((line.partition("{")[0], line) for line in lines if line.startswith(("ecr_im", "ecr_repo")))
        return Counter(
            (name, frozenset(_LABEL.findall(line)), float(line.rpartition(" ")[2])) for name, line in facts
        )


def processor(pid: int) -> float:
    """Seconds of processor time of a process, with those of its ended threads."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock id of clock_getcpuclockid(3)


def memory(pid: int, what: str) -> int:
    """Bytes: VmRSS is resident memory, VmHWM its maximum."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def running(command: Sequence[str], *, home: Path = HERE.parent) -> Iterator[Server]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@contextmanager
def command_lines() -> Iterator[dict[str, list[str]]]:
    """The command lines of the servers that can run on this machine."""
    script = str(HERE / "scraped.py")
    commands = {name: [sys.executable, script, name, str(IMAGES)] for name in (EXPORTER, PYTHON)}
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory, "client_golang"))
        if shutil.which("go") and (GOPATH / "src/github.com/prometheus/client_golang").is_dir():
            subprocess.run(
                ["go", "build", "-o", program, str(HERE / "client_golang/main.go")],
                env=os.environ | {"GO111MODULE": "off", "GOPATH": str(GOPATH)},
                check=True,
            )
            commands[GO] = [program, str(IMAGES)]
        else:
            print(f"Without {GO}: install the Debian packages {GO_PACKAGES}")
        yield commands


@contextmanager
def all_of_them() -> Iterator[dict[str, Server]]:
    with command_lines() as commands, ExitStack() as stack:
        yield {name: stack.enter_context(running(command)) for name, command in commands.items()}


# -- tables ------------------------------------------------------------------------------------


def compare(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print milliseconds of each server, and the ratio of the others to the exporter."""
    print(f"\n{title}")
    names = list(next(iter(rows.values())))
    print(f"  {'':<40}" + "".join(f"{name:>26}" for name in names))
    for what, figures in rows.items():
        ours = figures[EXPORTER]
        cells = [f"{1000 * ours:.2f}"]
        cells += [f"{1000 * figures[n]:.0f} ({figures[n] / ours:.0f} x)" for n in names if n != EXPORTER]
        print(f"  {what:<40}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


# -- times -------------------------------------------------------------------------------------


def times(*, rounds: int = 3, repeats: int = 5) -> None:
    """Scrape all servers in turn, without and after changes; the exporter several times in a turn."""
    with all_of_them() as servers:
        shown = {name: server.series() for name, server in servers.items()}
        assert all(series == shown[EXPORTER] for series in shown.values()), (
            "the servers show different series"
        )
        count = shown[EXPORTER].total()
        print(f"{IMAGES} images, 3 destinations: {count} series, the same from {', '.join(servers)}")
        wall: dict[str, dict[str, float]] = {}
        used: dict[str, dict[str, float]] = {}
        sizes: dict[str, dict[str, int]] = {}
        for changes, what in CHANGES.items():
            for encoding in ENCODINGS:
                taken: dict[str, list[Scrape]] = {name: [] for name in servers}
                for _ in range(rounds):
                    for name, server in servers.items():
                        for _ in range(repeats if name == EXPORTER else 1):
                            if changes:
                                server.change(changes)
                            taken[name].append(server.scrape(encoding))
                row = f"{what}, {encoding}"
                wall[row] = {n: statistics.median(s.wall for s in scrapes) for n, scrapes in taken.items()}
                used[row] = {n: statistics.median(s.processor for s in t) for n, t in taken.items()}
                sizes[encoding] = {name: scrapes[0].size for name, scrapes in taken.items()}
        compare("Milliseconds from the request to the last byte, medians (times ours)", wall)
        compare("Milliseconds of the server's processor time, medians (times ours)", used)
        for encoding, sent in sizes.items():
            polling.table(f"Bytes sent, {encoding}", {name: f"{size}" for name, size in sent.items()})


#: Images that change between two scrapes. 20 means 20 changes a second with a scrape every second.
CHANGES = {0: "at rest", 20: "20 images changed", IMAGES // 100: "1 % changed"}


# -- first scrape ------------------------------------------------------------------------------


def first(*, starts: int = 3) -> None:
    rows: dict[str, dict[str, float]] = {}
    with command_lines() as commands:
        for encoding in ENCODINGS:
            taken: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(starts):
                for name, command in commands.items():
                    with running(command) as server:
                        taken[name].append(server.scrape(encoding).wall)
            rows[f"first scrape, {encoding}"] = {n: statistics.median(t) for n, t in taken.items()}
    compare("Milliseconds of the first scrape after a start (times ours)", rows)


# -- ten at once -------------------------------------------------------------------------------


def together(*, scrapers: int = 10, rounds: int = 9) -> None:
    with (
        command_lines() as commands,
        running(commands[EXPORTER]) as server,
        ThreadPoolExecutor(scrapers) as pool,
    ):
        takers = [Taker(server.port) for _ in range(scrapers)]
        rows: dict[str, str] = {}
        for encoding in ENCODINGS:
            server.scrape(encoding)
            for many in (1, scrapers):
                used, wall = [], []
                for _ in range(rounds):
                    server.change(IMAGES // 100)
                    before, began = processor(server.pid), time.perf_counter()
                    list(pool.map(lambda taker: taker.take(encoding), takers[:many]))  # noqa: B023
                    wall.append(1000 * (time.perf_counter() - began))
                    used.append(1000 * (processor(server.pid) - before))
                row = f"{encoding}, {many} at once, ms"
                rows[row] = f"{statistics.median(wall):.0f}"
                rows[f"{row} of processor time"] = f"{statistics.median(used):.0f}"
        polling.table("Scrapers at once, after 1 % of the images changed", rows)


# -- under a poller ----------------------------------------------------------------------------

#: Intervals so short that the poller always calls AWS as fast as it can.
RESTLESS = polling.UNBOUNDED + "settled_interval: 5s\ndiscovery_interval: 1s\n"


def under_polling(*, images: int = 7_000, scrapes: int = 300, pushes: float = 20.0) -> None:
    with polling.ecr(images=images) as server, polling.exporter(server, RESTLESS) as exporter:
        exporter.pause_until_settled(server, images)
        pid, taker = exporter.process.pid, Taker(int(exporter.url.rpartition(":")[2]))
        for encoding in ENCODINGS:
            taker.take(encoding)  # renders everything, which `first` measures
        rows: dict[str, str] = {}
        ended = threading.Event()

        def push() -> None:
            number = 0
            while not ended.wait(1 / pushes):
                number += 1
                server.control(f"/pushed?repository={repository_name(number % polling.REPOSITORIES)}")

        for what in ("nothing changes", f"{pushes:.0f} pushes a second"):
            if "pushes" in what:
                threading.Thread(target=push, daemon=True).start()
            for encoding in ENCODINGS:
                taker.take(encoding)
                calls, began = server.control("/status-calls"), time.perf_counter()
                seconds = []
                for _ in range(scrapes):
                    started = time.perf_counter()
                    taker.take(encoding)
                    seconds.append(1000 * (time.perf_counter() - started))
                    threading.Event().wait(0.05)
                rate = (server.control("/status-calls") - calls) / (time.perf_counter() - began)
                median, worst = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
                row = f"{what}, {encoding}"
                rows[f"{row}: median, p99, ms"] = f"{median:.1f}, {worst:.1f}"
                rows[f"{row}: p99 to median"] = f"{worst / median:.2f}"
                rows[f"{row}: status calls a second meanwhile"] = f"{rate:.0f}"
        ended.set()
        rows["resident in the end, MiB"] = f"{memory(pid, 'VmRSS') / MIB:.0f}"
        polling.table(f"Scrapes of {14 * images} series under a poller at full speed, {scrapes} each", rows)


# -- memory ------------------------------------------------------------------------------------


def resident() -> None:
    """Memory of the real command after a first pass and after scrapes."""
    with polling.ecr(images=IMAGES) as server, polling.exporter(server, polling.UNBOUNDED) as exporter:
        exporter.pause_until_settled(server, IMAGES)
        pid, taker = exporter.process.pid, Taker(int(exporter.url.rpartition(":")[2]))
        rows = {"before a scrape, MiB": f"{memory(pid, 'VmRSS') / MIB:.0f}"}
        for encoding in (*reversed(ENCODINGS), *reversed(ENCODINGS)):
            before = memory(pid, "VmRSS")
            forget_peak(pid)
            size = taker.take(encoding)
            peak = memory(pid, "VmHWM")
            again = " again" if f"{encoding}: resident after it, MiB" in rows else ""
            rows[f"{encoding}{again}: page, MiB"] = f"{size / MIB:.1f}"
            rows[f"{encoding}{again}: resident at most meanwhile, MiB"] = f"{peak / MIB:.0f}"
            rows[f"{encoding}{again}: added at most, in pages"] = f"{(peak - before) / size:.2f}"
            rows[f"{encoding}{again}: resident after it, MiB"] = f"{memory(pid, 'VmRSS') / MIB:.0f}"
        polling.table("Memory of the real command, scraped compressed, then plain", rows)
    with all_of_them() as servers:
        rows = {}
        for name, running_server in servers.items():
            for encoding in (*ENCODINGS, *ENCODINGS):
                running_server.scrape(encoding)
            rows[f"{name}, MiB"] = f"{memory(running_server.pid, 'VmRSS') / MIB:.0f}"
        polling.table("Memory of the compared servers, after four scrapes", rows)


# -- beside another checkout -------------------------------------------------------------------


@contextmanager
def scraped(home: Path) -> Iterator[Server]:
    """Run benchmarks/scraped.py of a checkout in the .venv of that checkout."""
    python = sys.executable if home == HERE.parent else str(home / ".venv/bin/python")
    script = str(home / "benchmarks/scraped.py")
    with running([python, script, EXPORTER, str(IMAGES)], home=home) as server:
        yield server


def compared(title: str, pairs: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> None:
    """Print the medians of both checkouts and the median of the ratios of pairs."""
    print(f"\n{title}\n  {'':<28}{'here, ' + unit:>18}{'baseline, ' + unit:>22}{'ratio of pairs':>18}")
    for what, values in pairs.items():
        here, baseline = (statistics.median(each) for each in zip(*values, strict=True))
        ratio = statistics.median(a / b for a, b in values)
        print(f"  {what:<28}{here:>18.2f}{baseline:>22.2f}{ratio:>18.2f}", flush=True)


def times_compared(baseline: Path, *, rounds: int = 15) -> None:
    with scraped(HERE.parent) as here, scraped(baseline) as other:
        ours, theirs = here.series(), other.series()
        print(f"{IMAGES} images: {ours.total()} series here, {theirs.total()} in the baseline;", end=" ")
        print(f"{(ours - theirs).total()} only here, {(theirs - ours).total()} only there")
        wall: dict[str, list[tuple[float, float]]] = {}
        used: dict[str, list[tuple[float, float]]] = {}
        sizes: dict[str, list[tuple[float, float]]] = {}
        for changes, what in CHANGES.items():
            for encoding in ENCODINGS:
                for server in (here, other):
                    server.scrape(encoding)
                for number in range(rounds):
                    taken = {}
                    for server in (here, other)[:: 1 if number % 2 else -1]:
                        if changes:
                            server.change(changes)
                        taken[server] = server.scrape(encoding)
                    a, b, row = taken[here], taken[other], f"{what}, {encoding}"
                    wall.setdefault(row, []).append((1000 * a.wall, 1000 * b.wall))
                    used.setdefault(row, []).append((1000 * a.processor, 1000 * b.processor))
                    sizes.setdefault(encoding, []).append((a.size / ours.total(), b.size / theirs.total()))
    compared(f"From the request to the last byte, {rounds} pairs", wall, "ms")
    compared(f"The server's processor time, {rounds} pairs", used, "ms")
    compared("Bytes for each series of images and repositories", sizes, "bytes")


def first_compared(baseline: Path, *, starts: int = 7) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    for encoding in ENCODINGS:
        for number in range(starts):
            taken = {}
            for home in (HERE.parent, baseline)[:: 1 if number % 2 else -1]:
                with scraped(home) as server:
                    taken[home] = 1000 * server.scrape(encoding).wall
            rows.setdefault(encoding, []).append((taken[HERE.parent], taken[baseline]))
    compared(f"The first scrape after a start, {starts} pairs", rows, "ms")


def memory_compared(baseline: Path, *, images: int = 100, rounds: int = 3) -> None:
    """Memory of the real command after a first pass and ten scrapes in each encoding."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        found = []
        for home in (HERE.parent, baseline):
            with (
                polling.ecr(images=images) as server,
                polling.exporter(server, polling.UNBOUNDED, home=home) as exporter,
            ):
                exporter.pause_until_settled(server, images)
                taker = Taker(int(exporter.url.rpartition(":")[2]))
                for encoding in 10 * ENCODINGS:
                    taker.take(encoding)
                found.append(memory(exporter.process.pid, "VmRSS") / MIB)
        rows.setdefault(f"{images} images", []).append((found[0], found[1]))
    compared(f"Resident memory of the real command, {rounds} pairs", rows, "MiB")


PARTS: Mapping[str, Callable[[], None]] = {
    "times": times,
    "first": first,
    "together": together,
    "polling": under_polling,
    "memory": resident,
}

#: The parts that `--baseline` compares with another checkout.
COMPARED: Mapping[str, Callable[[Path], None]] = {
    "times": times_compared,
    "first": first_compared,
    "memory": memory_compared,
}


if __name__ == "__main__":
    polling.run(PARTS, __doc__, COMPARED)
