"""A start on a machine that refuses threads logs one line without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PATIENCE, environment

#: Runs the command where the thread number REFUSED of the main thread, from 0, cannot start.
CROWDED = """
import itertools, sys, threading

start, count = threading.Thread.start, itertools.count()

def limited(thread):
    if threading.current_thread() is threading.main_thread() and next(count) == REFUSED:
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = limited
from exporter.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("refused", range(7))
def test_a_start_without_a_thread_logs_one_line(tmp_path: Path, refused: int) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("targets: [{repository: team/app}]")
    done = subprocess.run(
        [
            *(sys.executable, "-c", CROWDED.replace("REFUSED", str(refused)), f"--config.file={file}"),
            *("--web.listen-address=127.0.0.1:0", "--config.auto-reload-interval=1s"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(AWS_REGION="us-east-1", AWS_ENDPOINT_URL="http://127.0.0.1:9"),
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "level=error" in line]
    assert 'msg=start_failed error="can\'t start new thread"' in line
    assert "raceback" not in done.stderr
