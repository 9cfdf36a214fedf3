"""What is asked of the process while it runs: by signals, over HTTP, and by its own loop."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Mapping
from enum import Enum
from queue import SimpleQueue

#: Seconds from an order to end until the process ends, whatever hangs.
LONGEST_END = 4.5


class Order(Enum):
    RELOAD = "reload"
    STOP = "stop"
    #: By a loop that cannot go on.
    GIVE_UP = "give up"


#: The exit codes of the orders to end.
CODES: Mapping[Order, int] = {Order.STOP: 0, Order.GIVE_UP: 1}

#: What each signal asks for.
_SIGNALS: Mapping[int, Order] = {
    signal.SIGTERM: Order.STOP,
    signal.SIGINT: Order.STOP,
    signal.SIGHUP: Order.RELOAD,
}


class Orders:
    """A queue of orders; once one of them is to end, the process does, in time and come what may."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Order] = SimpleQueue()
        self._code: SimpleQueue[int] = SimpleQueue()

    def start(self) -> None:
        """Be ready to end the process: when that is asked, there may be no room for another thread.

        Raises RuntimeError if there is none even now.
        """
        threading.Thread(target=self._end, name="end", daemon=True).start()

    def give(self, order: Order) -> None:
        """Any thread; at once."""
        self._given.put(order)
        if order in CODES:
            self._code.put(CODES[order])

    def take(self) -> Order:
        """The next one; waits until there is one."""
        return self._given.get()

    def _end(self) -> None:
        code = self._code.get()
        threading.Event().wait(LONGEST_END)
        os._exit(code)


def take_signals(orders: Orders) -> None:
    """Have signals give orders from now on, those too that were held back until now. In the main thread.

    Python runs handlers in the main thread alone, and does not wake it where it waits if another thread
    took the signal. But each signal's number is written at once to whatever `set_wakeup_fd` names.
    Raises RuntimeError if there can be no thread.
    """
    numbers, wakeup = socket.socketpair()
    wakeup.setblocking(False)

    def pass_on(_kept: socket.socket) -> None:
        while received := numbers.recv(64):
            for number in received:
                if number in _SIGNALS:
                    orders.give(_SIGNALS[number])

    threading.Thread(target=pass_on, args=(wakeup,), name="signals", daemon=True).start()
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def leave_signals() -> None:
    """Have signals end the process at once, as by default; Python's own way with SIGINT is a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
