"""The soak itself, for twenty seconds: that it runs, and finds nothing wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment

HERE = Path(__file__).parents[1]
SOAK = HERE.parent / "benchmarks" / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux, whose /proc it reads")
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
