"""Unit tests of rules, which promtool runs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def run_tests(
    program: str,
    folder: Path,
    tests: Sequence[Mapping[str, Any]],
    *,
    groups: Sequence[Mapping[str, Any]] = (),
    evaluation_interval: str = "1m",
) -> None:
    """Run promtool's tests with these groups of rules. Fails with what promtool says.

    `program` is the path of promtool, `folder` an empty folder.
    """
    (folder / "rules.yaml").write_text(yaml.dump({"groups": list(groups)}, Dumper=yaml.CSafeDumper))
    file = folder / "test.yaml"
    whole = {"rule_files": ["rules.yaml"], "evaluation_interval": evaluation_interval, "tests": list(tests)}
    file.write_text(yaml.dump(whole, Dumper=yaml.CSafeDumper))
    done = subprocess.run([program, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
