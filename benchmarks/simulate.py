"""A week of one large registry in virtual time: calls, refused calls and delays.

Run it with `make simulate`. The real engine polls a simulated ECR (tests/support/simulation.py).
"""

from __future__ import annotations

import argparse
import gc
import time
from random import Random

from support.simulation import Registry, Simulation, calls_per_second, outage, percentiles

from exporter.config.settings import RegistrySettings, Settings, TargetSettings

DAY = 86400.0
HOUR = 3600.0
REPOSITORIES = 24
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
    settings = Settings(
        targets=(TargetSettings("*"),),
        registries=(RegistrySettings(name="us-east-1", region="us-east-1"),),
        requests_per_second=arguments.requests_per_second,
        discovery_interval=arguments.discovery_interval,
        settled_interval=arguments.settled_interval,
    )
    registry = Registry(sizes(arguments.images), seed=arguments.seed)
    simulation = Simulation(settings, registry, seed=arguments.seed)
    bursts(simulation, registry, days, Random(arguments.seed))
    started = simulation.clock.now
    bad = []
    hour = HOUR * days / 7  # the outages scale with the simulated time
    for begins, lasts, state in OUTAGES:
        outage(registry, simulation, begins=begins * hour, lasts=lasts * hour, **state)
        bad.append((started + begins * hour, started + (begins + lasts) * hour))
    gc.disable()  # there are no reference cycles, and the collector takes a sixth of the time
    began = time.perf_counter(), time.process_time()
    simulation.run(days * DAY)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    report(simulation, registry, arguments, bad, took)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests-per-second", type=float, default=10.0)
    parser.add_argument("--discovery-interval", type=float, default=300.0, help="seconds")
    parser.add_argument("--settled-interval", type=float, default=2 * DAY, help="seconds")
    return parser.parse_args()


def report(
    simulation: Simulation,
    registry: Registry,
    arguments: argparse.Namespace,
    bad: list[tuple[float, float]],
    took: tuple[float, float],
) -> None:
    settings, clock = simulation.settings, simulation.clock
    span = arguments.days * DAY
    total = registry.calls.total()
    needed = calls_per_second(
        settings,
        pages=registry.pages,
        settled=arguments.images,
        pushes=PUSHES_A_DAY / DAY,
        replication=MEAN_SECONDS,
    )
    print(f"{arguments.images} images in {REPOSITORIES} repositories ({sum(registry.pages)} pages), ", end="")
    print(f"{arguments.days:g} days, {len(registry.pushes)} pushes, ", end="")
    print(f"{settings.requests_per_second:g} calls/s allowed")
    print("simulated in {:.0f} s, with {:.0f} s of processor time\n".format(*took))
    row("calls", "number", "per second")
    for operation, number in registry.calls.most_common():
        row(operation, f"{number}", f"{number / span:.3f}")
    row("all", f"{total}", f"{total / span:.3f}")
    row("the sizing formula", "", f"{needed:.3f}")
    row("refused", f"{registry.refused}", f"{registry.refused / total:.2%}")
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
    print(f"{label:36}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
