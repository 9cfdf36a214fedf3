"""The alert rules, judged by promtool: each fires, stays quiet, resolves, and survives a restart."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.alert_cases import CASES, DENIED_FROM_THE_START, HEALTHY, MOVED, OLD_FAILURE, UNREADABLE
from support.alert_timeline import Case, Value, episode, promtool_test
from support.promtool import run_tests

from exporter.config import settings as config
from exporter.metrics.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
RULES = ROOT / "examples" / "prometheus" / "rules.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"


def groups() -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = yaml.load(RULES.read_text(), yaml.CSafeLoader)["groups"]
    return read


def rules() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for group in groups() for rule in group["rules"] if "alert" in rule}


def recorded_for(alert: str) -> list[dict[str, Any]]:
    """The recording rules of the group of an alert."""
    (group,) = (
        each["rules"] for each in groups() if any(rule.get("alert") == alert for rule in each["rules"])
    )
    return [rule for rule in group if "record" in rule]


def test_promtool_finds_nothing_to_say(command: Callable[[str, str], str]) -> None:
    promtool = command("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == set(rules())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.about}".strip())
def test_it_fires_stays_and_resolves(case: Case, tmp_path: Path, command: Callable[[str, str], str]) -> None:
    """Annotations but the summary are left out here: they only repeat labels."""
    promtool = command("promtool", "prometheus")
    rule = rules()[case.alert]
    rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    group = {"name": "under test", "rules": [*recorded_for(case.alert), rule]}
    run_tests(promtool, tmp_path, [promtool_test(case)], groups=[group])


@pytest.mark.parametrize(
    ("meanwhile", "minutes", "alerts"),
    [
        ({"up": 0}, 30, ["ECRReplicationExporterAbsent", "ECRReplicationExporterDown"]),
        (UNREADABLE, 180, []),
        (DENIED_FROM_THE_START, 180, []),
        (MOVED, 180, ["ECRReplicationExporterVanished"]),
        (OLD_FAILURE, 60, []),
    ],
    ids=["outage", "unreadable rules", "denied from the start", "moved and back", "old failure"],
)
def test_what_is_not_seen_is_not_taken_for_gone(
    meanwhile: Mapping[str, Value],
    minutes: int,
    alerts: list[str],
    tmp_path: Path,
    command: Callable[[str, str], str],
) -> None:
    """Neither meanwhile nor in the two hours after."""
    promtool = command("promtool", "prometheus")
    test = episode(HEALTHY, meanwhile, begins=120, ends=120 + minutes, until=240 + minutes, alerts=alerts)
    run_tests(promtool, tmp_path, [test], groups=groups())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.about}".strip())
def test_it_speaks_of_labels_that_it_has(case: Case) -> None:
    texts = " ".join(rules()[case.alert]["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= case.labels.keys() | {"digest", "tag"}


@pytest.mark.parametrize("name", rules())
def test_it_says_what_it_is_and_what_to_do(name: str) -> None:
    rule = rules()[name]
    assert re.fullmatch(r"ECR(Replica|Replication|Backfill|Destination|Events)[A-Z]\w+", name)
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["for"]
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert "ook first" in annotations["description"]
    assert annotations["summary"].endswith(".")


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == set(rules())
    for name, rule in rules().items():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")


def minutes(duration: str) -> float:
    """Of a duration with one unit."""
    return float(duration[:-1]) * {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}[duration[-1]]


@pytest.mark.parametrize("name", rules())
def test_the_for_clause_is_short_or_survives_a_restart_of_prometheus(name: str) -> None:
    """By its value alone: Prometheus restores the state of an alert only if its `for` is at least 10m."""
    wait = minutes(rules()[name]["for"])
    assert wait <= 2 or wait >= 10


def test_a_failure_is_at_the_receiver_within_90_seconds() -> None:
    """At worst a poll, a scrape and an evaluation have just ended. Then `for` and group_wait begin."""
    read = {
        name: yaml.safe_load((RULES.parent / f"{name}.yml").read_text())
        for name in ("prometheus", "alertmanager")
    }
    intervals = read["prometheus"]["global"]
    (critical,) = (r for r in read["alertmanager"]["route"]["routes"] if "critical" in r["matchers"][0])
    waits = [intervals["scrape_interval"], intervals["evaluation_interval"], critical["group_wait"]]
    waits.append(rules()["ECRReplicationFailed"]["for"])
    polled = config.parse("targets: [{repository: team/app}]").pending_interval / 60
    assert polled + sum(minutes(wait) for wait in waits) <= 1.5


@pytest.mark.parametrize("name", rules())
def test_a_runbook_is_short_and_whole(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["What it means", "Look", "Repair"]
    assert page.count("\n") <= 60


def known_metrics() -> set[str]:
    histograms = {row.name for row in CATALOGUE if row.type == "histogram"}
    parts = {f"{name}_{suffix}" for name in histograms for suffix in ("bucket", "sum", "count")}
    recorded = {rule["record"] for group in groups() for rule in group["rules"] if "record" in rule}
    return {row.name for row in CATALOGUE} | parts | recorded


def metrics_in(text: str) -> set[str]:
    """The names of metrics and of recorded series. ecr: and a capital is an action of IAM."""
    return set(re.findall(r"\becr(?:_|:(?![A-Z]))\w+", text))


def test_only_metrics_of_the_catalogue_and_recorded_ones_are_asked() -> None:
    for group in groups():
        for rule in group["rules"]:
            assert metrics_in(rule["expr"]) <= known_metrics()
