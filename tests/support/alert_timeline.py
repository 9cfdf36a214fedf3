"""Series of an exporter over time, as input for promtool: with a failure and with restarts.

A timeline has one sample a minute and three phases: good with a restart near its end, bad with a restart
after the alert fired, and good. A restart removes all series for two minutes and resets counters. The second
restart also changes the address of the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: A metric that every exporter has.
BUILD = "ecr_replication_exporter_build_info"
#: Minutes.
GOOD, RESTART, BAD_AFTER_FIRING = 90, 2, 30

#: The value of a series, or a function of the moment; None means no sample.
Value = float | Callable[["Moment"], float | None]


@dataclass(frozen=True, slots=True)
class Moment:
    #: Minutes since the timeline began, since the phase began and since the exporter started.
    minute: int
    phase: int
    since_start: int


def clock(moment: Moment) -> float:
    """A timestamp that is always now."""
    return moment.minute * 60.0


def phase_start(moment: Moment) -> float:
    """The timestamp at which the phase began."""
    return (moment.minute - moment.phase) * 60.0


def counting(per_minute: float) -> Callable[[Moment], float]:
    """A counter that starts at 0 with the exporter."""
    return lambda moment: per_minute * moment.since_start


@dataclass(frozen=True, slots=True)
class Case:
    """An alert, the series that make it fire, and its text."""

    alert: str
    severity: str
    #: Series of the good phases and of the bad phase.
    good: Mapping[str, Value]
    bad: Mapping[str, Value]
    #: Minutes from the first bad sample until it fires, and from the next good sample until it resolves.
    fires_after: int
    resolves_within: int
    labels: Mapping[str, str]
    summary: str
    #: Minutes by which it may fire earlier, because windows of Prometheus 3 are open on the left.
    sooner: int = 0
    #: Whether the second restart changes the address of the exporter.
    moves: bool = True
    about: str = ""

    @property
    def fired(self) -> int:
        return GOOD + self.fires_after

    @property
    def healed(self) -> int:
        """The first good minute after the bad ones."""
        return self.fired + BAD_AFTER_FIRING

    @property
    def end(self) -> int:
        return self.healed + self.resolves_within


@dataclass(slots=True)
class _Track:
    tokens: list[str] = field(default_factory=list)
    shown: bool = False

    def add(self, value: float | None) -> None:
        gone = "stale" if self.shown else "_"
        self.tokens.append(gone if value is None else f"{value:g}" if value < 1e5 else f"{value:.0f}")
        self.shown = value is not None


def _restarts(case: Case) -> list[int]:
    return [GOOD - 10, case.fired + 5]


def input_series(case: Case) -> list[dict[str, str]]:
    """The timeline in promtool's notation."""
    tracks: dict[str, _Track] = {}
    first, second = _restarts(case)
    for minute in range(case.end + 1):
        series = case.bad if GOOD <= minute < case.healed else case.good
        phase = minute - (0 if minute < GOOD else GOOD if minute < case.healed else case.healed)
        started = max((r + RESTART for r in (first, second) if r + RESTART <= minute), default=-1000)
        away = any(r <= minute < r + RESTART for r in (first, second))
        moment = Moment(minute, phase, minute - started)
        address = "10.0.0.2:10042" if case.moves and minute >= second else "10.0.0.1:10042"
        now: dict[str, float | None] = {}
        for name, value in series.items():
            full = name if "instance=" in name else labelled(name, f'instance="{address}"')
            seen = value(moment) if callable(value) else value
            now[_of_a_job(full)] = seen if not away else 0 if name == "up" else None
        for name in now.keys() | tracks.keys():
            if name not in tracks:
                tracks[name] = _Track(["_"] * minute)
            tracks[name].add(now.get(name))
    return [{"series": name, "values": " ".join(track.tokens)} for name, track in sorted(tracks.items())]


def episode(
    healthy: Mapping[str, Value],
    meanwhile: Mapping[str, Value],
    *,
    begins: int,
    ends: int,
    until: int,
    alerts: Sequence[str],
) -> dict[str, Any]:
    """A promtool test in which `meanwhile` replaces the series `healthy` from minute `begins` to `ends`.

    No alert fires before, and exactly `alerts` fire until the minute `until`.
    """
    series = []
    for name in healthy.keys() | meanwhile.keys():
        track = _Track()
        for minute in range(until + 1):
            on = begins <= minute < ends
            started = ends if minute >= ends and not meanwhile.get(BUILD) else -1000
            moment = Moment(minute, minute - begins, minute - started)
            value = (meanwhile if on else healthy).get(name)
            track.add(value(moment) if callable(value) else value)
        full = name if "instance=" in name else labelled(name, 'instance="10.0.0.1:10042"')
        series.append({"series": _of_a_job(full), "values": " ".join(track.tokens)})

    def fired(minutes: int) -> str:
        return f'group by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{minutes}m]))'

    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    return {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {"expr": fired(begins), "eval_time": f"{begins}m", "exp_samples": []},
            {"expr": fired(until), "eval_time": f"{until}m", "exp_samples": expected},
        ],
    }


def _of_a_job(series: str) -> str:
    return series if "job=" in series else labelled(series, 'job="ecr"')


def labelled(series: str, label: str) -> str:
    return f"{series[:-1]},{label}}}" if series.endswith("}") else f"{series}{{{label}}}"


def promtool_test(case: Case) -> dict[str, Any]:
    """The case as one of promtool's tests."""
    labels = {"severity": case.severity, "job": "ecr", **case.labels}
    if labels["job"] == "":
        del labels["job"]
    text = ",".join(f'{key}="{value}"' for key, value in {"alertname": case.alert, **labels}.items())
    firing = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'

    def samples(until: int, minutes: int, expected: list[dict[str, Any]]) -> dict[str, Any]:
        """The number of samples that fire in the last `minutes`, with `until` as the last one."""
        expr = f"count_over_time({firing}[{minutes * 60 - 30}s])"
        return {"expr": expr, "eval_time": f"{until}m", "exp_samples": expected}

    steady = {"labels": f'{{{text},alertstate="firing"}}', "value": case.healed - case.fired}
    return {
        "name": f"{case.alert} {case.about}".strip(),
        "interval": "1m",
        "input_series": input_series(case),
        "alert_rule_test": [
            {
                "eval_time": f"{case.fired + 1}m",
                "alertname": case.alert,
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": {"summary": case.summary}}],
            }
        ],
        "promql_expr_test": [
            samples(case.fired - 1 - case.sooner, case.fired, []),
            samples(case.healed - 1, case.healed - case.fired, [steady]),
            samples(case.end, 1, []),
        ],
    }
