"""Pages are parsed one at a time, and a failure leaves the turn to the next thread."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from botocore.hooks import HierarchicalEmitter
from support.command import PATIENCE

from exporter.aws.long_answers import LongAnswers

PARSE = "before-parse.ecr.DescribeImages"


def watched() -> tuple[LongAnswers, Any]:
    events = HierarchicalEmitter()
    answers = LongAnswers()
    answers.watch(SimpleNamespace(meta=SimpleNamespace(events=events)))
    return answers, events


def parse(events: Any) -> None:
    events.emit(PARSE, response_dict={"status_code": 500}, customized_response_dict={}, operation_model=None)


def test_the_turn_lasts_until_the_answer_is_read() -> None:
    answers, events = watched()
    reading, read, order = threading.Event(), threading.Event(), []

    def other() -> None:
        with answers.turn():
            order.append("asks")
            reading.set()
            parse(events)
            order.append("parses")
            read.set()

    with answers.turn():
        parse(events)
        thread = threading.Thread(target=other)
        thread.start()
        assert reading.wait(PATIENCE), "a call needs no turn before its answer is parsed"
        order.append("is read")
    assert read.wait(PATIENCE)
    thread.join()
    assert order == ["asks", "is read", "parses"]


def test_a_failure_ends_the_turn() -> None:
    answers, events = watched()
    for _ in range(2):
        with suppress(ValueError), answers.turn():
            parse(events)  # waits for ever if the turn before did not end
            raise ValueError


def test_other_answers_and_other_threads_need_no_turn() -> None:
    answers, events = watched()
    with answers.turn():
        parse(events)
        done = threading.Event()

        def other() -> None:
            with answers.turn():
                events.emit("before-parse.ecr.DescribeImageReplicationStatus")
            parse(events)  # the command `wait` shares clients with no turns
            done.set()

        thread = threading.Thread(target=other)
        thread.start()
        assert done.wait(PATIENCE)
        thread.join()
