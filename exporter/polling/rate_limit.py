"""How fast ECR is asked: one ceiling for all calls, and one AIMD token bucket for each operation.

AWS publishes no rates, and it shares them with every other client of the account. So each operation
learns its rate, as TCP does. A call that AWS throttles lowers the rate of its operation by a fifth
(multiplicative decrease). Calls that have to wait for a token raise it steadily (additive increase).
Before the first refusal, and when the rate is clearly above the last refused one, it doubles instead.
Times are monotonic seconds and arguments; nothing here waits.
"""

from __future__ import annotations

from enum import StrEnum

FIRST_RATE = 10.0  # calls per second at the start, if the ceiling allows it
LEAST_RATE = 0.2  # goes on asking, so that the end of throttling is noticed
KEPT = 0.8  # the share of the rate that stays after a refusal
CUT_PAUSE = 0.5  # seconds between two cuts, because refusals come in groups
STEP = 0.05  # the additive increase per second, as a share of the rate that was refused last
FULL_STEP_RATE = 8.0  # below it the step is smaller, down to an eighth, so that few calls are refused
PASSED = 1.2  # above the refused rate times this, the allowance has grown: the rate doubles again
#: Seconds in which the rate doubles: until the first refusal, and later. Below FIRST_RATE it takes ten calls.
FIRST_DOUBLING, DOUBLING = 1.0, 4.0
#: A cut keeps the share of calls granted since the last cut, if less than KEPT; it counts 4 more as granted.
BENEFIT = 4
CALM = 300.0  # seconds without a refusal until an operation no longer counts as throttled


class Operation(StrEnum):
    """What can be asked. AWS throttles each operation on its own."""

    REGISTRY = "registry"  # the account and its replication rules
    ACCOUNT = "account"  # whose credentials these are (STS)
    REPOSITORIES = "repositories"
    IMAGES = "images"
    REPLICAS = "replicas"  # the images of a destination
    STATUS = "status"  # the replication status of one image
    BACKFILLS = "backfills"
    SETTINGS = "settings"  # of all repositories


class _Bucket:
    """A token bucket that holds a tenth of a second of tokens, and at least one."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._tokens = 1.0
        self._at = now

    def next_at(self, now: float) -> float:
        """Return the time at which a token is available: `now` or later."""
        self._refill(now)
        # A timer may fire a rounding error before the token is complete.
        return now if self._tokens >= 1.0 - 1e-9 else now + (1.0 - self._tokens) / self.rate

    def take(self, now: float) -> None:
        """Take a token that `next_at` promised."""
        self._refill(now)
        self._tokens -= 1.0

    def _refill(self, now: float) -> None:
        gained = max(0.0, now - self._at) * self.rate
        self._tokens = min(max(1.0, self.rate / 10), self._tokens + gained)
        self._at = now


class _LearningBucket(_Bucket):
    """A token bucket with an AIMD rate. Only calls that wait for a token raise it."""

    def __init__(self, ceiling: float, now: float) -> None:
        super().__init__(min(ceiling, FIRST_RATE), now)
        self.ceiling = ceiling
        self.refused_at = float("-inf")
        self._refused_rate: float | None = None
        self._cut_at = float("-inf")
        self._taken_at = now
        self._waited = False
        self._answers = self._granted = 0

    def next_at(self, now: float) -> float:
        at = super().next_at(now)
        self._waited = self._waited or at > now
        return at

    def take(self, now: float) -> None:
        if self._waited:
            # Without the limit, a call that is cancelled while it waits would count as a long wait.
            self._rise(min(now - self._taken_at, max(1.0, 2.0 / self.rate)))
        super().take(now)
        self._taken_at = now
        self._waited = False

    def _rise(self, seconds: float) -> None:
        refused = self._refused_rate
        if refused is None or self.rate > PASSED * refused:
            doubling = FIRST_DOUBLING if refused is None or self.rate < FIRST_RATE else DOUBLING
            rate = self.rate * 2.0 ** (seconds / doubling * min(1.0, self.rate / FIRST_RATE))
        else:
            slower = max(0.125, min(1.0, refused / FULL_STEP_RATE))
            rate = self.rate + STEP * slower * refused * seconds
        self.rate = min(self.ceiling, rate)

    def answered(self, *, refused: bool, sent: float, now: float) -> None:
        """Lower the rate after a refusal, unless the call was sent before the last change took effect."""
        if sent >= self._cut_at:
            self._answers += 1
            self._granted += not refused
        if refused:
            self.refused_at = now
            if sent >= self._cut_at and now >= self._cut_at + CUT_PAUSE:
                self._cut(now)

    def _cut(self, now: float) -> None:
        kept = min(KEPT, (self._granted + BENEFIT) / (self._answers + BENEFIT))
        self._refused_rate = self.rate
        self.rate = min(self.ceiling, max(LEAST_RATE, kept * self.rate))
        self._tokens = min(0.0, self._tokens)
        self._cut_at = now
        self._answers = self._granted = 0


class RateLimiter:
    """The call rate of one account and Region: a ceiling for all calls, and a learnt rate per operation."""

    def __init__(self, ceiling: float, *, now: float) -> None:
        self._all = _Bucket(ceiling, now)
        self._operations = {operation: _LearningBucket(ceiling, now) for operation in Operation}

    def rate(self, now: float) -> float:
        """Calls per second: the rate of the most throttled operation, or the highest if none is throttled."""
        buckets = self._operations.values()
        return min(self.throttled(now), default=max(bucket.rate for bucket in buckets))

    def throttled(self, now: float) -> list[float]:
        """The rates of the operations of which a call was refused within the last CALM seconds."""
        return [b.rate for b in self._operations.values() if now <= b.refused_at + CALM]

    def configure(self, ceiling: float) -> None:
        """Set another ceiling in calls per second. Learnt rates below it stay."""
        self._all.rate = ceiling
        for bucket in self._operations.values():
            bucket.ceiling = ceiling
            bucket.rate = min(bucket.rate, ceiling)

    def next_at(self, operation: Operation, now: float) -> float:
        """Return when a call that is due may be made: `now` or later."""
        return max(self._all.next_at(now), self._operations[operation].next_at(now))

    def take(self, operation: Operation, now: float) -> None:
        """Count a call that `next_at` allowed."""
        self._all.take(now)
        self._operations[operation].take(now)

    def answered(self, operation: Operation, *, refused: bool, sent: float, now: float) -> None:
        """Learn from the end of a call; `refused` says that ECR throttled it, `sent` when it was made."""
        self._operations[operation].answered(refused=refused, sent=sent, now=now)
