"""The real command handles signals in every phase of its life."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.command import PATIENCE, ask, environment, eventually, running

#: The longest time in seconds of a stop.
SOON = 5.0


@contextmanager
def started(*flags: str, stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command without a wait, and kill it at the end."""
    command = [sys.executable, "-m", "exporter", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment(AWS_REGION="us-east-1")
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def blocks(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Whether the main thread blocks the signal, as while modules are loaded."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = int(status.partition("SigBlk:")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def opens(fifo: Path) -> int:
    """Wait until the command opens the pipe for reading. Returns the writing end."""

    def found() -> int:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return 0

    return eventually(found)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux, where threads have ids")
def test_a_signal_to_any_thread_is_handled(tmp_path: Path) -> None:
    with running(tmp_path, "--demo") as command:
        main = command.process.pid
        threads = [int(thread.name) for thread in Path(f"/proc/{main}/task").iterdir()]
        other = next(thread for thread in threads if thread != main)
        os.kill(other, signal.SIGHUP)
        eventually(lambda: "config_reloaded" in command.log(), within=5)
        os.kill(other, signal.SIGTERM)
        assert command.process.wait(PATIENCE) == 0


linux = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="needs Linux, to see what is blocked"
)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_modules_are_loaded_exits_with_0(number: signal.Signals) -> None:
    with started("--demo", "--web.listen-address=127.0.0.1:0") as process:
        eventually(lambda: blocks(process, number))
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0


@linux
def test_a_reload_while_modules_are_loaded_happens_later(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        started("--demo", "--web.listen-address=127.0.0.1:0", stderr=stderr.fileno()) as process,
    ):
        eventually(lambda: blocks(process, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "config_reloaded" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_start_that_waits_for_its_file_can_be_stopped(tmp_path: Path) -> None:
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    with started(f"--config.file={fifo}") as process:
        end = opens(fifo)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - began < SOON
        os.close(end)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_check_that_waits_for_its_file_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    with started(f"--config.file={fifo}", "--config.check") as process:
        end = opens(fifo)
        process.send_signal(number)
        assert process.wait(SOON) == -number
        os.close(end)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_blocked_log_delays_neither_scrapes_nor_the_stop() -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(writes, True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started(
        "--demo", "--log.level=debug", f"--web.listen-address=127.0.0.1:{port}", stderr=writes
    ) as process:
        eventually(lambda: _answers(url))
        for _ in range(1100):
            assert ask(f"{url}/-/healthy").status == 200
        page = ask(f"{url}/metrics").body
        assert "\necr_replication_exporter_log_lines_dropped_total 0.0\n" not in page
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - began < SOON
    os.close(reads)
    os.close(writes)


def _answers(url: str) -> bool:
    try:
        return ask(f"{url}/-/healthy").status == 200
    except OSError:
        return False
