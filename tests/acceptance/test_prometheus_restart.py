"""What a restart of Prometheus does to an alert that fires, by the `for` clauses of the shipped rules.

Prometheus repeats a firing alert every minute, and Alertmanager resolves it three to four minutes after the
last repetition. An alert survives a restart if Prometheus restores it, or if it fires again within that time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from support.command import eventually
from support.monitoring import EXAMPLES, prometheus

#: Times of the test are so many times shorter than in production.
SCALE = 200
#: Seconds: the default of --rules.alert.for-grace-period. Prometheus restores alerts with a `for` that long.
GRACE = 600
#: Seconds in which an alert that is not restored has to fire again; the restart itself takes some of them.
PATIENCE, RESTART = 180, 60
#: A `for` that is neither restored nor short enough.
BAD = "5m"
#: The alerts that fired at several evaluations.
FIRED = "count_over_time(ALERTS{alertstate='firing'}[1m]) > 4"


def seconds(duration: str) -> int:
    """Of a duration with one unit."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def scaled(duration: float) -> str:
    return f"{int(duration * 1000 / SCALE)}ms"


def active_since(alert: Mapping[str, Any]) -> float:
    """Unix time. Prometheus writes nanoseconds, and Python reads microseconds."""
    return datetime.fromisoformat(re.sub(r"\.\d+", lambda match: match[0][:7], alert["activeAt"])).timestamp()


def test_alerts_survive_a_restart_of_prometheus(tmp_path: Path, command: Callable[[str, str], str]) -> None:
    groups = yaml.safe_load((EXAMPLES / "rules.yaml").read_text())["groups"]
    durations = {rule["for"] for group in groups for rule in group["rules"] if "alert" in rule} | {BAD}
    short = {each for each in durations if seconds(each) + RESTART <= PATIENCE}
    # What holds for 15m holds for more, and takes less time.
    judged = {each for each in durations - short if seconds(each) <= 900}
    rules = [{"alert": each, "expr": "vector(1)", "for": scaled(seconds(each))} for each in judged]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    config = {
        "global": {"evaluation_interval": scaled(30)},
        "rule_files": [str(tmp_path / "rules.yaml")],
    }
    grace = f"--rules.alert.for-grace-period={scaled(GRACE)}"
    began = []
    for _ in range(2):
        with prometheus(command("prometheus", "prometheus"), tmp_path / "data", config, grace) as program:
            eventually(lambda: len(program.query(FIRED)) == len(program.firing()) == len(judged))
            began.append({alert["labels"]["alertname"]: active_since(alert) for alert in program.firing()})
    before, after = began
    # A restored alert is active since the same whole second.
    assert {each for each in judged if after[each] - before[each] < 0.0} == judged - {BAD}
