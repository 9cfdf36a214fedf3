"""The threads that make calls."""

from __future__ import annotations

import threading

import pytest
from support.command import eventually

from exporter.aws.timeouts import Deadline
from exporter.polling.workers import Pause, ThreadPool


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many more threads the test can start, as the first and only element."""
    left, here = [0], threading.current_thread()
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if threading.current_thread() is here:
            if left[0] <= 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return left


def test_workers_make_do_with_the_threads_that_there_are(room: list[int]) -> None:
    workers = ThreadPool("test", limit=4)
    done = threading.Semaphore(0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        workers.submit(done.release)
    room[0] = 1
    for _ in range(50):
        workers.submit(done.release)
    assert all(done.acquire(timeout=5) for _ in range(50))
    assert room[0] == 0
    room[0] = 100
    together = threading.Barrier(5)

    def meet() -> None:
        together.wait(5)

    for _ in range(4):
        workers.submit(meet)
    assert together.wait(5) in range(5)
    assert room[0] == 97, "four threads in all"
    workers.close()


def test_a_deadline_without_a_thread_is_kept_once_there_is_one(room: list[int]) -> None:
    deadline = Deadline(0.5)
    with deadline() as unwatched:
        assert not unwatched.late
        room[0] = 1
        with deadline() as call:
            eventually(lambda: call.late and unwatched.late, within=5)


def test_a_pause_holds_calls_back_until_it_ends() -> None:
    pause, made, finished = Pause(limit=30), threading.Event(), threading.Event()
    workers = ThreadPool("test", pause=pause)
    with pause.held():
        workers.submit(made.set)
        assert not made.wait(0.1)
    assert made.wait(5)
    workers.submit(finished.set)
    assert finished.wait(5)
    workers.close()


def test_a_pause_that_does_not_end_holds_no_call_back_for_long() -> None:
    pause, made = Pause(limit=0.05), threading.Event()
    workers = ThreadPool("test", pause=pause)
    with pause.held():
        workers.submit(made.set)
        assert made.wait(5)
    workers.close()
