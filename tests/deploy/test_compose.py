"""The compose example, as far as it can be judged without an engine that runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.cli import parse

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPOSE: dict[str, Any] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_all_that_is_mounted_exists() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert sources
    assert all((EXAMPLES / source).is_file() for source in sources)
    used = [config["source"] for service in SERVICES.values() for config in service.get("configs", [])]
    assert sorted(used) == sorted(COMPOSE["configs"])


def test_images_are_pinned_and_ports_stay_on_this_machine() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert all(image.rpartition(":")[2] not in ("", "latest") for image in images)
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service["ports"])


def test_the_exporter_is_built_from_here_with_what_the_demo_needs() -> None:
    build = SERVICES["exporter"]["build"]
    assert (EXAMPLES / build["context"] / "Dockerfile").is_file()
    assert f"ARG {next(iter(build['args']))}=" in (EXAMPLES / build["context"] / "Dockerfile").read_text()
    assert parse(SERVICES["exporter"]["command"]).demo


@pytest.mark.parametrize(
    ("name", "program", "check"),
    [
        ("prometheus", "promtool", ["check", "config"]),
        ("alertmanager", "amtool", ["check-config"]),
    ],
)
def test_the_configurations_are_valid(
    name: str, program: str, check: list[str], tmp_path: Path, command: Callable[[str, str], str]
) -> None:
    package = "prometheus" if program == "promtool" else "prometheus-alertmanager"
    file = tmp_path / f"{name}.yml"
    file.write_text(COMPOSE["configs"][name]["content"])
    (tmp_path / "rules.yaml").write_text((EXAMPLES / "prometheus" / "rules.yaml").read_text())
    done = subprocess.run(
        [command(program, package), *check, file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_find_each_other() -> None:
    text = "".join(config["content"] for config in COMPOSE["configs"].values())
    for name, port in (("exporter", 10042), ("alertmanager", 9093), ("prometheus", 9090)):
        assert f"{name}:{port}" in text
        assert f"127.0.0.1:{port}:{port}" in SERVICES[name]["ports"]
