"""The soak test runs for twenty seconds and finds no problem."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment

HERE = Path(__file__).parents[1]
SOAK = HERE.parent / "benchmarks" / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux, because it reads /proc")
def test_twenty_seconds() -> None:
    done = subprocess.run(
        [sys.executable, SOAK, "--seconds=20", "--seed=1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(PYTHONPATH=str(HERE)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
