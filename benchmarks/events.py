"""Events beside polling: the real command on a fast simulated ECR, with the queue of its events.

Run both parts with `make bench-events`; ARGS="--baseline DIR" polls with another checkout. Takes 15 minutes.
"""

from __future__ import annotations

import argparse
import random
import re
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fast_ecr import ACCOUNT, LOOK_UP, REGION, repository_name
from polling import HERE, Exporter, Server, ecr, eventually, exporter, get, processor, table

IMAGES, REPOSITORIES, PUSHES = 2_000, 200, 100
#: Seconds in which the pushes come and calls are counted: one `discovery_interval` of the events.
WINDOW = 600.0
#: Seconds after the last push in which polling may find it.
PATIENCE = 75.0
CONFIG = """\
targets: [{repository: 'team/*'}]
requests_per_second: 10
"""
QUEUE = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/ecr-events"
EVENTS = f"{CONFIG}registries: [{{events_queue_url: '{QUEUE}'}}]\ndiscovery_interval: 10m\n"
#: The benchmark of foreign events waits for no limit until the images are settled.
UNBOUNDED = EVENTS.replace("requests_per_second: 10\n", "requests_per_second: 10000\n")
LISTINGS = ("DescribeImages", "DescribeRepositories")


class Side(NamedTuple):
    """One exporter on an ECR of its own."""

    server: Server
    running: Exporter
    #: Seconds from push to page, by digest.
    seen: dict[str, float]

    def wait_until_settled(self) -> None:
        eventually(lambda: self.running.settled() >= IMAGES, within=600, every=1.0)

    def watch(self, pushed: Mapping[str, float], stop: threading.Event) -> None:
        """Note when the status of each pushed image is on the page."""
        while not stop.wait(0.3):  # a page holds calls up
            if waiting := pushed.keys() - self.seen.keys():
                url = f"{self.running.url}/metrics?name[]=ecr_image_info&name[]=ecr_image_replication_status"
                known = answered(get(url).decode())
                now = time.monotonic()
                self.seen.update((d, now - pushed[d]) for d in waiting & known)

    def calls(self, since: float, *operations: str) -> int:
        """Calls of the operations since a monotonic time."""
        served = (self.server.control(f"/calls?operation={name}")["served"] for name in operations)
        return sum(at >= since for moments in served for at in moments)


def answered(page: str) -> set[str]:
    """The digests of the images that have a status on the page."""
    labels = r'repository="([^"]*)",tag="([^"]*)"'
    statuses = set(re.findall(rf"^ecr_image_replication_status{{{labels}", page, re.MULTILINE))
    infos = re.findall(rf'^ecr_image_info{{{labels},digest="([^"]*)"', page, re.MULTILINE)
    return {digest for *name, digest in infos if tuple(name) in statuses}


def pushes(baseline: Path) -> None:
    """Push images at random times, each to another repository, to both exporters at the same time."""
    homes = {"events, 10m": (EVENTS, HERE.parent), "polling, 1m": (CONFIG, baseline)}
    with ExitStack() as stack:
        sides = {}
        for name, (config, home) in homes.items():
            server = stack.enter_context(ecr(images=IMAGES, repositories=REPOSITORIES))
            no_looks = "replica_interval: 0s\n" if home == HERE.parent else ""
            running = stack.enter_context(exporter(server, config + no_looks, home=home))
            sides[name] = Side(server, running, {})
        for side in sides.values():
            side.wait_until_settled()
        stop, began = threading.Event(), time.monotonic()
        pushed: dict[str, float] = {}
        watchers = [
            threading.Thread(target=side.watch, args=(pushed, stop), daemon=True) for side in sides.values()
        ]
        for watcher in watchers:
            watcher.start()
        draw = random.Random(1)
        times = sorted(draw.uniform(0.0, WINDOW) for _ in range(PUSHES))
        for after, number in zip(times, draw.sample(range(REPOSITORIES), PUSHES), strict=True):
            threading.Event().wait(max(0.0, began + after - time.monotonic()))
            at = time.monotonic()
            for side in sides.values():
                digest = side.server.control(f"/pushed?repository={repository_name(number)}")
            pushed[digest] = at
        threading.Event().wait(max(0.0, began + WINDOW - time.monotonic()))
        calls = {name: side.calls(began, *LISTINGS) for name, side in sides.items()}
        look_ups = {name: side.calls(began, LOOK_UP) for name, side in sides.items()}
        eventually(lambda: all(len(side.seen) == PUSHES for side in sides.values()), within=PATIENCE)
        stop.set()
    rows = {}
    for name, side in sides.items():
        rows[f"{name}: push to page, median, seconds"] = f"{median(side.seen.values()):.2f}"
        rows[f"{name}: push to page, worst, seconds"] = f"{max(side.seen.values()):.2f}"
        rows[f"{name}: listing calls"] = f"{calls[name]}"
        rows[f"{name}: look-ups of pushed images"] = f"{look_ups[name]}"
    (ours, fewer), (theirs, more) = ((max(s.seen.values()), calls[n]) for n, s in sides.items())
    rows |= {
        "sooner, worst to worst": f"{theirs / ours:.1f}",
        "listing calls, part": f"{fewer / more:.3f}",
        "listing calls, part, without one for each push": f"{(fewer - PUSHES) / more:.3f}",
    }
    table(f"{PUSHES} pushes in {WINDOW:.0f} s, {IMAGES} images in {REPOSITORIES} repositories", rows)


def foreign(*, rate: int = 1_000, seconds: float = 30.0) -> None:
    """Events of another account: processor time of the exporter, beside the time without them."""
    name, labels = "events_received_total", '{kind="PUSH",outcome="foreign",source_region="us-east-1",'
    labels += f'source_registry_id="{ACCOUNT}"}}'
    shares: list[float] = []
    with ecr(images=IMAGES, repositories=REPOSITORIES) as server, exporter(server, UNBOUNDED) as running:
        eventually(lambda: running.settled() >= IMAGES, within=600, every=1.0)
        for load in (0, rate):
            server.control(f"/foreign?rate={load}")
            threading.Event().wait(3.0)
            before = processor(running.process.pid), running.value(name, labels), time.monotonic()
            threading.Event().wait(seconds)
            took = time.monotonic() - before[2]
            shares.append((processor(running.process.pid) - before[0]) / took)
            handled = (running.value(name, labels) - before[1]) / took
    rows = {
        "events handled a second": f"{handled:.0f}",
        "processor with them, of one core": f"{100 * shares[1]:.1f} %",
        "processor without them": f"{100 * shares[0]:.1f} %",
    }
    table("Events of other repositories", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["foreign", "pushes"], help="foreign, pushes")
    parser.add_argument("--baseline", type=Path, default=HERE.parent, help="a checkout that polls")
    flags = parser.parse_args()
    if "foreign" in flags.parts:
        foreign()
    if "pushes" in flags.parts:
        pushes(flags.baseline)


if __name__ == "__main__":
    main()
