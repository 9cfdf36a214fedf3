"""The dashboard: every query of it is asked of a real Prometheus that scrapes the demo."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from support.command import PATIENCE, eventually, running
from support.monitoring import EXAMPLES, Prometheus, prometheus
from support.promtool import run_tests

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "helm" / "ecr-replication-exporter" / "files" / "dashboard.json"
#: What the demo has nothing of, and why.
MAY_BE_EMPTY = {
    "Destinations that cannot be looked at": "the demo's AWS refuses nothing",
    "Repositories without a destination": "the demo's rules select every repository",
    "State file": "the demo keeps none",
    "Late pushes": "the demo has not run for fifteen minutes",
    "Targets in trouble, and why": "the demo's AWS refuses nothing",
}
#: What stands for the dashboard's variables when everything is chosen.
CHOSEN = {
    "registry": ".*",
    "region": ".*",
    "repository": ".*",
    "to_account": ".*",
    "to_region": ".*",
    "window": "20s",
    "__rate_interval": "10s",
}


def dashboard() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return made


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def chosen(expression: str) -> str:
    for name, value in CHOSEN.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression
    return expression


@pytest.fixture(scope="module")
def scraping(
    tmp_path_factory: pytest.TempPathFactory, command: Callable[[str, str], str]
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the demo for a while, and judges the shipped rules."""
    program = command("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("dashboard")
    with running(folder, "--demo") as demo:
        scrape = {"job_name": "ecr", "static_configs": [{"targets": [demo.url.removeprefix("http://")]}]}
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(EXAMPLES / "rules.yaml")],
            "scrape_configs": [scrape],
        }
        with prometheus(program, folder / "prometheus", config) as scraping:
            # Replications of new pushes have ended, two scrapes apart at least: when is up to dice.
            damaged = "count by (reason) (ecr_image_replica_problem_info)"
            ended = "sum(increase(ecr_image_replication_duration_seconds_count[20s])) > 0"
            eventually(lambda: scraping.query(ended), within=3 * PATIENCE)
            # Copies are damaged ten seconds after the start.
            eventually(lambda: len(scraping.query(damaged)) == 4, within=2 * PATIENCE)
            yield scraping


