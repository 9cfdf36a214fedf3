"""Keeps the pauses of the garbage collector short.

A full collection looks at every object and stops all threads: about 0.1 s with 10,000 images, up to once a
second during a first pass. Most objects that survive a full collection are facts in use. They are frozen, so
the next full collections skip them; every ten minutes one collection looks at everything.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

#: Seconds between two full collections that also look at frozen objects, because some are garbage by then.
EVERYTHING_EVERY = 600.0

#: The oldest generation; its collection is a full one.
_OLDEST = 2


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
