"""What all tests share: flags, and the system packages that some of them need."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How fast a shared machine is today is no property of the code.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

# Containers often forbid byte code. But then each process compiles all tests again, and each start of the
# command all of its modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# promtool, Prometheus and Helm's engine have small heaps, and spend less time with larger ones.
os.environ.setdefault("GOGC", "400")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden again")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each folder over the whole run.

    A process of pytest-xdist begins with a contiguous part of the tests. So each part has its share of the
    tests that wait, most of which are in one folder, and of those that compute.
    """
    sizes = Counter(item.path.parent for item in items)
    seen: Counter[Path] = Counter()
    places: dict[Path, float] = {}
    for item in items:
        folder = item.path.parent
        places.setdefault(item.path, seen[folder] / sizes[folder])
        seen[folder] += 1
    items.sort(key=lambda item: (places[item.path], item.path))


@pytest.fixture(scope="session")
def command() -> Callable[[str, str], str]:
    """The path of a command, for tests that cannot do without the Debian package it comes in."""

    def find(name: str, package: str) -> str:
        path = shutil.which(name)
        if path is None and "REQUIRE_SYSTEM_PACKAGES" in os.environ:
            pytest.fail(f"{name} is missing: install the Debian package {package}")
        return path or pytest.skip(f"install the Debian package {package}")

    return find


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """What a file of tests/golden holds; with --update-golden it holds the given text from now on."""

    def read(name: str, text: str) -> str:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        return path.read_text()

    return read
