"""Credentials that end: who renews them, and how long they are used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from exporter.aws.credentials import RENEW_BEFORE, Lease, Loan


def test_one_thread_renews_and_the_others_go_on() -> None:
    now, asked, answered = [0.0], threading.Event(), threading.Event()
    loans = [Loan("second", "x", None, ends_at=7200.0), Loan("first", "x", None, ends_at=3600.0)]

    def borrow() -> Loan:
        if now[0]:
            asked.set()
            assert answered.wait(10)
        return loans.pop()

    lease = Lease(borrow, clock=lambda: now[0])
    assert lease.current().access_key == "first"
    now[0] = 3600.0 - RENEW_BEFORE
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(lease.current)
        assert asked.wait(10)
        assert lease.current().access_key == "first"
        answered.set()
        assert renewing.result(10).access_key == "second"
    assert lease.current().access_key == "second"
