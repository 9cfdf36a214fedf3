"""How fast ECR is asked: a token bucket whose rate learns what AWS allows.

AWS publishes no rates, shares them with everybody's CI, and changes them. So the rate is found out,
the way TCP finds out what a path carries (CUBIC, RFC 9438): a refusal lowers it to four fifths of what it
was when that call was sent; then it rises again, fast while far below the rate that was refused, slowly
around it, and fast again when that is passed without a refusal. Over 10 calls a second it rises only while
it is used, and never further than the calls that may be under way at once can come to. Times are monotonic
seconds and arguments; nothing here waits.
"""

from __future__ import annotations

import math
from enum import StrEnum

#: What is left of the rate after a refusal that counts.
_KEPT = 0.8
#: The rate is back where it was refused after so many seconds of asking; at small rates after so many
#: calls, so that not every few of them is refused, but no later than that.
_RETURN_SECONDS = 3.0
_RETURN_CALLS = 60.0
_RETURN_LATEST = 20.0
#: Within that, no sooner than so many times what an answer takes: it would run away meanwhile.
_RETURN_LATENCIES = 4.0
#: For so many seconds after a cut refusals are only counted: they come in flocks.
_SETTLING = 0.5
#: If more than this share was refused then, the cut was too small, and what got through is the measure.
_TOO_MUCH = 0.1
#: Without any refusal so far, the rate begins here and doubles every second of asking until it is as
#: configured; one that begins lower doubles in so many calls. Up to here a rate rises though it is not used.
_FIRST_RATE = 10.0
#: A refusal among so few first answers says that somebody else was greedy, not what the rate may be.
_FIRST_ANSWERS = 10
_LEAST_RATE = 0.2
#: A rate is used as long as no more tokens are lost than so many for each that is taken.
_SPARE = 0.5
#: Who asks now, and how much, is told by about so many of the latest answers.
_LATEST = 64.0
#: If one operation is throttled alone, at most so many of all refusals are expected to meet another.
_STRAY = 0.02
#: How many times likelier a operation must be throttled alone than with all the others, to be treated so.
#: Chance does that too, now and then, which costs refusals until it is taken back; to wait for more costs
#: all the others their rate.
_LIKELIER = 100.0


class Operation(StrEnum):
    """The kinds of work: each is an operation of ECR, and AWS may throttle one and not the others."""

    REGISTRY = "registry"  # whose registry it is, and its rules
    REPOSITORIES = "repositories"
    IMAGES = "images"
    STATUS = "status"  # how the replication of one image goes


