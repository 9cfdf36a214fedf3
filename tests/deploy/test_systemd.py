"""Systemd takes the unit, which confines the exporter and agrees with what the command does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.cli import parse

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "ecr-replication-exporter.service"
COMMAND = "/opt/ecr-replication-exporter/bin/ecr-replication-exporter"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, but for the place of a command that need not be installed here."""
    file = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert text.count(COMMAND) == 1
    file.write_text(text.replace(COMMAND, sys.executable))
    return file


def analyze(command: Callable[[str, str], str], *arguments: str) -> subprocess.CompletedProcess[str]:
    systemd_analyze = command("systemd-analyze", "systemd")
    return subprocess.run([systemd_analyze, *arguments], capture_output=True, text=True, check=False)


def test_systemd_finds_nothing_to_say(unit: Path, command: Callable[[str, str], str]) -> None:
    done = analyze(command, "verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_exporter_is_confined(unit: Path, command: Callable[[str, str], str]) -> None:
    done = analyze(command, "security", "--offline=true", "--threshold=15", str(unit))
    assert done.returncode == 0, done.stdout


def test_its_flags_exist() -> None:
    start = re.search(rf"^ExecStart={re.escape(COMMAND)} (.*) \$ARGS$", UNIT.read_text(), re.MULTILINE)
    assert start
    assert parse(start[1].split()).config_file == "/etc/ecr-replication-exporter/config.yaml"


def test_it_has_a_start_time() -> None:
    """ProcSubset=pid hides /proc/stat, which process_start_time_seconds needs. The unit says so."""
    lines = UNIT.read_text().splitlines()
    assert not any(line.startswith("ProcSubset=") for line in lines)
    assert any(line.startswith("# ProcSubset=pid is absent") for line in lines)
