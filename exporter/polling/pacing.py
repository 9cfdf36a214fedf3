"""When the next call of one registry goes: the due queue and the rate limiter, joined."""

from __future__ import annotations

from collections.abc import Container
from random import Random

from exporter.config.settings import Settings
from exporter.polling.calls import Call, Clock, Job
from exporter.polling.queue import PROBE_TIMEOUT, DueQueue
from exporter.polling.rate_limit import Operation, RateLimiter
from exporter.replication.model import ImageState

#: An unfinished replication is asked for again after this part of its age: 40 calls in the first hour.
PENDING_BACKOFF = 1 / 8
#: Seconds after a probe without a result until the next one is sent.
PROBE_PAUSE = 1.0


class Pacing:
    """What is due in one registry, and when AWS may be asked for it. All times are monotonic seconds."""

    def __init__(self, *, clock: Clock, random: Random, settings: Settings) -> None:
        self._clock = clock
        self._random = random
        self._queue: DueQueue[Job] = DueQueue()
        self._limiter = RateLimiter(settings.requests_per_second, now=clock.monotonic())
        self._paused_until: float | None = None
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take the intervals and the rate of a configuration."""
        self.settings = settings
        self._limiter.configure(settings.requests_per_second)

    @property
    def rate(self) -> float:
        """Calls a second that the registry is allowed now."""
        return self._limiter.rate(self._clock.monotonic())

    @property
    def throttled(self) -> bool:
        """Whether AWS throttled a call lately."""
        return bool(self._limiter.throttled(self._clock.monotonic()))

    def interval(self, state: ImageState, *, age: float) -> float:
        """Seconds until the next status call for an image in this state.

        `age` is how long its replication has been going on. While it is PENDING, the interval grows with the
        age, from `pending_interval` to `failed_interval`.
        """
        settings = self.settings
        if state is ImageState.SETTLED:
            return settings.settled_interval
        if state is ImageState.PENDING:
            return max(settings.pending_interval, min(PENDING_BACKOFF * age, settings.failed_interval))
        return settings.failed_interval

    def book(self, job: Job, *, due: float | None = None, rank: float | None = 0.0) -> None:
        """Ask for the job at a time, now by default. A greater rank goes earlier; None is in no hurry."""
        due = self._clock.monotonic() if due is None else due
        # The scope is a string that the job has already: an object of its own costs 80 bytes an image.
        scope = job.repository if job.operation is Operation.STATUS else None
        self._queue.book(job, due=due, operation=job.operation, rank=rank, scope=scope)

    def cancel(self, job: Job) -> None:
        """Do not ask for the job."""
        self._queue.cancel(job)

    def due(self, job: Job) -> float | None:
        """When the job is due; None if nothing asks for it. For any thread."""
        return self._queue.due(job)

    def later(self, seconds: float, *, spread: float = 0.1) -> float:
        """The time in so many seconds, or up to that part earlier, so that calls drift apart.

        An interval is never lengthened, because it is a promise.
        """
        return self._clock.monotonic() + seconds * self._random.uniform(1.0 - spread, 1.0)

    def take(self, in_flight: Container[Job], *, listings: bool = True) -> Job | float:
        """The job to ask for now, which is due no longer then; or the time of the next try.

        Without `listings`, none of images is taken.
        """
        now = self._clock.monotonic()
        if self._paused_until is not None and now < self._paused_until:
            return self._paused_until
        ready = [each for each in self._queue.ready(now) if listings or each is not Operation.IMAGES]
        tokens = {operation: self._limiter.next_at(operation, now) for operation in ready}
        operations = [operation for operation, at in tokens.items() if at <= now]
        while operations and (job := self._queue.take(now, operations)):
            # A job that is in flight is booked again when its call comes back.
            if job not in in_flight:
                self._limiter.take(job.operation, now)
                if self._paused_until is not None:
                    self._paused_until = now + PROBE_TIMEOUT
                return job
        return min([self._queue.next_at(now), *tokens.values()])

    def answered(self, call: Call, *, throttled: bool) -> None:
        """Learn the rate that AWS allows from a call that came back."""
        now = self._clock.monotonic()
        self._limiter.answered(call.job.operation, refused=throttled, sent=call.sent_at, now=now)

    def overdue_since(self) -> float | None:
        """Since when the oldest due job waits for the rate limiter; None if none waits."""
        return self._queue.oldest_due(self._clock.monotonic()) if self._paused_until is None else None

    def hold(self, repository: str, *, until: float) -> None:
        """Keep back the status calls of a repository, except for a probe at that time."""
        self._queue.hold(repository, until=until)

    def probe_again(self, job: Job) -> None:
        """If the job was the probe of a repository that is held, send another one soon."""
        self._queue.probe_again(job.repository, at=self._clock.monotonic() + PROBE_PAUSE)

    def release(self, repository: str) -> None:
        """Let the status calls of a repository go again."""
        self._queue.release(repository)

    def pause(self, *, until: float) -> None:
        """Keep back all calls, except for a probe at that time."""
        self._paused_until = until

    def resume(self) -> None:
        """Let all calls go again."""
        self._paused_until = None
