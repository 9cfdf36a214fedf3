"""Real clients read the whole compressed page of the real command."""

from __future__ import annotations

import subprocess
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.command import PATIENCE, Command, ask, eventually, running, system_program

CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --dump-dom"
).split()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The demo, once it has every state to show, so that its page has hundreds of lines."""
    with running(tmp_path_factory.mktemp("demo"), "--demo") as command:
        eventually(lambda: command.statuses() >= {"COMPLETE", "FAILED", "IN_PROGRESS", "MISSING"})
        yield command


def first_member(url: str, _: Path) -> str:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        decoder = zlib.decompressobj(wbits=31)
        text = decoder.decompress(response.read())
    assert decoder.eof
    assert not decoder.unused_data
    return text.decode()


def curl(url: str, _: Path) -> str:
    program = system_program("curl", package="curl")
    return subprocess.run(
        [program, "--silent", "--compressed", url], capture_output=True, text=True, check=True
    ).stdout


def httpx_(url: str, _: Path) -> str:
    response = httpx.get(url, trust_env=False, timeout=PATIENCE)
    assert response.headers["Content-Encoding"] == "gzip"
    return response.text


def chromium(url: str, folder: Path) -> str:
    program = system_program("chromium", package="chromium")
    return subprocess.run(
        [program, *CHROMIUM, f"--user-data-dir={folder}", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE * 2,
    ).stdout


@pytest.mark.parametrize("read", [first_member, curl, httpx_, chromium])
def test_the_whole_page_is_read(command: Command, tmp_path: Path, read: Callable[[str, Path], str]) -> None:
    expected = families(command.page())
    assert len(expected) > 20
    page = read(f"{command.url}/metrics", tmp_path)
    assert families(page) == expected
    assert page.count("\n") > 300


def families(page: str) -> set[str]:
    return {line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE ")}


def test_a_page_of_unknown_names_is_an_empty_gzip_stream(command: Command, tmp_path: Path) -> None:
    assert first_member(f"{command.url}/metrics?name[]=nope", tmp_path) == ""


def test_the_name_of_a_histogram_selects_its_samples(command: Command) -> None:
    name = "ecr_replication_exporter_aws_request_duration_seconds"
    page = ask(f"{command.url}/metrics?name[]={name}").body
    samples = {line.partition("{")[0] for line in page.splitlines() if not line.startswith("#")}
    assert samples == {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
