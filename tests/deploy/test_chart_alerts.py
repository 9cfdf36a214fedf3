"""The chart's alerts follow its values, and the dashboard goes into a ConfigMap as it is."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from support.chart import CHART, render


def rendered(template: str, values: dict[str, Any]) -> Any:
    """The object of a template, of a release that is called "test" in the namespace "here"."""
    return yaml.safe_load(render(values, name="test", namespace="here")[f"{template}.yaml"])


def groups(**prometheus_rule: Any) -> list[dict[str, Any]]:
    rule = rendered("prometheusrule", {"prometheusRule": {"enabled": True, **prometheus_rule}})
    made: list[dict[str, Any]] = rule["spec"]["groups"]
    return made


def rules(**prometheus_rule: Any) -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    every = [each for group in groups(**prometheus_rule) for each in group["rules"]]
    return {each["alert"]: each for each in every if "alert" in each}


def recorded(**prometheus_rule: Any) -> dict[tuple[str, str], str]:
    """The expressions of recording rules, by name and window."""
    every = [each for group in groups(**prometheus_rule) for each in group["rules"]]
    return {(e["record"], e.get("labels", {}).get("window", "")): e["expr"] for e in every if "record" in e}


def test_there_are_none_unless_asked_for() -> None:
    assert rendered("prometheusrule", {}) is None
    assert rendered("dashboard", {}) is None


def test_the_object_is_the_operators() -> None:
    values = {
        "prometheusRule": {
            "enabled": True,
            "namespace": "prometheus",
            "labels": {"release": "prometheus"},
            "interval": "15s",
        }
    }
    rule = rendered("prometheusrule", values)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["metadata"]["namespace"] == "prometheus"
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert {group["interval"] for group in rule["spec"]["groups"]} == {"15s"}


def test_each_alert_can_be_switched_off() -> None:
    """Half of them at a time, so that each is off in one half."""
    names = rules().keys()
    for off in (set(list(names)[::2]), set(list(names)[1::2])):
        assert rules(alerts={name: {"enabled": False} for name in off}).keys() == names - off


def test_a_group_without_alerts_is_left_out() -> None:
    off = {name: {"enabled": False} for name in rules() if "Rules" not in name}
    rule = rendered("prometheusrule", {"prometheusRule": {"enabled": True, "alerts": off}})
    assert [group["name"] for group in rule["spec"]["groups"]] == ["ecr-replication-rules"]


def test_without_any_alert_the_groups_are_an_empty_list() -> None:
    """Kubernetes refuses null there."""
    off = {name: {"enabled": False} for name in rules()}
    assert rendered("prometheusrule", {"prometheusRule": {"enabled": True, "alerts": off}})["spec"] == {
        "groups": []
    }


@pytest.mark.parametrize("base", ["", None])
def test_without_runbooks_there_is_no_link_to_one(base: str | None) -> None:
    assert all("runbook_url" not in each["annotations"] for each in rules(runbookBaseUrl=base).values())


def test_what_values_say_is_what_rules_do() -> None:
    stuck = {
        "for": "1h",
        "keepFiringFor": "",
        "severity": "page",
        "olderThanSeconds": 7200,
        "labels": {"page": "yes"},
    }
    rule = rules(alerts={"ECRReplicationStuck": stuck}, alertLabels={"team": "platform"})[
        "ECRReplicationStuck"
    ]
    assert rule["for"] == "1h"
    assert "keep_firing_for" not in rule
    assert rule["labels"] == {"severity": "page", "page": "yes", "team": "platform"}
    assert rule["expr"].rstrip().endswith("> 7200")


@pytest.mark.parametrize("number", [0.05, 1, 1800, 1_000_000, 123_456_789])
def test_any_number_stays_one(number: float) -> None:
    values = {"ECRReplicationExporterBudgetTooSmall": {"overdueSeconds": number}}
    rule = rules(alerts=values)["ECRReplicationExporterBudgetTooSmall"]
    assert float(rule["expr"].rpartition("> ")[2]) == number


def test_no_placeholder_is_left_and_every_metric_has_the_selector(
    command: Callable[[str, str], str], tmp_path: Path
) -> None:
    """promtool gives an expression back with one metric a line, which shows each with its matchers."""
    plain = rules()
    changed = rules(selector='namespace="here"', runbookBaseUrl="https://runbooks.example/")
    for name, rule in changed.items():
        text = json.dumps(rule)
        assert "<" not in text.replace("<=", ""), name
        assert rule["annotations"]["runbook_url"] == f"https://runbooks.example/{name}.md"
        metrics = re.findall(r"\becr_|\bup\b|\bprocess_start_time_seconds\b", plain[name]["expr"])
        assert rule["expr"].count('{namespace="here"') == len(metrics), name
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": list(changed.values())}]}))
    subprocess.run([command("promtool", "prometheus"), "check", "rules", str(file)], check=True)


@pytest.mark.parametrize(
    ("selector", "metric"),
    [
        ("", "up"),
        ("  ", "up"),
        ('job="ecr"', 'up{job="ecr"}'),
        (' job="ecr", ', 'up{job="ecr"}'),
        ('job="ecr",\n', 'up{job="ecr"}'),
        ("job=~'ecr-[a-z]{2,}',cluster!=\"\"", "up{job=~'ecr-[a-z]{2,}',cluster!=\"\"}"),
        ('job="a \\"{}\\" b"', 'up{job="a \\"{}\\" b"}'),
    ],
)
def test_the_selector_may_be_written_as_in_a_query(
    selector: str, metric: str, command: Callable[[str, str], str], tmp_path: Path
) -> None:
    selected = rules(selector=selector)
    assert selected["ECRReplicationExporterDown"]["expr"].startswith(f"{metric} == 0\n")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": list(selected.values())}]}))
    subprocess.run([command("promtool", "prometheus"), "check", "rules", str(file)], check=True)


@pytest.mark.parametrize("selector", ['{job="ecr"}', "job", "job=ecr", ',job="ecr"', 'job="ecr" cluster="a"'])
def test_a_selector_that_is_none_is_refused(selector: str) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        rules(selector=selector)


def test_rules_of_ones_own() -> None:
    own = {"name": "ours", "rules": [{"record": "ours:images", "expr": "count(ecr_image_info)"}]}
    rule = rendered("prometheusrule", {"prometheusRule": {"enabled": True, "additionalGroups": [own]}})
    assert rule["spec"]["groups"][-1] == own


@pytest.mark.parametrize(
    "alerts",
    [
        {"ECRReplicationFaild": {"enabled": False}},
        {"ECRReplicationFailed": {"enable": False}},
        {"ECRReplicationFailed": {"severity": ""}},
        {"ECRReplicationFailed": {"for": "5 minutes"}},
        {"ECRReplicationFailed": {"restarts": 3}},
        {"ECRReplicationStuck": {"olderThanSeconds": "30m"}},
    ],
    ids=json.dumps,
)
def test_a_mistake_is_refused(alerts: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        rules(alerts=alerts)


def test_the_objective_is_a_value() -> None:
    slo = {"objective": 95, "withinSeconds": 1800, "period": "7d"}
    found = recorded(slo=slo)
    windows = {window for name, window in found if name == "ecr:pushes_in_time"}
    assert windows == {"5m", "30m", "1h", "2h", "6h", "1d", "3d", "period"}
    assert {window for name, window in found if name == "ecr:late_pushes"} == windows
    in_time = found["ecr:pushes_in_time", "period"]
    assert """ecr_image_replication_duration_seconds_bucket{le=~"1800([.]0)?"}[7d]""" in in_time
    assert "> 1800 < 1800 + 600" in found["ecr:late_push", ""]
    assert found["ecr:burn_rate", ""].rstrip().endswith("/ (1 - 95 / 100)")


def test_windows_are_values_and_are_recorded() -> None:
    """Windows of an alert that is disabled are not."""
    alerts = {
        "ECRReplicationBudgetBurnsFast": {"windows": [{"long": "2h", "short": "10m", "rate": 7}]},
        "ECRReplicationBudgetBurnsSlowly": {"enabled": False},
    }
    windows = {window for _, window in recorded(alerts=alerts)}
    assert windows == {"", "2h", "10m", "period"}
    expr = rules(alerts=alerts)["ECRReplicationBudgetBurnsFast"]["expr"]
    assert re.findall(r'burn_rate\{window="(\w+)"\} > (\S+)', expr) == [("2h", "7"), ("10m", "7")]


def test_nothing_is_recorded_for_alerts_that_are_disabled() -> None:
    assert (
        recorded(alerts={f"ECRReplicationBudgetBurns{how}": {"enabled": False} for how in ("Fast", "Slowly")})
        == {}
    )


@pytest.mark.parametrize(
    "slo", [{"objective": 100}, {"objective": 0}, {"withinSeconds": 1000}, {"period": "0d"}], ids=json.dumps
)
def test_an_objective_that_cannot_be_measured_is_refused(slo: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        rules(slo=slo)


def test_the_dashboard_is_where_grafanas_sidecar_finds_it() -> None:
    values = {"dashboard": {"enabled": True, "annotations": {"grafana_folder": "ECR"}}}
    found = rendered("dashboard", values)
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "ECR"}
    ((name, text),) = found["data"].items()
    assert name.endswith(".json")
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_the_dashboard_links_to_the_addresses_of_the_values() -> None:
    values = {
        "dashboard": {"enabled": True, "statusPageUrl": "https://ecr.example/"},
        "prometheusRule": {"runbookBaseUrl": "https://runbooks.example/"},
    }
    (text,) = rendered("dashboard", values)["data"].values()
    assert not re.search("localhost|github", text)
    assert "https://runbooks.example/${__value.raw}.md" in text
    (page,) = (each for each in json.loads(text)["templating"]["list"] if each["name"] == "status_page")
    assert page["current"]["value"] == "https://ecr.example"
