"""What the image is made of, as far as it can be told without building it; .ci/image builds and runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from exporter import __version__
from exporter.cli import parse

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_label_is_the_version() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_all_that_is_copied_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert sorted(sent) == sorted(" ".join(copied).split())
    assert all((ROOT / name).exists() for name in sent)


def test_the_command_starts_with_flags_that_exist() -> None:
    found = re.search(r'^CMD \["(.*)"\]$', DOCKERFILE, re.MULTILINE)
    assert found
    assert parse(found[1].split('", "')).config_file == "/etc/ecr-replication-exporter/config.yaml"
