"""Garbage, looked for where it is likely to be, so that nobody waits long for that.

A full collection looks at every object there is, and nobody else runs meanwhile: a tenth of a second
with ten thousand images, as often as once a second while they are asked about. What survives one is in
use, and facts stay in use: so the next ones leave it alone, and seldom one looks at everything.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

#: Seconds after which a full collection looks at what survived others, too: some of it is garbage by now.
EVERYTHING_EVERY = 600.0

#: Of the collector; a collection of the oldest one is a full one.
_OLDEST = 2


class Survivors:
    """One of `gc.callbacks`: keeps what survives a full collection out of those that follow."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._everything_at = monotonic()

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """A collection begins, or ends."""
        if info["generation"] < _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif self._monotonic() >= self._everything_at + EVERYTHING_EVERY:
            self._everything_at = self._monotonic()
            gc.unfreeze()
