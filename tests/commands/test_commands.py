"""The commands as processes: exit codes, the streams, a terminal and signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import PATIENCE, environment, eventually, run
from support.embedded_aws import EmbeddedAWS, Hang, replication_rule

from exporter.demo import ACCOUNT, REGION
from exporter.replication.model import Destination

IRELAND = Destination("eu-west-1", ACCOUNT)


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        aws.create_repository(ACCOUNT, REGION, "team/app")
        aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND)])
        aws.push(ACCOUNT, REGION, "team/app", "v1")
        aws.push(ACCOUNT, REGION, "team/app", "slow", delay=lambda _: float("inf"))
        yield aws


@pytest.fixture
def variables(aws: EmbeddedAWS) -> Any:
    return {
        "AWS_ACCESS_KEY_ID": f"AKIADEMO{ACCOUNT}",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": aws.endpoint_url,
    }


def test_wait_writes_its_result_to_stdout_and_its_progress_to_stderr(variables: Any) -> None:
    ended = run("wait", "team/app:v1", "--destination", "eu-west-1", "--output", "json", **variables)
    assert (ended.returncode, json.loads(ended.stdout)["result"]) == (0, "replicated")
    assert ended.stderr.splitlines()[1:] == [f"{ACCOUNT}/eu-west-1: COMPLETE, present"]
    ended = run("wait", "team/app:slow", "--timeout", "0", **variables)
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 2)
    assert ended.stdout.endswith(f"{ACCOUNT}/eu-west-1: IN_PROGRESS\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wait"], "IMAGE"),
        (["wait", "team/app:v1"], "no Region is given"),
        (
            ["wait", f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/team/app:v1", "--region", "eu-west-1"],
            "is not the Region of the image",
        ),
    ],
)
def test_wrong_arguments_are_told_on_one_line(arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wait", "--output", "json"], "IMAGE"),
        (["wait", "team/app:v1", "--output=json"], "no Region is given"),
        (["check", "--output", "json", "--config.file", "/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
)
def test_a_command_that_cannot_begin_writes_one_object_too(arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["exit_code"], ended.stdout.count("\n")) == (2, 2, 1)
    assert message in told["error"]
    assert told["error"] == ended.stderr.strip()


def test_a_command_whose_profile_does_not_exist_writes_an_object_too() -> None:
    ended = run("wait", "team/app:v1", "--output=json", AWS_PROFILE="absent")
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["exit_code"]) == (1, 1)
    assert "absent" in told["error"]
    assert "start_failed" in ended.stderr


def test_a_region_that_is_not_known_is_told(variables: Any) -> None:
    ended = run("wait", "team/app:v1", "--destination=eu-wst-1", "--timeout=0", "--no-verify", **variables)
    assert (ended.returncode, "eu-wst-1 is not a Region that botocore knows" in ended.stderr) == (3, True)


def test_a_terminal_has_a_live_line_that_is_gone_at_the_end(variables: Any) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "wait", "team/app:slow", "--timeout=1s"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(TERM="xterm", **variables),
        text=True,
    )
    os.close(theirs)
    shown = b""
    with process, open(terminal, "rb", buffering=0) as stream:  # noqa: PTH123 - a descriptor
        try:
            while chunk := stream.read(4096):
                shown += chunk
        except OSError:
            pass  # Linux reports the end of a terminal as an error
        result, _ = process.communicate(timeout=PATIENCE)
    lines = shown.decode().split("\r\x1b[K")
    assert lines[1] == f"[0s] {ACCOUNT}/eu-west-1 IN_PROGRESS"
    assert lines[-1] == ""
    assert result.startswith("team/app:slow (sha256:")
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hangs", [True, False], ids=["in a call", "between calls"])
def test_a_signal_ends_it_at_once(
    aws: EmbeddedAWS, variables: Any, number: signal.Signals, hangs: bool
) -> None:
    if hangs:
        aws.fault = lambda _: Hang()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "wait", "team/app:slow"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**variables),
        text=True,
    )
    with process:
        eventually(lambda: aws.count("DescribeImages" if hangs else "DescribeImageReplicationStatus"))
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (128 + number, "")
    assert "Traceback" not in stderr


def test_check_reports_and_its_exit_code_says_whether_all_is_well(
    aws: EmbeddedAWS, variables: Any, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("targets: [{repository: team/*}]\nrequests_per_second: 500\n")
    ended = run("check", "--config.file", str(file), **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("0 problems, 0 notes\n")
    aws.set_rules(ACCOUNT, REGION, [])
    ended = run("--config.file", str(file), "check", "--output=json", **variables)
    assert (ended.returncode, json.loads(ended.stdout)["result"]) == (1, "problems")
    file.write_text("targets: []\n")
    ended = run("check", "--config.file", str(file), **variables)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"{file}:1: targets: is empty; name at least one, or leave the key out\n"


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">/dev/full", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize(("tag", "code"), [("v1", 0), ("slow", 3)])
def test_a_stream_that_is_closed_or_full_does_not_change_the_exit_code(
    variables: Any, streams: str, tag: str, code: int
) -> None:
    command = f"exec {sys.executable} -m exporter wait team/app:{tag} --timeout 0 {streams}"
    shell = ("/bin/sh", "-c", command)
    ended = subprocess.run(shell, env=environment(**variables), capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("streams", [">&-", ">/dev/full"])
def test_a_configuration_is_checked_whatever_becomes_of_stdout(tmp_path: Path, streams: str) -> None:
    file = tmp_path / "config.yaml"
    for text, code in (("targets: [{repository: team/app}]", 0), ("targets: 1", 2)):
        file.write_text(text)
        command = f"exec {sys.executable} -m exporter --config.check --config.file={file} {streams}"
        shell = ("/bin/sh", "-c", command)
        ended = subprocess.run(shell, env=environment(), capture_output=True, text=True, check=False)
        assert ended.returncode == code
        assert "Traceback" not in ended.stderr


def test_a_result_is_written_in_an_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    file = tmp_path / "\u65e5.yaml"
    file.write_text("targets: [{repository: team/app}]")
    checked = run("--config.check", "--config.file", str(file), PYTHONIOENCODING="latin-1", PYTHONUTF8="1")
    assert checked.stdout == f"{tmp_path}/\\u65e5.yaml is valid: 1 target, 1 registry\n"
