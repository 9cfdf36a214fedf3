"""Flags of the command line that other tests do not use."""

from __future__ import annotations

import pytest

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
