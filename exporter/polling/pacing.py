"""When the next call of one registry goes: the due queue and the rate limiter, joined."""

from __future__ import annotations

from collections.abc import Container
from random import Random

from exporter.config.settings import Settings
from exporter.polling.backoff import spread
from exporter.polling.calls import OPERATIONS, Call, Clock, Job, Kind
from exporter.polling.queue import DueQueue, Intervals
from exporter.polling.rate_limit import RateLimiter

#: Seconds after a probe without a result until the next one is sent.
PROBE_PAUSE = 1.0


class Pacing:
    """What is due in one registry, and when AWS may be asked for it. All times are monotonic seconds."""

    def __init__(self, *, clock: Clock, random: Random, settings: Settings) -> None:
        self._clock = clock
        self._random = random
        self._queue: DueQueue[Job] = DueQueue()
        self._limiter = RateLimiter(settings.requests_per_second, now=clock.monotonic())
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take the intervals and the rate of a configuration."""
        self._limiter.configure(settings.requests_per_second)
        self.stale_after = settings.stale_after
        self.intervals = Intervals(
            discovery=settings.discovery_interval,
            pending=settings.pending_interval,
            failed=settings.failed_interval,
            settled=settings.settled_interval,
        )

    @property
    def rate(self) -> float:
        """Calls a second that the registry is allowed now."""
        return self._limiter.rate

    def book(self, job: Job, *, due: float | None = None, rank: float | None = 0.0) -> None:
        """Ask for the job at a time, now by default. A greater rank goes earlier; None is in no hurry."""
        due = self._clock.monotonic() if due is None else due
        # The scope is a string that the job has already: an object of its own costs 80 bytes an image.
        scope = job.repository if job.kind is Kind.STATUS else None
        self._queue.book(job, due=due, operation=OPERATIONS[job.kind], rank=rank, scope=scope)

    def cancel(self, job: Job) -> None:
        """Do not ask for the job."""
        self._queue.cancel(job)

    def later(self, seconds: float) -> float:
        """The time in so many seconds, or up to a tenth earlier, so that calls drift apart."""
        return self._clock.monotonic() + spread(seconds, self._random)

    def some_time(self, seconds: float) -> float:
        """A random time in the interval that begins now."""
        return self._clock.monotonic() + seconds * self._random.random()

    def take(self, in_flight: Container[Job]) -> Job | float:
        """The job to ask for now, which is due no longer then; or the time of the next try."""
        now = self._clock.monotonic()
        tokens = {operation: self._limiter.next_at(operation, now) for operation in self._queue.ready(now)}
        operations = [operation for operation, at in tokens.items() if at <= now]
        while operations and (job := self._queue.take(now, operations)):
            # A job that is under way is booked again when its call comes back.
            if job not in in_flight:
                self._limiter.take(OPERATIONS[job.kind], now)
                return job
        return min([self._queue.next_at(now), *tokens.values()])

    def answered(self, call: Call, *, throttled: bool) -> None:
        """Learn the rate that AWS allows from a call that came back."""
        now = self._clock.monotonic()
        operation = OPERATIONS[call.job.kind]
        self._limiter.answered(operation, refused=throttled, sent=call.sent_at, now=now)

    def overdue_since(self) -> float | None:
        """Since when the oldest due job waits for the rate limiter; None if none waits."""
        return self._queue.oldest_due(self._clock.monotonic())

    def hold(self, repository: str, *, until: float) -> None:
        """Keep back the status calls of a repository, except for a probe at that time."""
        self._queue.hold(repository, until=until)

    def probe_again(self, job: Job) -> None:
        """If the job was the probe of a repository that is held, send another one soon."""
        soon = self._clock.monotonic() + PROBE_PAUSE
        self._queue.probe_again(job.repository, at=soon)

    def release(self, repository: str) -> None:
        """Let the status calls of a repository go again."""
        self._queue.release(repository)

    def pause(self, *, until: float) -> None:
        """Keep back all calls, except for a probe at that time."""
        self._queue.pause(until=until)

    def resume(self) -> None:
        """Let all calls go again."""
        self._queue.resume()
