"""`make bench-million`: one exporter and a million images at three destinations, with the default budget.

The real command lists a simulated ECR (fast_ecr) for the first time, is scraped once a second meanwhile, is
stopped, starts again with its state file, and rests for a whole `discovery_interval`. With `--together N`,
so many shards start at once, and only that start is measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from fast_ecr import PARTNER, STATUS
from polling import Exporter, Server, ecr, exporter, get, processor, table

INTERVAL = 900.0
CONFIG = """\
targets: [{{repository: 'team/*'}}]
destinations: [{{registry_id: '{partner}'}}]
discovery_interval: {interval:.0f}s
max_images: {images}
image_series: unfinished
"""


def listed(shards: Sequence[Exporter], server: Server, images: int) -> dict[str, str]:
    """Scrape all in turn until all images are known; the figures."""
    began, scrapes = time.monotonic(), list[float]()
    while sum(running.settled() for running in shards) < images:
        for running in shards:
            asked = time.monotonic()
            page = get(f"{running.url}/metrics", compressed=True)
            scrapes.append(time.monotonic() - asked)
        threading.Event().wait(1.0)
    served = server.control("/calls")["served"]
    calls = [at for at in served if at >= began]
    statuses = server.control(f"/calls?operation={STATUS}")["served"]
    silence = max(later - earlier for earlier, later in pairwise(calls))
    scrapes.sort()
    return {
        "all images known after, s": f"{time.monotonic() - began:.0f}",
        "listing calls": f"{len(calls):.0f}",
        "status calls": f"{sum(at >= began for at in statuses)}",
        "longest time without a call, ms": f"{1000 * silence:.0f}",
        "scrapes, median, ms": f"{1000 * statistics.median(scrapes):.0f}",
        "scrapes, p99, ms": f"{1000 * scrapes[len(scrapes) * 99 // 100]:.0f}",
        "compressed page, KiB": f"{len(page) / 1024:.0f}",
        "resident memory of the largest, MiB": f"{max(s.resident() for s in shards) / 2**20:.0f}",
    }


def shared(server: Server, config: str, flags: argparse.Namespace) -> None:
    """The first start of some shards."""
    with ExitStack() as stack:
        shards = [
            stack.enter_context(
                exporter(server, config, f"--shard={number}", f"--total-shards={flags.together}")
            )
            for number in range(flags.together)
        ]
        table(f"First start of {flags.together} shards", listed(shards, server, flags.images))
        used = [processor(running.process.pid) for running in shards]
        table("Processor time of each, s", {str(number): f"{each:.0f}" for number, each in enumerate(used)})


def timed(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repositories", type=int, default=2_000)
    parser.add_argument("--rest", type=float, default=INTERVAL, help="seconds of rest that are measured")
    parser.add_argument("--together", type=int, default=1)
    flags = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ecr(images=flags.images, repositories=flags.repositories) as server,
    ):
        state = Path(folder, "state")
        config = CONFIG.format(partner=PARTNER, interval=INTERVAL, images=2 * flags.images)
        if flags.together > 1:
            shared(server, config, flags)
            return
        config += f"state_file: {state}\n"
        with exporter(server, config) as running:
            table("First start", listed([running], server, flags.images))
            stopped = timed(lambda: (running.process.terminate(), running.process.wait()))
        table("Stop", {"seconds": f"{stopped:.1f}", "state file, MiB": f"{state.stat().st_size / 2**20:.1f}"})
        began = time.monotonic()
        with exporter(server, config) as running:
            table(
                f"Start with the state file, listening after {time.monotonic() - began:.1f} s",
                listed([running], server, flags.images),
            )
            used = processor(running.process.pid)
            threading.Event().wait(flags.rest)
            share = (processor(running.process.pid) - used) / flags.rest
            page = timed(lambda: get(f"{running.url}/"))
            table(
                "At rest",
                {
                    "processor, % of one core": f"{100 * share:.1f}",
                    "resident memory, MiB": f"{running.resident() / 2**20:.0f}",
                    "status page, ms": f"{1000 * page:.0f}",
                },
            )


if __name__ == "__main__":
    main()
