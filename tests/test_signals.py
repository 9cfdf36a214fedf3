"""Signals reach the real command, however busy it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command import PATIENCE, eventually, running


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux, where threads have ids")
def test_a_signal_counts_whichever_thread_takes_it(tmp_path: Path) -> None:
    with running(tmp_path, "--demo") as command:
        main = command.process.pid
        threads = [int(thread.name) for thread in Path(f"/proc/{main}/task").iterdir()]
        other = next(thread for thread in threads if thread != main)
        os.kill(other, signal.SIGHUP)
        eventually(lambda: "config_reloaded" in command.log(), within=5)
        os.kill(other, signal.SIGTERM)
        assert command.process.wait(PATIENCE) == 0
