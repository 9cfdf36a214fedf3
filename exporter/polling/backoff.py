"""How long to wait: random shortening of intervals, and exponential back-off after failures."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


def spread(interval: float, random: Random) -> float:
    """Return the interval in seconds, shortened by up to a tenth at random.

    Calls that start together drift apart. An interval is never lengthened, because it is a promise.
    """
    return interval * random.uniform(0.9, 1.0)


@dataclass(slots=True)
class Backoff:
    """Delays after consecutive failures: they double from `base` to `cap` seconds."""

    base: float = 1.0
    cap: float = 60.0
    failures: int = 0

    def failed(self, random: Random) -> float:
        """Count a failure and return the seconds to wait; the second half of the delay is random."""
        longest = min(self.cap, self.base * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return longest * random.uniform(0.5, 1.0)
