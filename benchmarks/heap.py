"""`make bench-heap`: where the bytes of an image are, by type of object.

The real command watches 10,000 images at three destinations, and then 40. A hook in the process counts all
objects and their sizes (`gc` and `sys.getsizeof`); the difference is what the images need. With `--baseline`
another checkout is counted in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from fast_ecr import PARTNER
from polling import HERE, PATIENCE, UNBOUNDED, ecr, eventually, exporter, get

#: Counts on SIGUSR1. Frozen objects are not among those that the collector lists, and it does not follow
#: tuples and dicts of plain values, so these are searched.
HOOK = """
import collections, gc, json, os, signal, sys

def count(*_):
    gc.unfreeze()
    gc.collect()
    found = collections.defaultdict(lambda: [0, 0])
    seen, left = set(), gc.get_objects()
    while left:
        each = left.pop()
        if id(each) in seen or each is found or each is seen:
            continue
        seen.add(id(each))
        of_type = found[type(each).__name__]
        of_type[0] += 1
        of_type[1] += sys.getsizeof(each)
        if type(each).__module__ != "weakref":
            left.extend(referent for referent in gc.get_referents(each) if id(referent) not in seen)
    path = os.environ["HEAP_FILE"]
    with open(path + ".part", "w") as file:
        json.dump(found, file)
    os.replace(path + ".part", path)

if "exporter" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, count)
"""
MANY, FEW = 10_000, 40
Heap = Mapping[str, tuple[int, int]]


def heap(images: int, home: Path) -> Heap:
    """The number and the bytes of the objects of each type, when all images are settled and were scraped."""
    config = UNBOUNDED
    if home == HERE.parent:  # the baseline does not know the key
        config += f'destinations: [{{registry_id: "{PARTNER}"}}]\n'
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(HOOK)
        found = Path(folder, "heap.json")
        os.environ |= {"PYTHONPATH": folder, "HEAP_FILE": str(found)}
        with ecr(images=images) as server, exporter(server, config, home=home) as running:
            eventually(lambda: running.settled() >= images, within=images / 50 + PATIENCE, every=1.0)
            threading.Event().wait(5)
            get(f"{running.url}/metrics", compressed=True)
            running.process.send_signal(signal.SIGUSR1)
            eventually(found.exists, within=PATIENCE, every=0.5)
            return {name: (number, size) for name, (number, size) in json.loads(found.read_text()).items()}


def an_image(home: Path) -> dict[str, tuple[float, float]]:
    """Objects and bytes an image, by type."""
    many, few = heap(MANY, home), heap(FEW, home)
    images = MANY - FEW
    found = {}
    for name, (number, size) in many.items():
        other = few.get(name, (0, 0))
        found[name] = ((number - other[0]) / images, (size - other[1]) / images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, help="another checkout with its own .venv")
    parser.add_argument("--least", type=float, default=4.0, help="bytes an image of the types in the table")
    flags = parser.parse_args()
    homes = [HERE.parent, *([flags.baseline.resolve()] if flags.baseline else [])]
    heaps = [an_image(home) for home in homes]
    types = sorted({name for each in heaps for name in each}, key=lambda name: -heaps[0].get(name, (0, 0))[1])
    print(f"\nObjects and bytes an image, 3 destinations: {' | '.join(str(home.name) for home in homes)}")
    for name in types:
        cells = [each.get(name, (0.0, 0.0)) for each in heaps]
        if any(size >= flags.least for _, size in cells):
            print(f"  {name:<24}" + "".join(f"{number:9.2f} {size:9.1f}" for number, size in cells))
    sums = [sum(size for _, size in each.values()) for each in heaps]
    print(f"  {'all types':<24}" + "".join(f"{size:19.1f}" for size in sums))


if __name__ == "__main__":
    main()
