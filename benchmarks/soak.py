"""A long life in short: the real command under churn, faults, reloads and scrapes, watched all the time.

Run it with `make soak` (ten minutes; ARGS="--minutes 60" for an hour). Needs Linux: /proc tells what it uses.
The intervals are seconds, not minutes and hours. It ends with exit code 1 if any of this does not hold:

- What /metrics says was true of that image within `STATUS_WITHIN` seconds (`NAMES_WITHIN` for which
  images there are), and what stood unchanged for as long is shown. While AWS fails and the exporter
  recovers, series may be as old as `stale_after` allows, or absent, but not false. Recovery, which is that
  all this holds for a while, no target fails, and nothing is overdue, takes `HEALED_WITHIN` at most.
- Memory, threads and file descriptors do not grow: of what is left after warming up, which takes a quarter
  and until each fault was played once, the last fifth is compared with the first by medians.
- No log line is an error, but for those about the bad files of reloads; none holds a traceback.
- Every scrape is answered whole within ten seconds; every reload is taken, or refused, as it deserves.
- SIGTERM ends it with 0 within five seconds.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from soak_truth import Shown, Truth, Watching, read
from soak_world import HOMES, OTHER, Churn, Scrapers, Weather
from support.command import Command, ask, running
from support.embedded_aws import EmbeddedAWS

from exporter.demo import REGION
from exporter.polling.workers import MAX_IN_FLIGHT

#: Seconds: what the exporter is configured to.
DISCOVERY, PENDING, FAILED, SETTLED, STALE_AFTER = 2.0, 2.0, 4.0, 8.0, 20.0
RATE = 60.0
#: Seconds that a busy machine may add to anything.
SLACK = 6.0
#: A new image is found by a listing of repositories and then one of images, and asked about at once.
NAMES_WITHIN = 2 * DISCOVERY + SLACK
#: An answer is good for the longest of the intervals; a tag moved by then is seen by a listing.
STATUS_WITHIN = SETTLED + DISCOVERY + SLACK
#: After an episode of n seconds a back-off may last 2n + 1 more, a hanging call 10. What throttling taught
#: lasts longest: a rate that fell to 3 a second is at 8 after a minute, and at 19 after 80 s (budget.py).
EPISODE, CALM = (4.0, 12.0), (15.0, 30.0)
HEALED_WITHIN = 2 * EPISODE[1] + 1 + 10.0 + 60.0
#: In the first round, which is to warm up: shorter ones.
FIRST_EPISODE, FIRST_CALM = (3.0, 3.0), (1.0, 1.0)
#: Seconds between two reloads.
RELOAD_EVERY = (4.0, 12.0)

#: Growth that is none. Memory: the allocator keeps what a burst needed, and after expired credentials
#: there are two sessions until the old one is collected, which is some 10 MiB.
MORE_MEMORY = 12.0
#: Threads and descriptors: each registry may have its workers, with a connection each; the rest are the
#: process's own, and scrapes. Up to here they are not judged, beyond it they must not grow by more.
MOST_THREADS, MORE_THREADS = len(HOMES) * MAX_IN_FLIGHT + 12, 4
MOST_DESCRIPTORS, MORE_DESCRIPTORS = len(HOMES) * MAX_IN_FLIGHT + 20, 8
#: Shorter runs say nothing about growth.
SHORTEST_JUDGED = 120.0

_REST = f"""
registries:
  - name: home
    region: {HOMES[0].region}
  - name: theirs
    region: {HOMES[1].region}
    role_arn: arn:aws:iam::{OTHER}:role/reader
    external_id: planted-secret
