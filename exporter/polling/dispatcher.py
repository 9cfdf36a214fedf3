"""The calls of one registry: which goes next, and which asker takes how it ends.

No threads and no waiting here. The poller takes a call from `next_call`, has it made, and hands the result
to `answered` or `failed`, all on its loop thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from exporter.aws.errors import ECRError
from exporter.polling.calls import LOST_AFTER, Call, Job, call_lost, unusable
from exporter.polling.context import Asker, Context, requested_pause
from exporter.polling.reach import Reach
from exporter.polling.workers import MAX_HANDED_OUT
from exporter.replication.model import Reason

#: Seconds until a call about the whole registry that was throttled is made again.
THROTTLED_PAUSE = 1.0
#: Failures that answer the question: there is no such thing.
_ANSWERS = (Reason.REPOSITORY_NOT_FOUND, Reason.IMAGE_NOT_FOUND)


class Dispatcher(ABC):
    """Hands out the calls of one registry within its budget, and the results to its askers."""

    #: Calls that workers have at once.
    most_calls: ClassVar[int] = MAX_HANDED_OUT

    def __init__(self, context: Context) -> None:
        self._context = context
        self.facts = context.facts
        self.pacing = context.pacing
        self._reach = Reach(context)

    @abstractmethod
    def record(self) -> float:
        """Record what the last answers and the time mean; when to do so again (monotonic)."""

    @abstractmethod
    def reloaded(self) -> None:
        """Take that the configuration was loaded again, even if it is the same."""

    @abstractmethod
    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""

    @abstractmethod
    def _asker(self, job: Job) -> Asker | None:
        """What asks for a job and takes the answer; None if it is asked for no longer."""

    def next_call(self) -> Call | float:
        """A call to make now, in any thread; or the monotonic time at which there may be one."""
        shared = self._context.shared
        job = self.pacing.take(self._context.in_flight, listings=not shared.turns.behind)
        if not isinstance(job, Job):
            return job
        asker = self._asker(job)
        if asker is None:
            raise AssertionError(f"{job} is due, and nothing asks for it")
        access = asker.choice.access
        make = asker.question(job, self._context.clients[access])
        call = Call(job, access, shared.clock.monotonic(), make)
        self._context.in_flight[job] = call
        return call

    def answered(self, call: Call, answer: Any) -> None:
        """Take an answer. What cannot be understood counts as a failed call."""
        if not self._came_back(call):
            return
        self._reach.answered(call)
        self._heard()
        asker = self._asker(call.job)
        if asker is None:
            return  # the repository is gone
        asker.choice.worked()
        try:
            asker.answered(call, answer)
        except ECRError as error:
            asker.failed(call, error)
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            asker.failed(call, unusable(error))

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. What is known is kept, and the job is booked again."""
        if not self._came_back(call):
            return
        job, dealt_with = call.job, self._reach.failed(call, error)
        if error.reason in _ANSWERS:
            self._heard()
        asker = self._asker(job)
        if asker is None:
            return  # the repository is gone
        refused = error.reason is Reason.ACCESS_DENIED or error.everything
        if dealt_with:
            pause = requested_pause(error)
            due = self.pacing.later(THROTTLED_PAUSE) if not job.repository else 0.0
            asker.ask_again(job, due=max(due, self._context.shared.clock.monotonic() + pause))
            self.pacing.probe_again(job)
        elif refused and asker.choice.refused(call.access):
            asker.ask_again(job)
            self.pacing.probe_again(job)
        else:
            asker.failed(call, error)

    def time_passes(self) -> None:
        """Take that calls failed which are in flight for LOST_AFTER, and that throttling ended."""
        self._reach.calm_down()
        sent_before = self._context.shared.clock.monotonic() - LOST_AFTER
        # They are in the order in which they were sent.
        while (call := next(iter(self._context.in_flight.values()), None)) and call.sent_at <= sent_before:
            self.failed(call, call_lost())

    def _heard(self) -> None:
        """Note that AWS answered."""
        if self.facts.heard_at == float("inf"):
            with self._context.shared.store.lock:
                self.facts.heard_at = self._context.shared.clock.monotonic()

    def _came_back(self, call: Call) -> bool:
        """Stop to wait for a call; False if it was lost, so that it counted already."""
        if self._context.in_flight.get(call.job) is not call:
            return False
        del self._context.in_flight[call.job]
        return True
