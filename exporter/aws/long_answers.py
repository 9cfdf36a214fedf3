"""Parses one page of a listing at a time.

botocore makes many objects of a page of 1,000 images. Threads that do so at once are no faster, because one
of them has the interpreter at a time, but the process stays as large as it was then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LONG = ("DescribeImages", "DescribeRepositories")


class LongAnswers:
    """The turns of the threads that parse pages. All methods are for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: `.has_turn` is False from the start of a thread's call until its page is parsed.
        self._here = threading.local()
        self._wait: Callable[[], object] = lambda: None

    def wait_with(self, wait: Callable[[], object]) -> None:
        """Call this before a page is parsed. It may wait for something more urgent."""
        self._wait = wait

    def watch(self, client: Any) -> None:
        """Have a boto3 client of ECR wait for its turn before it parses a page."""
        for operation in _LONG:
            client.meta.events.register(f"before-parse.ecr.{operation}", self._take)

    def _take(self, **_: Any) -> None:
        if not getattr(self._here, "has_turn", True):
            self._wait()
            self._lock.acquire()
            self._here.has_turn = True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The context of one call and of what reads its answer. The turn ends with it."""
        self._here.has_turn = False
        try:
            yield
        finally:
            if self._here.has_turn:
                self._lock.release()
            self._here.has_turn = True
