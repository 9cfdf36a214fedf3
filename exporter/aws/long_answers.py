"""Parses one page of a listing at a time, and a page of images as plain JSON.

A page of 1,000 images becomes many objects. Threads that make them at once are no faster, because one of them
has the interpreter at a time, but the process stays as large as it was then.

For JSON, botocore first decodes the page and then builds each value again as the service model says. The
second half takes five times as long as the first, and `aws.parsing` checks the types of what it reads itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_IMAGES = "DescribeImages"
_LONG = (_IMAGES, "DescribeRepositories")


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
        client.meta.events.register(f"before-parse.ecr.{_IMAGES}", _decode)

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


def _decode(
    *,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    operation_model: Any,
    **_: Any,
) -> None:
    """Take the members of an answer out of the body, so that botocore has nothing left to build.

    Anything but an answer in JSON that succeeded is left to botocore.
    """
    if response_dict["status_code"] != 200 or operation_model.service_model.resolved_protocol != "json":
        return
    try:
        answer = json.loads(response_dict["body"])
    except ValueError:
        return
    if isinstance(answer, dict):
        customized_response_dict |= {
            member: answer[member] for member in operation_model.output_shape.members if member in answer
        }
        response_dict["body"] = b"{}"