def results(scraping: Prometheus, panel: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for target in panel["targets"] for row in scraping.query(chosen(target["expr"]))]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_query_has_an_answer(panel: Mapping[str, Any], scraping: Prometheus) -> None:
    for target in panel["targets"]:
        expression = chosen(target["expr"])
        if panel["title"] in MAY_BE_EMPTY:
            scraping.query(expression)
            continue
        found = eventually(lambda expression=expression: told(scraping.query(expression)))  # type: ignore[misc]
        labels = set().union(*(row["metric"] for row in found))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def told(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that have a value: a quantile of nothing is not a number."""
    return [row for row in rows if not math.isnan(float(row["value"][1]))]


@pytest.mark.parametrize(
    "panel", [panel for panel in panels() if panel["type"] == "table"], ids=lambda panel: panel["title"]
)
def test_every_column_is_a_label(panel: Mapping[str, Any], scraping: Prometheus) -> None:
    if panel["title"] in MAY_BE_EMPTY:
        pytest.skip(MAY_BE_EMPTY[panel["title"]])
    labels = {label for row in results(scraping, panel) for label in row["metric"]} | {"Value"}
    (transformation,) = panel["transformations"]
    options = transformation["options"]
    if transformation["id"] == "organize":
        assert options["renameByName"].keys() - {"tag", "digest", "repository_filter"} <= labels
    else:
        assert {options["rowField"], options["columnField"], options["valueField"]} <= labels


def test_every_state_is_in_the_matrix(scraping: Prometheus) -> None:
    (matrix,) = (panel for panel in panels() if panel["title"] == "Destinations by state")
    found = {row["metric"]["status"] for row in results(scraping, matrix)}
    assert found == {"COMPLETE", "IN_PROGRESS", "FAILED", "MISSING"}
    assert {row["metric"]["destination"] for row in results(scraping, matrix)} >= {
        "111122223333/eu-west-1",
        "444455556666/us-west-2",
    }


def test_every_state_of_a_copy_is_in_the_matrix(scraping: Prometheus) -> None:
    (matrix,) = (panel for panel in panels() if panel["title"] == "Copies by state")
    found = {(row["metric"]["destination"], row["metric"]["state"]) for row in results(scraping, matrix)}
    assert {state for _, state in found} == {"present", "absent", "untagged", "other_image", "archived"}
    assert {destination for destination, _ in found} >= {"111122223333/eu-west-1", "444455556666/us-west-2"}


def test_the_variables_have_values(scraping: Prometheus) -> None:
    queries = [each["definition"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    assert len(queries) == 5
    for query in queries:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found
        assert scraping.query(f"count by ({found[2]}) ({chosen(found[1])})")[0]["metric"]


SOURCE = 'source_registry_id="111122223333",source_region="us-east-1"'
#: What a panel says of shards, each with labels of its pod, while the last of two releases lacks one.
OF_SHARDS: Mapping[str, Mapping[str, float]] = {
    "Images by what is expected of them": {'{state="settled"}': 100 + 101 + 102 + 7},
    "Images skipped": {"{}": 1 + 2 + 3},
    "Targets": {f'{{target="team/*",{SOURCE}}}': 100 + 101 + 102 + 7},
    "Targets in trouble": {"{}": 1},
    "Calls to ECR and what is allowed": {"{}": 3 + 3 + 3 + 9},
    "Shards": {"{}": 4 / 5},
}


def shard(release: str, pod: str, ordinal: int, of: int, **told: float) -> dict[str, float]:
    """The series of one pod."""
    own = "ecr_replication_exporter_"
    here = f'job="ecr",namespace="{release}",instance="{pod}",pod="{pod}",index="{pod}"'
    target = f'{here},target="team/*",{SOURCE}'
    return {
        f"{own}shard_ordinal{{{here}}}": ordinal,
        f"{own}total_shards{{{here}}}": of,
        f'{own}images{{{here},state="settled"}}': told["images"],
        f"{own}images_skipped{{{here}}}": told["skipped"],
        f"{own}request_rate_limit{{{here},{SOURCE}}}": told["rate"],
        f"ecr_target_images{{{target}}}": told["images"],
        f"ecr_target_success{{{target}}}": told["success"],
    }


def test_shards_are_added_and_the_pods_of_one_are_not(
    tmp_path: Path, command: Callable[[str, str], str]
) -> None:
    series = {
        **shard("a", "a0-old", 0, 3, images=100, skipped=1, rate=3, success=1),
        **shard("a", "a0-new", 0, 3, images=99, skipped=1, rate=3, success=1),
        **shard("a", "a1", 1, 3, images=101, skipped=2, rate=3, success=0),
        **shard("a", "a2", 2, 3, images=102, skipped=3, rate=3, success=1),
        **shard("b", "b1", 1, 2, images=7, skipped=0, rate=9, success=1),
    }
    queries = {panel["title"]: panel["targets"][-1]["expr"] for panel in panels()}
    asked = [
        {
            "expr": chosen(queries[title]),
            "eval_time": "0s",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in said.items()],
        }
        for title, said in OF_SHARDS.items()
    ]
    given = [{"series": name, "values": f"{value:g}"} for name, value in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": asked}
    run_tests(command("promtool", "prometheus"), tmp_path, [test])


def rule_changes() -> dict[str, str]:
    return {each["name"]: chosen(each["expr"]) for each in dashboard()["annotations"]["list"]}


def test_annotations_are_queries(scraping: Prometheus) -> None:
    """The rules of the demo do not change, so a query has no answer."""
    eventually(lambda: not any(scraping.query(expr) for expr in rule_changes().values()))


def test_a_change_of_the_rules_is_annotated_and_a_restart_is_not(
    tmp_path: Path, command: Callable[[str, str], str]
) -> None:
    """A rule is added at minute 60 and removed at minute 120. The exporter restarts twice, also for long."""
    rule = (
        f'ecr_registry_replication_rule_info{{registry_id="1",repository_filter="new/",region="r",{SOURCE}}}'
    )
    always = rule.replace("new/", "old/")
    listed = f"ecr_registry_last_success_timestamp_seconds{{{SOURCE}}}"
    up = "1x20 stale _x2 1x150 stale _x14 1x60"
    given = [
        {"series": always, "values": up},
        {"series": listed, "values": up},
        {"series": rule, "values": "_x60 1x59 stale"},
    ]
    marks = {"Replication rule added": [60, 61], "Replication rule removed": [125]}
    # Windows of Prometheus 3 are open on the left, so a mark may be there a minute sooner.
    version_decides = {124, 126}
    asked = [
        {
            "expr": f"count ({expr})",
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": "{}", "value": 1}] if minute in marks[name] else [],
        }
        for name, expr in rule_changes().items()
        for minute in sorted(set(range(15, 240)) - version_decides)
    ]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": asked}
    run_tests(command("promtool", "prometheus"), tmp_path, [test])


def test_all_that_is_chosen_is_offered() -> None:
    offered = {each["name"] for each in dashboard()["templating"]["list"]}
    text = DASHBOARD.read_text()
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert {name for name in used if not name.startswith("__")} == offered


def test_panels_have_their_own_place_and_number() -> None:
    all_panels = dashboard()["panels"]
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    assert len({panel["title"] for panel in all_panels}) == len(all_panels)
    places = [panel["gridPos"] for panel in all_panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_the_names_that_links_and_provisioning_rely_on() -> None:
    made = dashboard()
    assert made["uid"] == "ecr-image-replication"
    assert "id" not in made
    assert made["schemaVersion"] == 42
    for panel in panels():
        assert panel["description"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("script", ["dashboard.py", "rules.py"])
def test_what_is_made_is_up_to_date(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "helm" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
