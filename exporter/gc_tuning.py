"""Keeps the pauses of the garbage collector short.

A full collection looks at every object and stops all threads: about 0.1 s with 10,000 images, up to once a
second during a first pass. Most objects that survive a full collection are facts in use. They are frozen, so
the next full collections skip them; every ten minutes one collection looks at everything.

A collection of new objects looks at all images of each repository that changed, because the list of them is
new. So such collections are rarer than by default, and full ones about as frequent.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

#: Seconds between two full collections that also look at frozen objects, because some are garbage by then.
EVERYTHING_EVERY = 600.0

#: The oldest generation; its collection is a full one.
_OLDEST = 2


#: New objects until a collection of them, and how many collections there are for one of each older
#: generation. The default is 700, 10, 10.
THRESHOLDS = (10_000, 3, 1)


def install(monotonic: Callable[[], float]) -> None:
    """Tune the collector of this process."""
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
