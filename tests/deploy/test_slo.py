"""The burn rates of the objective over their real windows, by promtool, with the shipped rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.alert_cases import DESTINATION, SOURCE, D, S, bucket
from support.infrastructure import EXAMPLES
from support.promtool import run_tests

HOUR, DAY = 60, 24 * 60
#: Minutes between two samples and evaluations.
STEP = 5
FAST, SLOW = "ECRReplicationBudgetBurnsFast", "ECRReplicationBudgetBurnsSlowly"


@dataclass(frozen=True, slots=True)
class Push:
    """A push that is late. Times are minutes; it is not COMPLETE until `ends`."""

    at: int
    ends: int
    #: Where the exporter shows it: under its digest, or under these tags.
    tags: tuple[str, ...] = ()


def never(times: Iterable[int]) -> list[Push]:
    """Pushes that never become COMPLETE."""
    return [Push(at, 100 * DAY) for at in times]


@dataclass(frozen=True, slots=True)
class Story:
    about: str
    #: Pushes a minute that are COMPLETE in time, and the late ones.
    in_time: float
    late: Sequence[Push]
    #: Minutes at which alerts are looked at, and the names of those that fire.
    fires: dict[int, set[str]]


def shown(number: int, push: Push, until: int) -> list[dict[str, str]]:
    """The series of a late push while it is not COMPLETE."""
    digest = f"sha256:{number:064}"
    names = [f'repository="team/app",tag="{tag}",{S}' for tag in push.tags]
    names = names or [f'repository="team/app",digest="{digest}",{S}']
    info = [f'repository="team/app",tag="{tag}",digest="{digest}",{S}' for tag in push.tags]
    before, during = push.at // STEP, (min(push.ends, until) - push.at) // STEP

    def series(name: str, value: float) -> dict[str, str]:
        return {"series": name.replace("{", '{job="ecr",'), "values": f"_x{before} {value}x{during} stale"}

    return [
        *(series(f"ecr_image_pushed_timestamp_seconds{{{name}}}", push.at * 60) for name in names),
        *(
            series(f"ecr_image_replication_status_since_timestamp_seconds{{{name},{D}}}", push.at * 60)
            for name in names
        ),
        *(series(f"ecr_image_info{{{name}}}", 1) for name in info),
    ]


STORIES = (
    Story(
        "an outage of an hour is told within half an hour, and for as long as it lasts",
        in_time=1,
        late=never(range(2 * DAY, 2 * DAY + HOUR, 5)),
        fires={
            2 * DAY: set(),
            2 * DAY + 35: {FAST},
            2 * DAY + HOUR: {FAST, SLOW},
            2 * DAY + 3 * HOUR: {SLOW},
            2 * DAY + 9 * HOUR: set(),
        },
    ),
    Story(
        "one late push in 200 is five times the budget: too slow for the urgent alert",
        in_time=1,
        late=never(range(0, 3 * DAY, 200)),
        fires={HOUR: set(), 2 * DAY: {SLOW}, 3 * DAY - 5: {SLOW}},
    ),
    Story(
        "one late push in 2,000 is within the budget",
        in_time=2,
        late=never(range(0, 3 * DAY, 1000)),
        fires={2 * DAY: set(), 3 * DAY - 5: set()},
    ),
    Story(
        "a single late push among few has its own alerts",
        in_time=0.01,
        late=never([DAY]),
        fires={DAY + 30: set(), DAY + HOUR: set(), DAY + 6 * HOUR: set()},
    ),
    Story(
        "two failures from before are not told for ever",
        in_time=0.1,
        late=never([0, 5]),
        fires={HOUR: {FAST, SLOW}, 3 * DAY + 2 * HOUR: set()},
    ),
    Story(
        "pushes that become COMPLETE after half an hour are late too",
        in_time=1,
        late=[Push(at, at + 30) for at in range(DAY, DAY + HOUR, 10)],
        fires={DAY: set(), DAY + HOUR: {FAST, SLOW}},
    ),
)


def promtool(folder: Path, command: Callable[[str, str], str], tests: Sequence[dict[str, Any]]) -> None:
    """Runs the tests with the shipped rules of the objective. Fails with what promtool says."""
    groups = yaml.load((EXAMPLES / "prometheus" / "rules.yaml").read_text(), yaml.CSafeLoader)["groups"]
    (group,) = (group for group in groups if group["name"] == "ecr-replication-slo")
    interval = f"{STEP}m"
    run_tests(command("promtool", "prometheus"), folder, tests, groups=[group], evaluation_interval=interval)


def input_series(story: Story, until: int) -> list[dict[str, str]]:
    name = bucket("900.0").replace("{", '{job="ecr",')
    in_time = {"series": name, "values": f"0+{story.in_time * STEP}x{until // STEP}"}
    return [in_time, *(each for n, push in enumerate(story.late) for each in shown(n, push, until))]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.about)
def test_burn_rates(story: Story, tmp_path: Path, command: Callable[[str, str], str]) -> None:
    expr = f'group by (alertname) (ALERTS{{alertname=~"{FAST}|{SLOW}",alertstate="firing"}})'
    checks = [
        {
            "expr": expr,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for minute, names in story.fires.items()
    ]
    series = input_series(story, max(story.fires))
    promtool(
        tmp_path, command, [{"interval": f"{STEP}m", "input_series": series, "promql_expr_test": checks}]
    )


def test_a_push_under_two_tags_is_late_once(tmp_path: Path, command: Callable[[str, str], str]) -> None:
    story = Story("", in_time=1, late=[Push(0, DAY, tags=("v1", "latest"))], fires={})
    where = {"repository": "team/app", "digest": f"sha256:{0:064}", **SOURCE, **DESTINATION}
    labels = ",".join(f'{key}="{value}"' for key, value in where.items())
    late = f'ecr:late_push{{job="ecr",{labels}}}'
    checks = [
        {
            "expr": "ecr:late_push",
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": late, "value": 1}] if minute == 20 else [],
        }
        for minute in (15, 20, 25)
    ]
    tests = [{"interval": f"{STEP}m", "input_series": input_series(story, HOUR), "promql_expr_test": checks}]
    promtool(tmp_path, command, tests)


def test_what_is_left_of_the_budget(tmp_path: Path, command: Callable[[str, str], str]) -> None:
    """12,960 pushes in time and eight late ones: of 12,968 pushes, 12.968 may be late."""
    until = 3 * DAY
    story = Story("", in_time=3, late=never(range(0, until, 9 * HOUR)), fires={})
    where = ",".join(f'{key}="{value}"' for key, value in {**SOURCE, **DESTINATION}.items())
    left = {
        "expr": 'round(1000 * (1 - ecr:burn_rate{window="period"}))',
        "eval_time": f"{until}m",
        "exp_samples": [{"labels": f'{{job="ecr",window="period",{where}}}', "value": 383}],
    }
    series = input_series(story, until)
    promtool(
        tmp_path, command, [{"interval": f"{STEP}m", "input_series": series, "promql_expr_test": [left]}]
    )
