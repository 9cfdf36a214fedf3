"""The chart's alert rules as a file for Prometheus itself.

    python helm/rules.py [values.yaml]

prints them, with the values of a file under the chart's own; prometheusRule.enabled does not matter.
`make helm` writes those of the defaults to examples/prometheus/rules.yaml (--write); with --check nothing is
written, and the exit code is 1 if that file is not what it should be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent / "ecr-replication-exporter"
EXAMPLE = Path(__file__).parents[1] / "examples" / "prometheus" / "rules.yaml"
TEMPLATE = "ecr-replication-exporter/templates/prometheusrule.yaml"
HEAD = """\
# Alerts on Amazon ECR image replication, with their runbooks. Needs Prometheus 2.42.
#
# Made from the Helm chart by `make helm`. Other thresholds, or without some alerts: write the chart's
# prometheusRule.alerts into a file, and `python helm/rules.py that-file.yaml` prints the rules.
"""


class _Dumper(yaml.SafeDumper):
    """Text of several lines stays text of several lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def rules(values: dict[str, Any]) -> str:
    """A rule file. Raises helm_python.HelmError for values that the chart does not take."""
    image = {"repository": "unused"} | values.get("image", {})
    switched_on = {
        **values,
        "image": image,
        "prometheusRule": {**values.get("prometheusRule", {}), "enabled": True},
    }
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(switched_on)
        manifests = chart.render(switched_on, name="exporter", namespace="default")
    groups = {"groups": yaml.safe_load(manifests[TEMPLATE])["spec"]["groups"]}
    return HEAD + yaml.dump(groups, Dumper=_Dumper, sort_keys=False, width=110)


def main(arguments: list[str]) -> int:
    files = [each for each in arguments if not each.startswith("--")]
    values: dict[str, Any] = yaml.safe_load(Path(files[0]).read_text()) if files else {}
    try:
        text = rules(values)
    except helm_python.HelmError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if "--check" in arguments and EXAMPLE.read_text() != text:
        sys.stderr.write(f"{EXAMPLE.name} is not what it should be: run make helm\n")
        return 1
    if "--write" in arguments:
        EXAMPLE.write_text(text)
    elif "--check" not in arguments:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
