"""A week of one large registry and its destinations in virtual time: calls, refused calls and delays.

Run it with `make simulate`. The real engine polls a simulated ECR (tests/support/simulation.py).
`--calm --warm-up 6 --days 1` gives the calls of a day without the start and without failures of AWS.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from random import Random
from typing import Any

from support.fakes import ACCOUNT
from support.simulation import Copies, Registry, Simulation, calls_per_second, outage, percentiles

from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.replication.model import Destination

DAY = 86400.0
HOUR = 3600.0
REPOSITORIES = 24
#: Where every image is replicated to; `--destinations` takes the first of them.
DESTINATIONS = tuple(
    Destination(region, ACCOUNT) for region in ("eu-west-1", "us-west-2", "ap-southeast-2", "sa-east-1")
)
PUSHES_A_DAY, BURSTS_A_DAY = 500, 25
#: Replication takes 8 s in the median and four minutes in the 99th percentile.
MEDIAN_SECONDS, SIGMA = 8.0, 1.5
MEAN_SECONDS = 24.6
FAILS = 0.01
#: Failures of AWS: begin and length in hours, and the state: slow and lost answers, an allowance below the
#: configured one, a role that cannot be assumed.
OUTAGES: tuple[tuple[float, float, dict[str, object]], ...] = (
    (33, 4, {"latency": 1.0, "lost_share": 0.02}),
    (81, 6, {"allowed": 4.0}),
    (129, 3, {"revoked": True}),
)


def sizes(images: int) -> list[int]:
    """The images of each repository: two fifths of all in the first, the rest evenly in the others."""
    large = images * 2 // 5
    small, over = divmod(images - large, REPOSITORIES - 1)
    return [large, *(small + (n < over) for n in range(REPOSITORIES - 1))]


def bursts(simulation: Simulation, registry: Registry, days: float, random: Random) -> None:
    """Schedule bursts of pushes. Each pushes to one repository for five minutes."""

    def push(name: str) -> None:
        seconds = MEDIAN_SECONDS * random.lognormvariate(0, SIGMA)
        registry.push(name, takes=seconds * registry.latency / 0.05, fails=random.random() < FAILS)

    start = simulation.clock.now
    for _ in range(round(days * BURSTS_A_DAY)):
        begins = start + random.uniform(0, days) * DAY
        name = random.choice(registry.names)
        for _ in range(PUSHES_A_DAY // BURSTS_A_DAY):
            simulation.at(begins + random.uniform(0, 300), lambda name=name: push(name))


def main() -> None:
    arguments = parsed()
    days = arguments.days
    destinations = DESTINATIONS[: arguments.destinations]
    intervals: dict[str, Any] = {
        "discovery_interval": arguments.discovery_interval,
        "settled_interval": arguments.settled_interval,
    }
    if arguments.replica_interval is not None:
        intervals["replica_interval"] = arguments.replica_interval
    settings = Settings(
        targets=(TargetSettings("*"),),
        registries=(RegistrySettings(name="us-east-1", region="us-east-1"),),
        requests_per_second=arguments.requests_per_second,
        **intervals,
    )
    registry = Registry(sizes(arguments.images), destinations=destinations, seed=arguments.seed)
    everywhere = [registry, *(Copies(registry, destination) for destination in destinations)]
    simulation = Simulation(settings, *everywhere, seed=arguments.seed)
    gc.disable()  # there are no reference cycles, and the collector takes a sixth of the time
    began = time.perf_counter(), time.process_time()
    simulation.run(arguments.warm_up * HOUR)
    for each in everywhere:
        each.forget_calls()
    bursts(simulation, registry, days, Random(arguments.seed))
    started = simulation.clock.now
    bad = []
    hour = HOUR * days / 7  # the outages scale with the simulated time
    for begins, lasts, state in () if arguments.calm else OUTAGES:
        outage(registry, simulation, begins=begins * hour, lasts=lasts * hour, **state)
        bad.append((started + begins * hour, started + (begins + lasts) * hour))
    simulation.run(days * DAY)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    report(simulation, everywhere, arguments, bad, took)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--destinations", type=int, choices=range(1, len(DESTINATIONS) + 1), default=3)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--warm-up", type=float, default=0.0, help="hours before the days, without pushes")
    parser.add_argument("--calm", action="store_true", help="AWS does not fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests-per-second", type=float, default=10.0)
    parser.add_argument("--discovery-interval", type=float, default=300.0, help="seconds")
    parser.add_argument("--settled-interval", type=float, default=2 * DAY, help="seconds")
    parser.add_argument("--replica-interval", type=float, help="seconds; 0 for never")
    return parser.parse_args()


def report(
    simulation: Simulation,
    everywhere: list[Registry],
    arguments: argparse.Namespace,
    bad: list[tuple[float, float]],
    took: tuple[float, float],
) -> None:
    settings, clock = simulation.settings, simulation.clock
    registry, *destinations = everywhere
    span = arguments.days * DAY
    calls = sum((each.calls for each in everywhere), Counter[str]())
    total, refused = calls.total(), sum(each.refused for each in everywhere)
    looks = bool(sum(each.calls.total() for each in destinations))
    needed = calls_per_second(
        settings,
        pages=registry.pages,
        settled=0 if looks else arguments.images,
        failed=round(FAILS * PUSHES_A_DAY * arguments.days / 2),
        pushes=PUSHES_A_DAY / DAY,
        replication=MEAN_SECONDS,
        copies=[sum(registry.pages)] * len(destinations) if looks else (),
        replica_interval=getattr(settings, "replica_interval", 0.0),
    )
    print(f"{arguments.images} images in {REPOSITORIES} repositories ({sum(registry.pages)} pages), ", end="")
    print(f"{len(destinations)} destinations, ", end="")
    print(f"{arguments.days:g} days, {len(registry.pushes)} pushes, ", end="")
    print(f"{settings.requests_per_second:g} calls/s allowed")
    print("simulated in {:.0f} s, with {:.0f} s of processor time\n".format(*took))
    image_days = arguments.images * arguments.days
    row("calls", "number", "per second", "image and day")
    for each in everywhere:
        for operation, number in each.calls.most_common():
            rates = (f"{number / span:.3f}", f"{number / image_days:.3f}")
            row(f"{each.region} {operation}", f"{number}", *rates)
    row("all", f"{total}", f"{total / span:.3f}", f"{total / image_days:.3f}")
    row("the sizing formula", "", f"{needed:.3f}", f"{needed * DAY / arguments.images:.3f}")
    row("refused", f"{refused}", f"{refused / total:.2%}")
    row("busiest second", f"{max(registry.per_second.values())}", "")
    print()
    row("seconds", "p50", "p99", "max")
    asked = [push for push in registry.pushes if push.asked is not None and push.listed is not None]
    seen = [(push.at, push.listed or 0.0, push.asked or 0.0) for push in asked]
    quantiles("push to listed", [listed - at for at, listed, _ in seen])
    quantiles("listed to asked", [max(0.0, asked - listed) for _, listed, asked in seen])
    quantiles("push to asked", [asked - at for at, _, asked in seen])
    early = settings.discovery_interval  # an outage also delays images that were pushed shortly before it
    fair = [times for times in seen if not any(begin - early < times[0] < end for begin, end in bad)]
    quantiles("  without outage: listed to asked", [asked - listed for _, listed, asked in fair])
    quantiles("  without outage: push to asked", [asked - at for at, _, asked in fair])
    quantiles("overdue", simulation.overdue)
    late = [max(0.0, gap - settings.settled_interval) for gap in registry.gaps]
    quantiles("settled image beyond its interval", late)
    longest = max((clock.now - at for at in registry.answered.values()), default=0.0)
    row("longest unasked at the end", "", "", f"{max(0.0, longest - settings.settled_interval):.1f}")
    print()
    shares = [
        registry.asked[name] / total_asked / (size / arguments.images)
        for name, size in zip(registry.names, sizes(arguments.images), strict=True)
        if (total_asked := registry.asked.total())
    ]
    row("status calls of a repository", "least", "most")
    row("of its fair share", f"{min(shares):.3f}", f"{max(shares):.3f}")
    unasked = len(registry.pushes) - len(asked)
    row("pushes not asked about yet", f"{unasked}", "")


def quantiles(label: str, values: object) -> None:
    row(label, *(f"{value:.1f}" for value in percentiles(values)))  # type: ignore[arg-type]


def row(label: str, *cells: str) -> None:
    print(f"{label:44}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
