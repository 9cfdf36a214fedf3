"""Cost of the status page and of the API beside a scrape of the same facts: `make bench-page`.

One process serves 100,000 images with three destinations in 20 repositories. 2 % of the images are not
COMPLETE, so the page is cut at its limit. Some images change before each page and each scrape, spread over
all repositories. Pages and scrapes are taken in turn, so compare the ratios.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polling
import scrape

IMAGES = 100_000
ROUNDS = 15
SCRAPE = "/metrics"
PAGES = {
    "scrape": SCRAPE,
    "page": "/",
    "page, 500 rows": "/?limit=500",
    "page, search by tag": "/?tag=build-7*",
    "page, search by repository": "/?repository=team/app-1*",
    "API, 500 images": "/api/v1/status",
}
CHANGES = {0: "at rest", 20: "20 images changed", IMAGES // 100: "1 % changed"}


@contextmanager
def server() -> Iterator[scrape.Server]:
    command = [sys.executable, str(scrape.HERE / "scraped.py"), scrape.EXPORTER, str(IMAGES)]
    with scrape.running(command) as running:
        for path in PAGES.values():
            running.scrape("gzip", path)
        yield running


def table(title: str, taken: dict[str, list[scrape.Scrape]]) -> None:
    """Print medians, the longest time, and the ratio of processor times to the scrape of the same round."""
    print(f"\n{title}")
    print(f"  {'':<30}{'wall, ms':>12}{'worst, ms':>12}{'processor, ms':>16}{'/ scrape':>10}{'bytes':>12}")
    for name, found in taken.items():
        ratio = statistics.median(
            page.processor / whole.processor for page, whole in zip(found, taken["scrape"], strict=True)
        )
        wall, used = (1000 * statistics.median(each) for each in zip(*[s[:2] for s in found], strict=True))
        worst = 1000 * max(each.wall for each in found)
        print(
            f"  {name:<30}{wall:>12.1f}{worst:>12.1f}{used:>16.1f}{ratio:>10.2f}{found[-1].size:>12}",
            flush=True,
        )


def times() -> None:
    """Take everything in turn, compressed, after a change of some images before each."""
    with server() as running:
        for changes, what in CHANGES.items():
            taken: dict[str, list[scrape.Scrape]] = {name: [] for name in PAGES}
            for _ in range(ROUNDS):
                for name, path in PAGES.items():
                    if changes:
                        running.change(changes)
                    taken[name].append(running.scrape("gzip", path))
            table(f"{IMAGES} images, {what}, {ROUNDS} rounds", taken)


def beside() -> None:
    """Take pages while another client scrapes again and again, and 20 images change before each page."""
    with server() as running:
        over, scrapes = threading.Event(), list[float]()

        def scrape_on() -> None:
            taker = scrape.Taker(running.port)
            while not over.is_set():
                began = time.perf_counter()
                taker.take("gzip")
                scrapes.append(1000 * (time.perf_counter() - began))

        client = threading.Thread(target=scrape_on)
        client.start()
        found = []
        for _ in range(3 * ROUNDS):
            running.change(20)
            found.append(1000 * running.scrape("gzip", "/").wall)
        over.set()
        client.join()
    rows = {
        "page, median, ms": f"{statistics.median(found):.1f}",
        "page, worst, ms": f"{max(found):.1f}",
        "scrape, median, ms": f"{statistics.median(scrapes):.1f}",
        "scrapes meanwhile": f"{len(scrapes)}",
    }
    polling.table(f"{IMAGES} images, {len(found)} pages beside scrapes without a pause", rows)


PARTS: dict[str, Callable[[], None]] = {"times": times, "beside": beside}

if __name__ == "__main__":
    polling.run(PARTS, __doc__)