discovery_interval: {DISCOVERY:.0f}s
pending_interval: {PENDING:.0f}s
failed_interval: {FAILED:.0f}s
settled_interval: {SETTLED:.0f}s
stale_after: {STALE_AFTER:.0f}s
requests_per_second: {RATE:.0f}
"""
#: The configurations that reloads change between: targets next to `latest`, and what they mean.
CONFIGURATIONS = (
    (
        "{repository: 'team/*'}, {repository: 'lib/*', tags: ['v*'], latest: 6}",
        (Watching("team/"), Watching("lib/", ("v*",), 6)),
    ),
    (
        "{repository: 'team/*', tags: ['v*', latest]}, {repository: 'lib/*'}",
        (Watching("team/", ("v*", "latest")), Watching("lib/")),
    ),
    (
        "{repository: 'team/*', latest: 4}",
        (Watching("team/", latest=4),),
    ),
)
BAD_FILES = (
    "targets: []",
    "targets: [{repositry: team/app}]",
    "{",
    "\x00",
    "targets: [{repository: 'team/*'}]\nrate: 1",
)


def configure(file: Path, number: int) -> tuple[Watching, ...]:
    """Write a configuration; what it watches."""
    targets, watching = CONFIGURATIONS[number]
    state = file.with_name("state")
    file.write_text(
        f"targets: [{targets}, {{repository: team/api, tag: latest}}]\nstate_file: {state}\n{_REST}"
    )
    return (*watching, Watching("team/api", ("latest",)))


class Usage(NamedTuple):
    at: float
    memory: float  # MiB, resident
    threads: int
    descriptors: int


def usage(pid: int) -> Usage:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Usage(
        time.monotonic(),
        int(fields["VmRSS"].split()[0]) / 1024,
        int(fields["Threads"]),
        sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    )


@dataclass(slots=True)
class Findings:
    """What was wrong, each thing once; said when it is found."""

    began: float
    found: Counter[str] = field(default_factory=Counter)

    def add(self, problem: str) -> None:
        self.found[problem] += 1
        if self.found[problem] == 1 and len(self.found) <= 50:
            print(f"{time.monotonic() - self.began:7.1f} s  WRONG: {problem}", flush=True)


class LogReader:
    """Reads the log as it grows, and finds what must not be in it."""

    def __init__(self, file: Path, findings: Findings) -> None:
        self._file = file.open()
        self._findings = findings
        self._rest = ""
        self.lines = 0

    def check(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            self.lines += 1
            error = " level=error " in line and " msg=config_invalid " not in line
            if error or "raceback" in line or "planted-secret" in line or not line.startswith("time="):
                self._findings.add(f"log: {line[:2000]}")


class Reloads:
    """Good files and bad ones, by signal and by request."""

    def __init__(
        self, command: Command, file: Path, truth: Truth, findings: Findings, random: Random
    ) -> None:
        self._command = command
        self._file = file
        self._truth = truth
        self._findings = findings
        self._random = random
        self._in_force = 0
        self._kinds: Iterator[Callable[[], None]] = iter(())
        self.done: Counter[str] = Counter()

    def next(self) -> None:
        kind = next(self._kinds, None)
        if kind is None:
            kinds = [self._post, self._signal, self._post_bad, self._signal_bad, self._post_many]
            self._random.shuffle(kinds)
            self._kinds = iter(kinds)
            kind = next(self._kinds)
        kind()
        self.done[kind.__name__.strip("_")] += 1

    def _good(self) -> None:
        self._in_force = (self._in_force + 1) % len(CONFIGURATIONS)
        watching = configure(self._file, self._in_force)
        self._truth.record()
        self._truth.watching = watching
        self._truth.record()

    def _bad(self) -> None:
        self._file.write_text(self._random.choice(BAD_FILES))

    def _post(self) -> None:
        self._good()
        self._posted(200)

    def _post_bad(self) -> None:
        self._bad()
        self._posted(500)
        self._confirmed(lambda shown: not shown.reload_successful, "POST of a bad file")
        self._post()

    def _post_many(self) -> None:
        """At the same time: they come one after the other."""
        self._good()
        threads = [threading.Thread(target=self._posted, args=(200,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _signal(self) -> None:
        before = read(self._command.page()).reload_time
        self._good()
        self._command.process.send_signal(signal.SIGHUP)
        self._confirmed(lambda shown: shown.reload_successful and shown.reload_time > before, "SIGHUP")

    def _signal_bad(self) -> None:
        self._bad()
        self._command.process.send_signal(signal.SIGHUP)
        self._confirmed(lambda shown: not shown.reload_successful, "SIGHUP with a bad file")
        self._signal()

    def _posted(self, expected: int) -> None:
        answer = ask(f"{self._command.url}/-/reload", method="POST")
        if answer.status != expected:
            self._findings.add(f"reload answers {answer.status} instead of {expected}: {answer.body}")

    def _confirmed(self, seen: Callable[[Shown], bool], what: str) -> None:
        end, pause = time.monotonic() + SLACK, threading.Event()
        while not seen(read(self._command.page())):
            if time.monotonic() > end:
                self._findings.add(f"reload by {what} is not seen in the metrics")
                return
            pause.wait(0.1)


class Sky:
    """Fault, recovery, calm, and so on: what is asked of a page depends on it."""

    def __init__(self, weather: Weather, findings: Findings, random: Random) -> None:
        self._weather = weather
        self._findings = findings
        self._random = random
        self._kinds = list(weather.kinds)
        self._deck: list[str] = list(self._kinds)
        self.kind = "start"
        self.phase = "healing"
        self.rounds = 0
        self.warm = time.monotonic()  # when each fault had been played once
        #: When the episode began, when it ended, and when the phase ends.
        self.began = self._ended = time.monotonic()
        self._until = 0.0
        self._well_since: float | None = None  # after a fault
        self.healed: dict[str, float] = {}
        self.episodes: Counter[str] = Counter()

    def step(self, now: float) -> None:
        if self.phase == "calm" and now >= self._until:
            self._deck = self._deck or self._random.sample(self._kinds, len(self._kinds))
            self.kind = self._deck.pop()
            self.phase, self.began = "fault", now
            self._until = now + self._random.uniform(*(EPISODE if self.rounds else FIRST_EPISODE))
            self.episodes[self.kind] += 1
            self._weather.turn(self.kind)
        elif self.phase == "fault" and now >= self._until:
            self._weather.clear()
            self.phase, self._ended, self._well_since = "healing", now, None

    def judged(self, now: float, problems: list[str]) -> None:
        """Take whether a page is as it should be when all is calm."""
        if self.phase == "calm":
            for problem in problems:
                self._findings.add(f"{problem} (calm since {self.kind})")
        elif self.phase == "healing":
            # Being well lasts: what a reload added meanwhile has to be on the page only after a while.
            self._well_since = None if problems else self._well_since or now
            if (late := now - self._ended > HEALED_WITHIN) and problems:
                self._findings.add(f"{self.kind} is not over: {'; '.join(problems[:3])}")
            if late or now - (self._well_since or now) > NAMES_WITHIN:
                self.healed[self.kind] = max(self.healed.get(self.kind, 0.0), now - self._ended)
                if not self._deck:
                    self.rounds += 1
                    self.warm = now if self.rounds == 1 else self.warm
                self.phase = "calm"
                self._until = now + self._random.uniform(*(CALM if self.rounds else FIRST_CALM))


class Soak:
    """One run."""

    def __init__(
        self, command: Command, directory: Path, aws: EmbeddedAWS, arguments: argparse.Namespace
    ) -> None:
        random = Random(arguments.seed)
        self.began = time.monotonic()
        self.end = self.began + arguments.seconds
        self.findings = Findings(self.began)
        self.command = command
        self.aws = aws
        self.truth: Truth = arguments.truth
        self.churn: Churn = arguments.churn
        self.weather = Weather(aws, Random(arguments.seed + 1))
        self.sky = Sky(self.weather, self.findings, random)
        self.reloads = Reloads(command, directory / "config.yaml", self.truth, self.findings, random)
        self.log = LogReader(directory / "exporter.log", self.findings)
        self.usages: list[Usage] = []
        self.lag = 0.0
        self.names = 0
        self.judged: Counter[str] = Counter()
        self._random = random
        self._failing_since: float | None = None

    def run(self) -> None:
        pause = threading.Event()
        next_page = next_usage = 0.0
        next_reload, next_line = self.began + 10.0, self.began + 60.0
        while (now := time.monotonic()) < self.end:
            if self.command.process.poll() is not None:
                self.findings.add(f"it ended by itself with {self.command.process.returncode}")
                return
            self.sky.step(now)
            self.churn.step(now)
            self.truth.record()
            if now >= next_page:
                self._judge()
                next_page = now + 0.5
            if now >= next_usage:
                self.usages.append(usage(self.command.process.pid))
                self.log.check()
                next_usage = now + 1.0
            if now >= next_reload:
                self.reloads.next()
                next_reload = now + self._random.uniform(*RELOAD_EVERY)
            if now >= next_line:
                self._progress()
                next_line += 60.0
            pause.wait(0.1)

    def _judge(self) -> None:
        at = time.monotonic()
        shown = read(self.command.page())
        self.truth.record()  # what became true while the page was made
        self.judged[self.sky.phase] += 1
        for problem in shown.problems:
            self.findings.add(problem)
        strict = [
            *self.truth.false(shown, names_since=at - NAMES_WITHIN, status_since=at - STATUS_WITHIN),
            *self.truth.absent(shown, since=at - NAMES_WITHIN),
            *self._unwell(shown, at),
        ]
        if self.sky.phase == "calm":
            self.names = len(shown.digests)
            if not strict:
                self.lag = max(self.lag, self.truth.lag(shown, at))
        else:
            oldest = max(self.sky.began - STATUS_WITHIN, at - SETTLED - STALE_AFTER - SLACK)
            for problem in self.truth.false(shown, names_since=oldest, status_since=oldest):
                self.findings.add(f"{problem} (during {self.sky.kind})")
        self.sky.judged(at, strict)

    def _unwell(self, shown: Shown, at: float) -> Iterator[str]:
        """In calm a target may fail for a moment: a repository was deleted between two calls."""
        if not shown.failing_targets:
            self._failing_since = None
        else:
            self._failing_since = self._failing_since or at
            if self.sky.phase != "calm" or at - self._failing_since > NAMES_WITHIN:
                yield f"targets fail: {', '.join(sorted(shown.failing_targets))}"
        if self.sky.phase != "calm":
            if shown.least_rate < RATE / 3:
                yield f"the rate is down to {shown.least_rate:.1f}"
            if shown.overdue > 1.0:
                yield f"calls are overdue by {shown.overdue:.1f} s"

    def _progress(self) -> None:
        now = self.usages[-1]
        print(
            f"{now.at - self.began:7.1f} s  {self.names} names, {sum(self.aws.calls.values())} calls,"
            f" {sum(self.sky.episodes.values())} episodes, {sum(self.reloads.done.values())} reloads,"
            f" {now.memory:.1f} MiB, {now.threads} threads, {now.descriptors} descriptors,"
            f" {len(self.findings.found)} wrong",
            flush=True,
        )

    def grown(self) -> list[tuple[str, float, float]]:
        """Medians of the first and of the last fifth of what is left after warming up."""
        warm = max(self.sky.warm, self.began + (self.end - self.began) / 4)
        rest = [each for each in self.usages if each.at >= warm] or self.usages
        fifth = max(1, len(rest) // 5)
        return [
            (name, statistics.median(pick[:fifth]), statistics.median(pick[-fifth:]))
            for name, pick in (
                ("memory, MiB", [each.memory for each in rest]),
                ("threads", [float(each.threads) for each in rest]),
                ("descriptors", [float(each.descriptors) for each in rest]),
            )
        ]

    def judge_growth(self) -> None:
        if self.end - self.began < SHORTEST_JUDGED:
            return
        allowed = (
            (0.0, MORE_MEMORY),
            (MOST_THREADS, MORE_THREADS),
            (MOST_DESCRIPTORS, MORE_DESCRIPTORS),
        )
        for (name, first, last), (most, more) in zip(self.grown(), allowed, strict=True):
            if last > max(most, first + more):
                self.findings.add(f"{name} grew from {first:.1f} to {last:.1f}")


def report(soak: Soak, scrapers: Scrapers, code: int, seconds: float) -> None:
    latencies = sorted(scrapers.seconds)
    rows: list[tuple[str, object]] = [
        ("seconds", round(soak.end - soak.began)),
        ("names watched at the end", soak.names),
        ("changes", sum(soak.churn.changes.values())),
        ("calls", sum(soak.aws.calls.values())),
        ("faults", ", ".join(f"{n} {kind}" for kind, n in sorted(soak.weather.played.items()))),
        ("episodes", sum(soak.sky.episodes.values())),
        ("slowest recovery, s", ", ".join(f"{kind} {s:.1f}" for kind, s in sorted(soak.sky.healed.items()))),
        ("reloads", ", ".join(f"{n} {kind}" for kind, n in sorted(soak.reloads.done.items()))),
        ("scrapes", ", ".join(f"{n} {kind}" for kind, n in sorted(scrapers.scrapes.items()))),
        ("pages judged", ", ".join(f"{n} in {phase}" for phase, n in sorted(soak.judged.items()))),
        ("longest lag in calm, s", f"{soak.lag:.1f}"),
        ("scrape, median and p99, ms", "-"),
        ("log lines", soak.log.lines),
        *((f"{name}: first, last", f"{first:.1f}, {last:.1f}") for name, first, last in soak.grown()),
        (
            "most threads, descriptors",
            f"{max(u.threads for u in soak.usages)}, {max(u.descriptors for u in soak.usages)}",
        ),
        ("end: exit code, seconds", f"{code}, {seconds:.2f}"),
        ("wrong", len(soak.findings.found)),
    ]
    if latencies:
        p99 = latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]
        figures = f"{1000 * statistics.median(latencies):.0f}, {1000 * p99:.0f}"
        rows = [(name, figures if name.startswith("scrape,") else value) for name, value in rows]
    print()
    for name, value in rows:
        print(f"{name:28} {value}")


def main() -> int:
    arguments = parsed()
    print(f"{arguments.seconds:.0f} s, --seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name, EmbeddedAWS() as aws:
        directory = Path(name)
        file = directory / "config.yaml"
        arguments.truth = Truth(aws, HOMES, configure(file, 0))
        arguments.churn = Churn(aws, arguments.truth, Random(arguments.seed + 2))
        keys = aws.session().get_credentials()
        assert keys is not None
        environment = {
            "AWS_ACCESS_KEY_ID": keys.access_key,
            "AWS_SECRET_ACCESS_KEY": keys.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": aws.endpoint_url,
        }
        flags = (f"--config.file={file}", "--web.enable-lifecycle")
        with running(directory, *flags, **environment) as command:
            soak = Soak(command, directory, aws, arguments)
            with Scrapers(command.url, seed=arguments.seed) as scrapers:
                soak.run()
            soak.weather.clear()
            code, seconds = command.stop()
        for problem in scrapers.problems:
            soak.findings.add(problem)
        if code != 0 or seconds > 5.0:
            soak.findings.add(f"SIGTERM ended it with {code} after {seconds:.1f} s")
        if not file.with_name("state").exists():
            soak.findings.add("there is no state file")
        soak.log.check()
        soak.judge_growth()
        report(soak, scrapers, code, seconds)
        return 1 if soak.findings.found else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0)
    length.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or 60.0 * arguments.minutes
    return arguments


if __name__ == "__main__":
    sys.exit(main())
