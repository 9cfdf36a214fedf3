"""Keeps the pauses of the garbage collector short, and gives freed memory back.

A full collection looks at every object and stops all threads: about 0.1 s with 10,000 images, up to once a
second during a first pass. Most objects that survive a full collection are facts in use. They are frozen, so
the next full collections skip them; every ten minutes one collection looks at everything.

A collection of new objects looks at all images of each repository that changed, because the list of them is
new. So such collections are rarer than by default, and full ones about as frequent.

glibc gives each thread an arena of its own, up to eight for each core, and each keeps what it once needed.
One thread at a time has the interpreter here, so more than one arena saves no time.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

#: Seconds between two full collections that also look at frozen objects, because some are garbage by then.
EVERYTHING_EVERY = 600.0

#: The oldest generation; its collection is a full one.
_OLDEST = 2

#: New objects until a collection of them, and how many collections there are for one of each older
#: generation. The default is 700, 10, 10.
THRESHOLDS = (10_000, 3, 1)


def tune_collector(monotonic: Callable[[], float]) -> None:
    """Have the collector of this process look at fewer objects."""
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(Survivors(monotonic))


class Survivors:
    """A callback for `gc.callbacks`: freezes the objects that survive a full collection."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._everything_at = monotonic()

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """The collector calls this at the start and the end of each collection."""
        if info["generation"] < _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif self._monotonic() >= self._everything_at + EVERYTHING_EVERY:
            self._everything_at = self._monotonic()
            gc.unfreeze()


#: Parameters of mallopt (glibc, malloc.h) with their values, and the variables that set them instead.
_MALLOC = (("MALLOC_ARENA_MAX", -8, 1), ("MALLOC_MMAP_THRESHOLD_", -3, 128 << 10))


def share_one_arena() -> None:
    """Use one arena, and give each buffer of 128 KiB or more back as soon as it is freed.

    To be called before threads start. No effect with another C library. The environment's variables win.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for variable, parameter, value in _MALLOC:
            if variable not in os.environ:
                mallopt(parameter, value)
