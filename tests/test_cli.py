"""Flags of the command line that other tests do not use."""

from __future__ import annotations

import json

import pytest

from exporter.app import main
from exporter.cli import parse


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (":10042", ("", 10042)),
        ("localhost:0", ("localhost", 0)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:80", ("::", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert parse([f"--web.listen-address={address}"]).listen == [parts]


@pytest.mark.parametrize(
    "address",
    ["", "10042", "localhost", "::1:80", "[::1]", "[::1:80", "[x]:80", ":", ":x", ":-1", ":65536", ":٣"],
)
def test_bad_addresses_are_named(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse([f"--web.listen-address={address}"])
    assert f"argument --web.listen-address: {address!r} is not an address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log.level=loud"], "loud"),
        (["--web.telemetry-path=metrics"], "does not start with /"),
        (["--web.telemetry-path=/"], "'/' is taken by another page"),
        (["--web.telemetry-path=/config"], "'/config' is taken by another page"),
        (["--web.telemetry-path=/-/healthy"], "'/-/healthy' is taken by another page"),
        (["--web.telemetry-path=/api/v1/status"], "'/api/v1/status' is taken by another page"),
        (["--web.telemetry-path=/runbooks/x"], "'/runbooks/x' is taken by another page"),
        (["--web.listen-address=nonsense"], "nonsense"),
        (["--shard=3", "--total-shards=3"], "--total-shards 3"),
        (["--shard=exporter-abcde"], "'exporter-abcde' is neither a number nor the name of"),
        (["--total-shards=0"], "--total-shards"),
        (["--total-shards=3"], "--shard is missing: 0 to 2, or auto"),
        (["--config.auto-reload-interval=30"], "30 has no unit"),
        (["--config.auto-reload-interval=1ms"], "at least 1s"),
        (["--config.check", "dir/x.yml"], "; use --config.file dir/x.yml"),
        (["await"], "invalid choice: 'await'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("output", [[], ["--output=json"], ["--output", "json"]], ids=str)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wait"], "IMAGE"),
        (["wait", "team/app"], "does not name an image"),
        (["wait", "team/app:v1", "--timeout", "30"], "30 has no unit; write e.g. 30s"),
        (["wait", "team/app:v1", "--destination", "Ireland"], "is not a destination"),
        (["wait", "team/app:v1", "--role-arn", "admin"], "is not the ARN of a role"),
        (["wait", "team/app:v1", "--region", "us-east-1", "-x"], "unrecognized arguments: -x"),
        (
            ["wait", "team/app:v1", "--verify", "--no-verify"],
            "--no-verify: not allowed with argument --verify",
        ),
        (["--demo", "wait", "team/app:v1"], "--demo does not go before wait"),
        (["--log.level=debug", "check"], "--log.level does not go before check"),
        (["check", "x.yaml"], "unrecognized arguments: x.yaml; use --config.file x.yaml"),
        (["check", "all"], "unrecognized arguments: all; see --help"),
    ],
)
def test_a_wrong_argument_of_a_command_is_one_line_and_one_object(
    arguments: list[str], output: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, *output])
    told = capsys.readouterr()
    assert (told.err.count("\n"), message in told.err) == (1, True)
    if output:
        assert json.loads(told.out) == {"error": told.err.strip(), "exit_code": 2}
    else:
        assert told.out == ""


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/ecr/v1.2/metrics", "/-", "/~a_b", "/.hidden"])
def test_telemetry_paths(path: str) -> None:
    assert parse([f"--web.telemetry-path={path}"]).telemetry_path == path


@pytest.mark.parametrize(
    "path",
    ["//metrics", "/a//b", "/a?b", "/a#b", "/a b", "/a\n", "/%6d", "/{x}", "/é", "/./a", "/a/../b", "/a/.."],
)
def test_a_path_that_clients_change_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A scrape of it would never arrive under this name."""
    with pytest.raises(SystemExit, match="2"):
        parse([f"--web.telemetry-path={path}"])
    assert f"argument --web.telemetry-path: {path!r} is not a plain path" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--config.file", "--web.config.file"])
def test_an_empty_file_name_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable in a script must not start an exporter without TLS and passwords."""
    with pytest.raises(SystemExit, match="2"):
        parse([f"{flag}="])
    assert f'argument {flag}: "" is not the name of a file' in capsys.readouterr().err
