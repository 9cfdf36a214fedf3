"""Speed and cost of polling: the real command polls a fast simulated ECR.

Run all parts with `make bench-polling`, or some with `make bench-polling ARGS="first-pass budget"`. Needs
Linux (/proc). Figures are medians of one run on one machine, so compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fast_ecr import PARTNER, REGION, STATUS, repository_name

from exporter.polling.workers import MAX_IN_FLIGHT

T = TypeVar("T")

HERE = Path(__file__).parent
REPOSITORIES = 20
#: The longest time in seconds for any step except a first pass.
PATIENCE = 60.0
#: Status calls after which the rate of a first pass is limited by the processor only.
RAMP = 2_000
WATCH_ALL = "targets: [{repository: 'team/*'}]\n"
UNBOUNDED = WATCH_ALL + "requests_per_second: 10000\n"


def get(url: str, *, compressed: bool = False) -> bytes:
    headers = {"Accept-Encoding": "gzip"} if compressed else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as response:
        return bytes(response.read())


def eventually(found: Callable[[], T], *, within: float = PATIENCE, every: float = 0.1) -> T:
    """The first true value of `found`. Exits after `within` seconds."""
    end, pause = time.monotonic() + within, threading.Event()
    while not (value := found()):
        if time.monotonic() > end:
            sys.exit(f"gave up after {within:.0f} s")
        pause.wait(every)
    return value


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(endpoint: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "AKIABENCHMARK",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


class Server:
    """The simulated ECR."""

    def __init__(self, port: str) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def control(self, target: str) -> Any:
        return json.loads(get(self.url + target))


@contextmanager
def ecr(*, images: int, repositories: int = REPOSITORIES, latency: float = 0.0) -> Iterator[Server]:
    flags = [f"--images={images}", f"--repositories={repositories}", f"--latency={latency}"]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fast_ecr.py"), *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        yield Server(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


class Exporter:
    """The real command."""

    def __init__(self, process: subprocess.Popen[bytes], *, config: Path, log: Path) -> None:
        self.process = process
        self._config = config
        found = eventually(lambda: re.search(r"addresses=(\S+)", log.read_text()), every=0.02)
        self.url = f"http://{found[1]}"

    def reload(self, config: str) -> None:
        before = self.value("config_last_reload_success_timestamp_seconds")
        self._config.write_text(config)
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.value("config_last_reload_success_timestamp_seconds") > before)

    def value(self, name: str, labels: str = "") -> float:
        """The value of one of the exporter's own metrics; 0 if it is absent."""
        name = f"ecr_replication_exporter_{name}"
        page = get(f"{self.url}/metrics?name[]={name}").decode()
        found = re.search(rf"^{name}{re.escape(labels)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def settled(self) -> float:
        return self.value("images", '{state="settled"}')

    def pause_until_settled(self, server: Server, images: int) -> None:
        """Wait until all images are settled. Asks the ECR first, to leave the exporter undisturbed."""
        eventually(
            lambda: server.control("/status-calls") >= images, within=images / 50 + PATIENCE, every=0.5
        )
        eventually(lambda: self.settled() >= images)

    def resident(self) -> int:
        """Bytes of memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def exporter(server: Server, config: str, *flags: str, home: Path = HERE.parent) -> Iterator[Exporter]:
    """Run the command of this checkout, or of another one with its own .venv."""
    python = sys.executable if home == HERE.parent else str(home / ".venv" / "bin" / "python")
    with tempfile.TemporaryDirectory() as directory:
        file, log = Path(directory, "config.yaml"), Path(directory, "log")
        file.write_text(config)
        command = [python, "-m", "exporter", "--web.listen-address=127.0.0.1:0"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, f"--config.file={file}", *flags],
                stderr=stderr,
                env=environment(server.url),
                cwd=home,
            )
        try:
            yield Exporter(process, config=file, log=log)
        finally:
            process.terminate()
            process.wait()


def table(title: str, rows: Mapping[str, str]) -> None:
    print(f"\n{title}")
    for what, figure in rows.items():
        print(f"  {what:<58}{figure:>14}", flush=True)


# -- first pass --------------------------------------------------------------------------------


class Pass(NamedTuple):
    """Status calls of a first pass: rate with and without the first RAMP calls, in calls a second, and
    processor time of a call without them, in milliseconds."""

    whole: float
    steady: float
    processor: float


def watch_pass(server: Server, pid: int, images: int) -> Pass:
    used: list[tuple[int, float]] = []
    for until in (RAMP, images - RAMP // 10):  # workers may be idle during the last ones

        def reached(until: int = until) -> bool:
            return int(server.control("/status-calls")) >= until

        eventually(reached, within=images / 50 + PATIENCE)
        used.append((server.control("/status-calls"), processor(pid)))
    (first, before), (last, after) = used
    eventually(lambda: server.control("/status-calls") >= images)
    moments = server.control(f"/calls?operation={STATUS}")["served"]
    return Pass(per_second(moments), per_second(moments[RAMP:]), 1000 * (after - before) / (last - first))


def per_second(moments: Sequence[float]) -> float:
    return (len(moments) - 1) / (moments[-1] - moments[0])


def exporter_pass(images: int, *, home: Path = HERE.parent) -> Pass:
    with ecr(images=images) as server, exporter(server, UNBOUNDED, home=home) as running:
        return watch_pass(server, running.process.pid, images)


def bare_pass(images: int, *options: str) -> Pass:
    with ecr(images=images) as server:
        flags = [f"--images={images}", f"--repositories={REPOSITORIES}", *options]
        command = [sys.executable, str(HERE / "bare_loop.py"), *flags]
        with subprocess.Popen(command, env=environment(server.url)) as process:
            return watch_pass(server, process.pid, images)


def first_pass(*, images: int = 6_000, rounds: int = 7) -> None:
    runs = [(exporter_pass(images), bare_pass(images), bare_pass(images, "--tuned")) for _ in range(rounds)]
    ours, bare, tuned = (
        Pass(*map(statistics.median, zip(*each, strict=True))) for each in zip(*runs, strict=True)
    )
    rows = {
        f"exporter after its first {RAMP}, calls/s": f"{ours.steady:.0f}",
        "exporter, all calls, with the slow start, calls/s": f"{ours.whole:.0f}",
        "exporter, ms of processor time a call": f"{ours.processor:.2f}",
    }
    for number, (loop, other) in enumerate({"bare loop": bare, "tuned loop": tuned}.items(), 1):
        speed = statistics.median(run[0].steady / run[number].steady for run in runs)
        cost = statistics.median(run[0].processor / run[number].processor for run in runs)
        rows |= {
            f"{loop}, {MAX_IN_FLIGHT} threads, calls/s": f"{other.steady:.0f}",
            f"  exporter to {loop}": f"{speed:.2f}",
            f"{loop}, ms of processor time a call": f"{other.processor:.2f}",
            f"  exporter to {loop}, processor time": f"{cost:.2f}",
        }
    table(
        f"First pass: {images} images, {REPOSITORIES} repositories; status calls, medians of {rounds} rounds",
        rows,
    )


def first_pass_compared(baseline: Path, *, images: int = 6_000, rounds: int = 5) -> None:
    """Compare this checkout with another one in pairs of runs. The order alternates."""
    runs = []
    for number in range(rounds):
        homes = (HERE.parent, baseline)
        passes = {home: exporter_pass(images, home=home) for home in homes[:: 1 if number % 2 else -1]}
        runs.append((passes[HERE.parent], passes[baseline]))
    rows = {}
    for name in Pass._fields:
        ours, theirs = zip(*((getattr(a, name), getattr(b, name)) for a, b in runs), strict=True)
        rows[f"{name}: this checkout"] = f"{statistics.median(ours):.2f}"
        rows[f"{name}: baseline"] = f"{statistics.median(theirs):.2f}"
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        rows[f"{name}: ratio, median of pairs"] = f"{ratio:.3f}"
    table(f"First pass beside {baseline.name}: {images} images, medians of {rounds} pairs", rows)


# -- stalls ------------------------------------------------------------------------------------


class Shape(NamedTuple):
    images: int
    repositories: int
    max_images: int


SHAPES: Mapping[str, Shape] = {
    "one repository of 100,000 images": Shape(100_000, 1, 200_000),
    "200 repositories of 1,500 images, max_images 10,000": Shape(300_000, 200, 10_000),
}


def stall(shape: Shape, *, home: Path = HERE.parent, seconds: float = 30.0) -> float:
    """The longest time in milliseconds without a status call, while calls are due and listings change."""
    config = f"{UNBOUNDED}max_images: {shape.max_images}\ndiscovery_interval: 5s\nsettled_interval: 5s\n"
    with (
        ecr(images=shape.images, repositories=shape.repositories) as server,
        exporter(server, config, home=home),
    ):
        eventually(lambda: server.control("/status-calls") >= RAMP, within=shape.images / 50 + PATIENCE)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            for number in range(min(shape.repositories, 5)):
                server.control(f"/pushed?repository={repository_name(number)}")
            threading.Event().wait(1)
        moments = [at for at in server.control(f"/calls?operation={STATUS}")["served"] if at >= began]
    return 1000 * max(after - before for before, after in pairwise(moments))


def stalls(baseline: Path | None = None) -> None:
    """Changed listings, of this checkout and of another one."""
    homes = {"this checkout": HERE.parent} | ({baseline.name: baseline} if baseline else {})
    rows = {
        f"{what}: {name}": f"{stall(shape, home=home):.0f}"
        for what, shape in SHAPES.items()
        for name, home in homes.items()
    }
    table("Longest time without a status call while listings change, milliseconds", rows)


# -- settled images ----------------------------------------------------------------------------

#: The intervals of `settled`, a sixtieth of 15m, 6h and 15m.
SCALE = 60
SETTLED = f"{UNBOUNDED}discovery_interval: 15s\nsettled_interval: 6m\n"
LOOKS = f"replica_interval: 15s\ndestinations: [{{registry_id: '{PARTNER}'}}]\n"


def settled_calls(config: str, *, images: int, repositories: int, home: Path = HERE.parent) -> float:
    """Calls an hour for settled images, from a sixtieth of it that begins when all is settled and seen."""
    with (
        ecr(images=images, repositories=repositories) as server,
        exporter(server, config, home=home) as running,
    ):
        # Images that are seen present everywhere are settled without a status call.
        eventually(lambda: running.settled() >= images, within=images / 50 + PATIENCE, every=1.0)
        threading.Event().wait(30)
        before = len(server.control("/calls")["served"])
        threading.Event().wait(6 * 3600 / SCALE)  # once around the settled interval
        return (len(server.control("/calls")["served"]) - before) / 6


def settled(baseline: Path | None = None, *, images: int = 10_000, repositories: int = 10) -> None:
    """What settled images cost, of a checkout that looks at the copies and of one that asks for each."""
    calls = partial(settled_calls, images=images, repositories=repositories)
    rows = {"this checkout, with looks at three destinations": calls(SETTLED + LOOKS)}
    if baseline:
        rows[f"{baseline.name}, without looks"] = calls(SETTLED, home=baseline)
    table(
        f"{images} settled images in {repositories} repositories, calls an hour at 15m, 6h and 15m",
        {what: f"{number:.0f}" for what, number in rows.items()},
    )


# -- at rest -----------------------------------------------------------------------------------


def rest(*, images: int = 10_000, seconds: float = 60.0) -> None:
    with ecr(images=images) as server, exporter(server, UNBOUNDED) as running:
        running.pause_until_settled(server, images)
        running.reload(WATCH_ALL)
        threading.Event().wait(5)
        calls = len(server.control("/calls")["served"])
        before, began = processor(running.process.pid), time.monotonic()
        threading.Event().wait(seconds)
        busy = (processor(running.process.pid) - before) / (time.monotonic() - began)
        calls = len(server.control("/calls")["served"]) - calls
        table(
            f"At rest: {images} images, {REPOSITORIES} repositories, default intervals, for {seconds:.0f} s",
            {"processor, percent of one core": f"{100 * busy:.2f} %", "calls": str(calls)},
        )
        detection(server, running)


def detection(server: Server, running: Exporter, *, pushes: int = 12, interval: int = 5) -> None:
    running.reload(f"{WATCH_ALL}discovery_interval: {interval}s\n")
    threading.Event().wait(2 * interval)
    chance = random.Random(3)
    delays = []
    for _ in range(pushes):
        threading.Event().wait(interval * chance.random())
        complete = running.settled()
        began = time.monotonic()
        server.control(f"/pushed?repository={repository_name(chance.randrange(REPOSITORIES))}")
        eventually(lambda complete=complete: running.settled() > complete, every=0.02)  # type: ignore[misc]
        delays.append(time.monotonic() - began)
    table(
        f"Detection: from a push to its status on /metrics, discovery_interval {interval}s, {pushes} pushes",
        {"median, seconds": f"{statistics.median(delays):.2f}", "longest, seconds": f"{max(delays):.2f}"},
    )


# -- memory ------------------------------------------------------------------------------------


def memory(baseline: Path | None = None, *, sizes: Sequence[int] = (10_000, 100_000)) -> None:
    """Resident memory after a first pass and a scrape, less that of an exporter of 40 images."""
    readers = f'destinations: [{{registry_id: "{PARTNER}"}}]\n'
    cases = {
        "": (UNBOUNDED + readers, HERE.parent),
        ", without looks": (UNBOUNDED + "replica_interval: 0s\n", HERE.parent),
        ", unfinished": (UNBOUNDED + readers + "image_series: unfinished\n", HERE.parent),
    }
    if baseline:
        cases[f", {baseline.name}"] = (UNBOUNDED, baseline)
    rows = {}
    for name, (config, home) in cases.items():
        empty = resident(config, 40, home)
        rows[f"40 images{name}, MiB"] = f"{empty / 2**20:.0f}"
        for images in sizes:
            each = (resident(config, images, home) - empty) / (images - 40)
            rows[f"{images} images{name}, bytes an image"] = f"{each:.0f}"
    table("Resident memory, 3 destinations", rows)


def resident(config: str, images: int, home: Path) -> int:
    """Bytes of memory after a first pass over the images, a look at their copies, and a compressed scrape."""
    with ecr(images=images) as server, exporter(server, config, home=home) as running:
        eventually(lambda: running.settled() >= images, within=images / 50 + PATIENCE, every=1.0)
        threading.Event().wait(5)
        get(f"{running.url}/metrics", compressed=True)
        return running.resident()


# -- budget ------------------------------------------------------------------------------------


def budget(
    *, rates: Sequence[int] = (40, 20, 40), seconds: float = 20.0, settle: float = 5.0, latency: float = 0.0
) -> None:
    """An allowance that halves and doubles. Figures of each phase exclude its first `settle` seconds."""
    with ecr(images=10_000, latency=latency) as server:
        began = [float(server.control(f"/allow?rate={rates[0]}"))]
        with exporter(server, f"{WATCH_ALL}requests_per_second: 400\n"):
            first = eventually(lambda: server.control("/calls")["served"])[0]
            for rate in rates[1:]:
                threading.Event().wait(seconds)
                began.append(float(server.control(f"/allow?rate={rate}")))
            threading.Event().wait(seconds)
            calls = server.control("/calls")
    # The first phase begins with the first call, because the command takes a moment to start.
    ends = [*began[1:], began[-1] + seconds]
    phases = list(zip([first, *began[1:]], ends, rates, strict=True))
    rows = {}
    for number, (start, end, rate) in enumerate(phases, 1):
        rows |= shares(f"{number}. {rate}/s, after {settle:.0f} s", calls, [(start + settle, end, rate)])
    rows |= shares(
        f"all phases, after the first {settle:.0f} s",
        calls,
        [(first + settle, ends[0], rates[0]), *phases[1:]],
    )
    allowed = ", ".join(f"{rate}/s" for rate in rates)
    title = f"Adaptive budget: 400/s configured; allowed {allowed}, for {seconds:.0f} s each"
    table(f"{title}, answers after {latency:g} s", rows)


def operation(*, images: int = 20_000, rate: int = 5, before: float = 20.0, seconds: float = 60.0) -> None:
    """Only status calls are throttled. Figures of status calls are those of the second half."""
    config = f"{WATCH_ALL}requests_per_second: 400\ndiscovery_interval: 1s\n"
    with ecr(images=images) as server, exporter(server, config):
        eventually(lambda: server.control("/status-calls"))
        threading.Event().wait(before)
        throttled = float(server.control(f"/allow?rate={rate}&operation={STATUS}"))
        threading.Event().wait(seconds)
        statuses = server.control(f"/calls?operation={STATUS}")
        listed = server.control("/calls?operation=DescribeImages")["served"]
    middle, end = throttled + seconds / 2, throttled + seconds
    rows = shares("status", statuses, [(middle, end, rate)])
    for when, since, until in (
        ("before", throttled - before / 2, throttled),
        (f"in the first {seconds / 2:.0f} s", throttled, middle),
        ("after that", middle, end),
    ):
        rows[f"listings a second {when}"] = f"{between(listed, since, until) / (until - since):.1f}"
    table(f"One operation throttled: 400/s configured; {rate} status calls a second allowed", rows)


def shares(
    when: str, calls: Mapping[str, list[float]], phases: Sequence[tuple[float, float, int]]
) -> dict[str, str]:
    served = sum(between(calls["served"], start, end) for start, end, _ in phases)
    refused = sum(between(calls["refused"], start, end) for start, end, _ in phases)
    allowed = sum((end - start) * rate for start, end, rate in phases)
    return {
        f"{when}: share of the allowance used": f"{100 * served / allowed:.1f} %",
        f"{when}: share of the calls refused": f"{100 * refused / (served + refused):.1f} %",
    }


def between(moments: list[float], start: float, end: float) -> int:
    return bisect_left(moments, end) - bisect_left(moments, start)


PARTS: Mapping[str, Callable[[], None]] = {
    "first-pass": first_pass,
    "stalls": stalls,
    "settled": settled,
    "rest": rest,
    "memory": memory,
    "budget": budget,
    "slow-answers": partial(budget, latency=0.3),
    "operation": operation,
}


#: The parts that `--baseline` compares with another checkout.
COMPARED: Mapping[str, Callable[[Path], None]] = {
    "first-pass": first_pass_compared,
    "stalls": stalls,
    "settled": settled,
    "memory": memory,
}


def run(
    parts: Mapping[str, Callable[[], None]],
    description: str | None,
    compared: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Run the parts that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(parts)}; all by default")
    if compared:
        parser.add_argument("--baseline", type=Path, help="another checkout, with its own .venv")
    flags = parser.parse_args()
    if compared and flags.baseline:
        for part in flags.parts or list(compared):
            if part not in compared:
                parser.error(f"--baseline compares {', '.join(compared)}")
            compared[part](flags.baseline.resolve())
        return
    wanted = flags.parts or list(parts)
    for unknown in set(wanted) - parts.keys():
        parser.error(f"unknown part {unknown}; the parts are {', '.join(parts)}")
    for part in wanted:
        parts[part]()


if __name__ == "__main__":
    run(PARTS, __doc__, COMPARED)
