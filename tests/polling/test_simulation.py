"""What the engine promises, held over hours of virtual time on a registry that takes time to answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.simulation import STATUS, Registry, Simulation, calls_per_second, outage

from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.polling.workers import MAX_HANDED_OUT

ROOT = Path(__file__).parents[2]
HOUR = 3600.0


def settings(*regions: str, **knobs: object) -> Settings:
    base: dict[str, object] = {
        "targets": (TargetSettings("*"),),
        "registries": tuple(RegistrySettings(name=r, region=r) for r in regions or ("us-east-1",)),
        "replica_interval": 0.0,
    }
    return Settings(**{**base, **knobs})  # type: ignore[arg-type]


def test_settled_images_cost_a_hundredth_of_asking_each_whenever_listing() -> None:
    registry = Registry([200] * 10)
    simulation = Simulation(settings(), registry)
    simulation.run(500)
    assert len(registry.answered) == 2000
    before = registry.calls.copy()
    simulation.run(0.85 * 6 * HOUR)
    assert registry.calls[STATUS] == before[STATUS] == 2000
    simulation.run(0.15 * 6 * HOUR)
    assert registry.calls[STATUS] > before[STATUS]
    assert (registry.calls - before).total() <= 2000 * 6 * HOUR / 60 / 100


def test_between_settled_checks_only_pushes_are_asked_about() -> None:
    registry = Registry([200] * 10)
    simulation = Simulation(settings(), registry)
    simulation.run(500)
    before = registry.calls[STATUS]
    for name in registry.names[:5]:
        registry.push(name)
    simulation.run(4 * HOUR)
    assert registry.calls[STATUS] == before + 5


def test_few_calls_are_refused_and_much_of_the_allowance_is_used() -> None:
    registry = Registry([500] * 20)
    registry.allowed = 40.0
    simulation = Simulation(settings(requests_per_second=400.0), registry)
    simulation.run(5)
    calls, refused = registry.calls.total(), registry.refused
    simulation.run(120)
    calls, refused = registry.calls.total() - calls, registry.refused - refused
    assert refused <= 0.05 * calls
    assert calls - refused >= 0.85 * 40 * 120


def test_the_rate_is_not_far_beyond_what_the_workers_can_ask() -> None:
    registry = Registry([1000] * 20)
    registry.latency = 0.5
    simulation = Simulation(settings(requests_per_second=400.0), registry)
    simulation.run(60)
    (rate,) = simulation.poller.rates().values()
    assert MAX_HANDED_OUT / 0.5 <= rate <= 1.5 * MAX_HANDED_OUT / 0.5


@pytest.mark.parametrize("allowed", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("throttled", [STATUS, "DescribeImages"])
def test_an_operation_that_is_throttled_alone_is_asked_less_and_the_others_as_before(
    throttled: str, allowed: float
) -> None:
    """A cold start of 20,000 images in 40 repositories, while listings fall due 2/3 times a second."""
    registry = Registry([500] * 40)
    registry.allowed, registry.throttled = allowed, throttled
    simulation = Simulation(settings(), registry)
    if throttled != STATUS:
        registry.allowed = None
        simulation.run(10)
        registry.allowed = allowed
    simulation.run(60)
    calls, refused = registry.calls.copy(), registry.refused
    simulation.run(600)
    calls, refused = registry.calls - calls, registry.refused - refused
    wanted = {STATUS: 10 - 2 / 3, "DescribeImages": 2 / 3}
    for operation, rate in wanted.items():
        if operation == throttled:
            assert calls[operation] - refused >= 0.85 * min(allowed, rate) * 600
        else:
            assert calls[operation] >= 0.9 * rate * 600
    assert refused <= max(0.05 * calls.total(), 0.25 * 600 * (allowed == 0))


@pytest.mark.parametrize("clock", [0.0, 60.0])
def test_a_push_is_asked_about_within_five_seconds_of_being_listed(clock: float) -> None:
    """One alone and 20 at once, before 50,000 overdue images, at 10 calls a second, beside listings."""
    registry = Registry([2500] * 20)
    simulation = Simulation(settings(), registry)
    simulation.run(30)
    for name, burst in zip(registry.names[::5], (1, 20, 1, 20), strict=True):
        for _ in range(burst):
            registry.push(name)
        simulation.clock.wall_ahead += clock
        simulation.run(65)
    assert registry.calls[STATUS] < 4000
    assert len(registry.pushes) == 42
    for push in registry.pushes:
        assert push.listed is not None
        assert push.asked is not None
        assert push.asked - push.listed <= 5.0 + 1e-6


def test_a_start_does_not_take_what_it_finds_for_pushes_of_the_moment() -> None:
    """Of six hours; to go first is for the few that came within the last minutes."""
    registry = Registry([100] * 100, oldest=6 * HOUR)
    simulation = Simulation(settings(), registry)
    simulation.run(30)
    assert registry.calls["DescribeImages"] == 100


def test_many_pushes_at_once_hold_up_no_listing_for_long() -> None:
    registry = Registry([30] * 100)
    simulation = Simulation(settings(), registry)
    simulation.run(600)
    for name in registry.names:
        for _ in range(20):
            registry.push(name)
    simulation.run(100)
    before = registry.calls["DescribeImages"]
    simulation.run(100)
    assert registry.calls["DescribeImages"] - before >= 100


def test_pushes_that_get_no_answer_stop_nothing() -> None:
    registry = Registry([20] * 20)
    simulation = Simulation(settings(), registry)
    simulation.run(600)
    for name in registry.names:
        registry.unanswered.add(registry.push(name).digest)
    before = registry.calls["DescribeImages"]
    simulation.run(600)
    assert registry.calls["DescribeImages"] - before >= 150
    pushed = registry.push(registry.names[0])
    simulation.run(120)
    assert pushed.asked is not None


@pytest.mark.parametrize("what", ["rules", "reload"])
def test_images_that_are_new_for_another_reason_are_no_pushes(what: str) -> None:
    """All of the last hour; and listings take half of the budget."""
    registry = Registry([100] * 300, oldest=HOUR)
    few = settings(targets=(TargetSettings("*", latest=1),))
    simulation = Simulation(few if what == "reload" else settings(), registry)
    simulation.run(300)
    if what == "reload":
        simulation.poller.configure(settings())
    else:
        registry.rules = ()
    simulation.run(130)
    before = registry.calls["DescribeImages"]
    simulation.run(120)
    assert registry.calls["DescribeImages"] - before >= 540


def test_an_old_image_is_asked_about_at_last_however_much_is_pushed() -> None:
    registry = Registry([100, 1000])
    old, busy = registry.names
    simulation = Simulation(settings(requests_per_second=4.0), registry)
    for number in range(2400):
        simulation.at(simulation.clock.now + number / 4, lambda: registry.push(busy))
    simulation.run(600)
    assert registry.asked[old] >= 100


def test_a_registry_that_hangs_takes_nothing_from_another() -> None:
    hanging, healthy = Registry([1000], region="us-west-2"), Registry([1000])
    hanging.lost_share = 1.0
    simulation = Simulation(settings("us-west-2", "us-east-1"), hanging, healthy)
    simulation.run(110)
    assert len(healthy.answered) == 1000
    assert healthy.refused == 0


def test_neither_start_nor_reload_bursts() -> None:
    registry = Registry([100] * 50)
    simulation = Simulation(settings(requests_per_second=50.0, settled_interval=600.0), registry)
    simulation.run(60)
    simulation.poller.configure(settings(requests_per_second=50.0, settled_interval=60.0))
    simulation.run(120)
    # The bucket holds a tenth of a second's worth.
    assert max(registry.per_second.values()) <= 50 + 5 + 1


def test_a_role_that_is_revoked_for_hours_heals_by_itself() -> None:
    registry = Registry([50] * 10)
    simulation = Simulation(settings(), registry)
    simulation.run(600)
    outage(registry, simulation, begins=0, lasts=2 * HOUR, revoked=True)
    before = registry.calls.total()
    simulation.run(HOUR)
    missed = registry.push(registry.names[0])
    assert simulation.journal.failing
    simulation.run(HOUR)
    # Half a minute between probes at the longest, half of that by chance.
    assert registry.calls.total() - before <= 2 * HOUR / 15 + 20
    simulation.run(120)
    assert simulation.journal.failing == {}
    assert missed.asked is not None
    registries = simulation.store.snapshot(simulation.clock.now, images=False).registries
    assert all(target.success for registry in registries for target in registry.targets)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_moves_no_interval(hours: float) -> None:
    def calls(jump: float) -> Counter[str]:
        registry = Registry([60] * 5)
        simulation = Simulation(settings(settled_interval=HOUR), registry)
        simulation.run(HOUR / 2)
        simulation.clock.wall_ahead += jump
        simulation.run(2 * HOUR)
        return registry.calls

    assert calls(hours * HOUR) == calls(0)


def test_a_repository_of_a_hundred_pages_does_not_hold_up_the_others() -> None:
    registry = Registry([*[3] * 10, 10_000], page_size=100)
    huge = registry.names[-1]
    simulation = Simulation(settings(requests_per_second=20.0), registry)
    simulation.run(6)
    assert registry.calls["DescribeImages"] < 100  # its listing is under way
    assert all(registry.asked[name] == 3 for name in registry.names[:-1])
    registry.push(huge)
    simulation.run(60)
    assert registry.asked[huge] > 0
    newest = registry.push(registry.names[0])
    simulation.run(65)
    assert newest.asked is not None


@pytest.mark.parametrize(
    ("sizes", "failing", "pushes", "takes", "knobs"),
    [
        ([100] * 20, 0, 0, 0.0, {"settled_interval": HOUR}),
        ([3500, *[20] * 20], 60, 0, 0.0, {"settled_interval": HOUR}),
        ([400] * 5, 20, 200, 100.0, {"settled_interval": HOUR, "discovery_interval": 30.0}),
        ([400] * 5, 20, 200, 1200.0, {"settled_interval": HOUR, "discovery_interval": 30.0}),
    ],
)
def test_the_sizing_formula_holds_within_a_fifth(
    sizes: list[int], failing: int, pushes: int, takes: float, knobs: dict[str, object]
) -> None:
    registry = Registry(sizes)
    chosen = settings(**knobs)
    simulation = Simulation(chosen, registry)
    for _ in range(failing):
        registry.push(registry.names[0], fails=True)
    span = 2 * chosen.settled_interval
    for number in range(pushes):
        when = simulation.clock.now + chosen.settled_interval + span * number / pushes
        name = registry.names[number % len(sizes)]
        simulation.at(when, lambda name=name: registry.push(name, takes=takes))  # type: ignore[misc]
    simulation.run(chosen.settled_interval)
    before = registry.calls.total()
    simulation.run(span)
    needed = calls_per_second(
        chosen,
        pages=registry.pages,
        settled=sum(sizes) - failing,
        failed=failing,
        pushes=pushes / span,
        replication=takes,
    )
    assert (registry.calls.total() - before) / span == pytest.approx(needed, rel=0.2)


def test_the_examples_in_the_document_are_what_the_formula_gives() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+)s \| (\d+)h \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for images, repositories, pages, discovery, hours, rate in rows:
        chosen = settings(discovery_interval=float(discovery), settled_interval=float(hours) * HOUR)
        lengths = [1] * (int(repositories) - 1)
        lengths.append(int(pages) - len(lengths))
        assert calls_per_second(chosen, pages=lengths, settled=int(images)) == pytest.approx(
            float(rate), abs=0.006
        )


def test_the_report_is_printed() -> None:
    command = [sys.executable, "benchmarks/simulate.py", "--images", "1000", "--days", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "push to asked" in done.stdout
    assert "the sizing formula" in done.stdout