class Rate:
    """Calls a second, learnt from refusals; never above the ceiling.

    Until the first refusal it rises from `begin`, the rate at which calls were made so far, if there is one.
    A call at the rate R is 1/R seconds of asking. Calls that use little of the rate do not raise it, or it
    would come to what nobody has tried; TCP leaves a window alone that is not used, too (RFC 7661). Nor does
    it rise beyond what `at_once` calls under way at once can come to, as answers take their time.
    """

    def __init__(self, ceiling: float, *, at_once: float = math.inf, begin: float | None = None) -> None:
        self._ceiling = ceiling
        self.at_once = at_once
        #: How many seconds answers take.
        self._latency = 0.0
        self._begin = min(ceiling, _FIRST_RATE if begin is None else begin)
        #: The rate found to be too much at the last cut; None before the first.
        self._refused_at: float | None = None
        #: How many times, since the last cut, the rate could have doubled, or come back to what was refused.
        self._turns = 0.0
        self._rose_at = float("-inf")
        self._cut_at = float("-inf")
        self._settling = False
        #: Since the last cut: answers, and how many of them were refusals.
        self._answers = 0
        self._refusals = 0
        #: Whether the first refusal is still to come, and may be somebody else's fault.
        self._beginning = begin is None
        self._now = self._learnt()

    def __call__(self) -> float:
        """The rate now."""
        return self._now

    @property
    def ceiling(self) -> float:
        """The most that it may be; another one may be set at any time."""
        return self._ceiling

    @ceiling.setter
    def ceiling(self, ceiling: float) -> None:
        self._ceiling = ceiling
        self._now = self._learnt()

    def _learnt(self) -> float:
        if self._refused_at is None:
            return min(self._ceiling, self._begin * math.exp2(min(self._turns, 64.0)))
        way = self._turns - 1.0
        curve = 1.0 + (1.0 - _KEPT) * way * way * way
        return min(self._ceiling, max(_LEAST_RATE, self._refused_at * curve))

    def taken(self, now: float, *, used: bool) -> None:
        """A call is made; `used` says whether most of the rate is."""
        rate = self._now
        most = min(self._ceiling, self._within_reach())  # or higher ones would be jumped to
        if rate < most and (used or rate < _FIRST_RATE):
            self._turns += 1.0 / (rate * self._turn(rate))
            self._now = self._learnt()
            self._rose_at = now

    def _within_reach(self) -> float:
        """What calls come to that take so long, if as many as can be are under way (Little's law)."""
        return self.at_once / self._latency if self._latency else math.inf

    def _turn(self, rate: float) -> float:
        """How many seconds of asking at a rate let it double, or come back to what was refused."""
        if self._refused_at is None:
            return max(1.0, _FIRST_RATE / rate)
        patience = max(_RETURN_CALLS / rate, _RETURN_LATENCIES * self._latency)
        return min(_RETURN_LATEST, max(_RETURN_SECONDS, patience))

    def answered(self, *, refused: bool, sent: float, now: float) -> None:
        """A call that was sent at a time was answered, or refused for being one too many."""
        # Told by as many answers as come in a second at this rate, or the last few; the first counts at once.
        self._latency += (now - sent - self._latency) / (max(8.0, self._now) if self._latency else 1.0)
        if sent < self._cut_at:
            return  # it was on its way before the rate changed
        if self._settling and now >= self._cut_at + _SETTLING:
            self._settling = False
            if self._refusals > 1 and self._refusals > _TOO_MUCH * self._answers:
                self._cut(max(0.3, 1.0 - self._refusals / self._answers), now)
                return
        self._answers += 1
        self._refusals += refused
        if refused and not self._settling:
            self._step_back(sent)
            self._cut(_KEPT, now)

    def _step_back(self, sent: float) -> None:
        """Have the rate be what it was when the call was sent that was one too many, if it rose since.

        By one turn at most: a refusal that took very long is not worth all of the rate.
        """
        rise = max(0.0, self._rose_at - sent) / self._turn(self._now)
        self._turns = max(0.0, self._turns - min(1.0, rise))
        self._now = self._learnt()

    def _cut(self, kept: float, now: float) -> None:
        beginning, self._beginning = self._beginning, False
        self._turns = 0.0
        if not (beginning and self._answers <= _FIRST_ANSWERS):
            tried = min(self._now, self._within_reach())
            self._refused_at = max(_LEAST_RATE, tried * min(1.0, kept / _KEPT))
            self._cut_at = now
            self._settling = True
            self._answers = self._refusals = 0
        self._now = self._learnt()


class Bucket:
    """Tokens at a rate, and never more than a tenth of a second's worth at once."""

    def __init__(self, rate: Rate, *, now: float) -> None:
        self.rate = rate
        self._tokens = 1.0
        #: Whether, since the last token was taken, somebody waits for the next.
        self.is_waited_for = False
        #: Tokens that were lost while nobody waited, less a part of those that were taken since.
        self._spare = 0.0
        self._at = now

    @property
    def is_used(self) -> bool:
        """Whether most of the tokens of the last second or so were taken, or lost while somebody waited."""
        return self._spare < 1.0

    def next_at(self, now: float) -> float:
        """When a token is to be had: `now`, or later."""
        self._refill(now)
        # A wake-up that was computed to the token may come a rounding error early.
        return now if self._tokens >= 1.0 - 1e-9 else now + (1.0 - self._tokens) / self.rate()

    def take(self, now: float) -> None:
        """Take a token that `next_at` promised."""
        self._refill(now)
        self._tokens -= 1.0
        self.is_waited_for = False
        self._spare = max(0.0, self._spare - _SPARE)

    def answered(self, *, refused: bool, sent: float, now: float) -> None:
        """Have the rate learn from a call that was sent at a time."""
        before = self.rate()
        self.rate.answered(refused=refused, sent=sent, now=now)
        if self.rate() < before:
            self._tokens = min(0.0, self._tokens)  # they were saved at a rate that was too much

    def _refill(self, now: float) -> None:
        if now == self._at:
            return
        rate = self.rate()
        most = max(1.0, rate / 10)
        tokens = self._tokens + max(0.0, now - self._at) * rate
        self._tokens = min(most, tokens)
        if not self.is_waited_for:  # or who wakes up late would not use the rate
            # A second of taking all of them makes up for any time of taking none.
            self._spare = min(max(1.0, rate * _SPARE), self._spare + tokens - self._tokens)
        self._at = now


