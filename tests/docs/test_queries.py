"""Each query of docs/queries.md is asked of Prometheus, with series that have its answer and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.promtool import run_tests

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()
QUERIES = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## |```).)*?```promql\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
)

SOURCE = 'source_registry_id="111122223333",source_region="us-east-1"'
THERE = 'registry_id="444455556666",region="eu-west-1"'
ELSEWHERE = 'registry_id="111122223333",region="us-west-2"'
HERE = 'instance="10.0.0.1:10042",job="ecr"'
GOOD, BAD, GONE = (f"sha256:{letter * 64}" for letter in "abc")
V1, V2, V3 = (f'digest="",repository="team/app",{SOURCE},tag="{tag}"' for tag in ("v1", "v2", "v3"))
DENIED = 'failure_code="DENIED"'
HOST = "111122223333.dkr.ecr.us-east-1.amazonaws.com"

#: The time of the queries in seconds, and values at that time. v1 is well, v2 FAILED, v3 COMPLETE and gone.
NOW = 7200
SERIES: Mapping[str, float] = {
    **{
        f'ecr_image_replication_status{{{image},{THERE},status="{status}"}}': status == present
        for image, present in ((V1, "COMPLETE"), (V2, "FAILED"), (V3, "COMPLETE"))
        for status in ("COMPLETE", "FAILED", "IN_PROGRESS", "MISSING")
    },
    f"ecr_image_replication_failure_info{{{V2},{THERE},{DENIED}}}": 1,
    f"ecr_image_replication_status_since_timestamp_seconds{{{V2},{THERE}}}": NOW - 600,
    f"ecr_image_replica_present{{{V1},{THERE}}}": 1,
    f"ecr_image_replica_present{{{V1},{ELSEWHERE}}}": 1,
    f"ecr_image_replica_present{{{V2},{THERE}}}": 0,
    f"ecr_image_replica_present{{{V2},{ELSEWHERE}}}": 1,
    f"ecr_image_replica_present{{{V3},{THERE}}}": 0,
    f'ecr_image_replica_problem_info{{{V2},{THERE},reason="absent"}}': 1,
    f'ecr_image_replica_problem_info{{{V3},{THERE},reason="absent"}}': 1,
    **{
        f'ecr_image_info{{digest="{digest}",repository="team/app",{SOURCE},tag="{tag}"}}': 1
        for tag, digest in (("v1", GOOD), ("v2", BAD), ("v3", GONE))
    },
    # The same image under its digest, as when a target names it.
    f'ecr_image_info{{digest="{BAD}",repository="team/app",{SOURCE},tag=""}}': 1,
    f"ecr_image_pushed_timestamp_seconds{{{V1}}}": NOW - 2000,
    f"ecr_image_pushed_timestamp_seconds{{{V2}}}": NOW - 1000,
    f"ecr_image_pushed_timestamp_seconds{{{V3}}}": NOW - 3000,
    f'ecr_repository_replication_images{{repository="team/app",{SOURCE},{THERE},status="COMPLETE"}}': 2,
    f'ecr_repository_replication_images{{repository="team/api",{SOURCE},{THERE},status="COMPLETE"}}': 5,
    f'ecr_repository_replication_images{{repository="team/app",{SOURCE},{THERE},status="FAILED"}}': 1,
    f'ecr_repository_replication_images{{repository="team/app",{SOURCE},{THERE},status="MISSING"}}': 0,
    f'ecr_repository_replication_destinations{{repository="team/app",{SOURCE}}}': 2,
    f'ecr_repository_replication_destinations{{repository="tools",{SOURCE}}}': 0,
    f'ecr_registry_backfill_images{{{SOURCE},{THERE},state="total"}}': 200,
    f'ecr_registry_backfill_images{{{SOURCE},{THERE},state="completed"}}': 140,
    f'ecr_registry_backfill_images{{{SOURCE},{THERE},state="failed"}}': 10,
    f"ecr_registry_last_success_timestamp_seconds{{{SOURCE}}}": NOW - 45,
}
#: What runs: v1 in two containers, v2, and an image that no target selects.
RUNNING = {
    f"{HOST}/team/app@{GOOD}": 2,
    f"{HOST}/team/app@{BAD}": 1,
    f"docker-pullable://{HOST}/tools@{GONE}": 1,
    f"docker.io/library/nginx@{GOOD}": 1,
}
#: Series that grow, by what they gain a minute.
GROWING: Mapping[str, float] = {
    f'ecr_image_replication_duration_seconds_bucket{{{SOURCE},{THERE},le="900.0"}}': 9,
    f'ecr_image_replication_duration_seconds_bucket{{{SOURCE},{THERE},le="+Inf"}}': 10,
    f"ecr_image_replication_duration_seconds_count{{{SOURCE},{THERE}}}": 10,
}


def of_image(digest: str, repository: str = "team/app") -> str:
    return f'{{digest="{digest}",repository="{repository}",{SOURCE}}}'


#: The labels and values of each answer. Prometheus shows no empty label.
ANSWERS: Mapping[str, Mapping[str, float]] = {
    "Failing now, and why": {f'{{{V2},{THERE},{DENIED},job="ecr"}}': 1},
    "Since when": {f'{{{V2},{THERE},job="ecr"}}': 600},
    "How many at each destination": {f'{{{THERE},status="COMPLETE"}}': 7, f'{{{THERE},status="FAILED"}}': 1},
    "Which digest": {
        f'{{digest="{BAD}",repository="team/app",tag="v2",{SOURCE},{THERE},{DENIED},job="ecr"}}': 1
    },
    "COMPLETE, but cannot be pulled": {f'{{{V3},{THERE},job="ecr",reason="absent"}}': 1},
    "Running images that the standby does not have": {of_image(BAD): 1, of_image(GONE, "tools"): 1},
    "Running images that nothing watches": {of_image(GONE, "tools"): 1},
    "Is this tag everywhere": {'{repository="team/app",tag="v2"}': 0},
    "Share of pushes that were COMPLETE within 15 minutes": {f"{{{THERE}}}": 0.9},
    "Late now": {f"{{{THERE}}}": 1},
    "Repositories without a destination": {f'{{repository="tools",{SOURCE},job="ecr"}}': 0},
    "How far the backfill is": {f'{{{SOURCE},{THERE},job="ecr"}}': 0.75},
    "How old the knowledge is": {f'{{{SOURCE},job="ecr"}}': 45},
}  # fmt: skip


def input_series() -> list[dict[str, str]]:
    minutes = NOW // 60
    found = [(f"{name[:-1]},{HERE}}}", f"{float(value)}x{minutes}") for name, value in SERIES.items()]
    found += [(f"{name[:-1]},{HERE}}}", f"0+{gain}x{minutes}") for name, gain in GROWING.items()]
    found += [
        (f'kube_pod_container_info{{image_id="{image}",pod="pod-{number}"}}', f"1x{minutes}")
        for image, containers in RUNNING.items()
        for number in range(containers)
    ]
    return [{"series": series, "values": values} for series, values in found]


def test_each_query_has_an_answer_here() -> None:
    assert QUERIES.keys() == ANSWERS.keys()
    assert PAGE.count("```promql") == len(QUERIES)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_query_finds_what_it_says(name: str, tmp_path: Path, command: Callable[[str, str], str]) -> None:
    promtool = command("promtool", "prometheus")
    asked: dict[str, Any] = {
        "expr": QUERIES[name],
        "eval_time": f"{NOW}s",
        "exp_samples": [
            {"labels": labels.replace('digest="",', ""), "value": value}
            for labels, value in ANSWERS[name].items()
        ],
    }
    test = {"interval": "1m", "input_series": input_series(), "promql_expr_test": [asked]}
    run_tests(promtool, tmp_path, [test])