class _Blame:
    """Whom refusals are meant for: if all, each operation meets them as it asks; if one, it meets all.

    Each refusal makes one of the two likelier, by the share of its operation in the latest calls:
    a refusal of who asks once in a while says much, and one of who asks alone says nothing. For each
    the logarithms of these ratios are added up, but never to less than zero (Page's CUSUM test): what was
    counts nothing against what begins now, and it does not matter how far apart refusals come.
    """

    def __init__(self) -> None:
        self._asks = dict.fromkeys(Operation, 0.0)
        self._alone = dict.fromkeys(Operation, 0.0)

    def answered(self, operation: Operation, *, refused: bool) -> None:
        """Count a call of a operation, and whether it was refused."""
        for each, asks in self._asks.items():
            self._asks[each] = asks + ((each is operation) - asks) / _LATEST
        if refused:
            total = sum(self._asks.values())
            for each, asks in self._asks.items():
                share = asks / total
                ratio = (1.0 - _STRAY) / share if each is operation else _STRAY / max(_STRAY, 1.0 - share)
                self._alone[each] = max(0.0, self._alone[each] + math.log(ratio))

    def is_on(self, operation: Operation) -> bool:
        """Whether the operation is so much likelier to be throttled alone than with all the others."""
        return self._alone[operation] >= math.log(_LIKELIER)


class RateLimiter:
    """What one account and Region may be asked: all of it together, and a operation that AWS throttles alone.

    A refusal lowers the rate of everything, unless refusals meet this operation so much more than the others
    that they are likely meant for it: then it gets a rate of its own, and what is left of the whole is for
    the others, whose calls and refusals alone teach how much that is. One whose own rate has come up to
    the whole shares it again.
    """

    def __init__(self, ceiling: float, *, at_once: float = math.inf, now: float) -> None:
        self._all = Bucket(Rate(ceiling, at_once=at_once), now=now)
        self._own: dict[Operation, Bucket] = {}
        self._blame = _Blame()

    @property
    def rate(self) -> float:
        """Calls a second that are allowed now."""
        return self._all.rate()

    def configure(self, ceiling: float) -> None:
        """Another ceiling; what was learnt below it stays."""
        for bucket in (self._all, *self._own.values()):
            bucket.rate.ceiling = ceiling

    def next_at(self, operation: Operation, now: float) -> float:
        """When the operation may make a call, which it wants to: `now`, or later, for which it waits."""
        at = self._all.next_at(now)
        bucket = self._own.get(operation, self._all)
        if bucket is not self._all:
            at = max(at, bucket.next_at(now))
        if at > now:
            bucket.is_waited_for = True
        return at

    def take(self, operation: Operation, now: float) -> None:
        """Make a call, which `next_at` allowed."""
        self._all.take(now)
        bucket = self._own.get(operation, self._all)
        if bucket is not self._all:
            bucket.take(now)
        bucket.rate.taken(now, used=bucket.is_used)

    def answered(self, operation: Operation, *, refused: bool, sent: float, now: float) -> None:
        """Learn from a call that was sent at a time."""
        own = self._own.get(operation)
        (own or self._all).answered(refused=refused, sent=sent, now=now)
        if not own:
            self._blame.answered(operation, refused=refused)
            if refused and self._blame.is_on(operation):
                self._split_off(operation, now)
        for each, bucket in list(self._own.items()):
            if bucket.rate() >= self._all.rate():
                del self._own[each]
                self._blame = _Blame()

    def _split_off(self, operation: Operation, now: float) -> None:
        """Give the operation a rate of its own; the others continue at that of the refused call."""
        self._own[operation] = self._all
        rate = self._all.rate
        self._all = Bucket(Rate(rate.ceiling, at_once=rate.at_once, begin=rate() / _KEPT), now=now)
        self._blame = _Blame()
