"""Runs the real command under changes of images, faults of AWS, reloads and scrapes, and checks it meanwhile.

Run it with `make soak` (ten minutes; ARGS="--minutes 60" for an hour). Needs Linux (/proc). Intervals are
seconds instead of minutes and hours. The exit code is 1 unless all of this is true:

- Each status on /metrics was true of its image within the last `STATUS_WITHIN` seconds, and each name within
  `NAMES_WITHIN`. Series that did not change in this time are present. While AWS fails and the exporter
  recovers, series may be absent or as old as `stale_after`, but not false.
- The same holds for the copies at destinations, with `COPY_WITHIN`. While one Region of destinations fails,
  everything else is checked as if nothing failed.
- The exporter recovers from a fault within `RECOVERED_WITHIN` seconds: the first rule holds for a while, no
  target fails and no call is overdue.
- Memory, threads and file descriptors do not grow. The warm-up ends after a quarter of the run and after each
  fault was played once. The median of the last fifth of the rest is compared with that of the first fifth.
- No log line is an error, except for invalid files of reloads, and none has a traceback.
- Every scrape gets a whole answer within ten seconds. A reload accepts valid files and refuses others.
- SIGTERM ends the command with exit code 0 within five seconds.
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

from soak_truth import SLACK, Place, Shown, Truth, Watching, read
from soak_world import DESTINATIONS, HOMES, OTHER, PARTNER, Churn, Faults, Scrapers
from support.command import Command, ask, running
from support.embedded_aws import EmbeddedAWS

from exporter.demo import REGION
from exporter.polling.workers import MAX_IN_FLIGHT

#: The configured intervals in seconds.
DISCOVERY, PENDING, FAILED, SETTLED, STALE_AFTER = 2.0, 2.0, 4.0, 8.0, 20.0
REPLICA = 2.0
RATE = 60.0
#: A listing of repositories and one of images find a new image. Its status is read at once.
NAMES_WITHIN = 2 * DISCOVERY + SLACK
#: A status is valid for the longest interval. A listing finds a tag that moved.
STATUS_WITHIN = SETTLED + DISCOVERY + SLACK
#: Two looks at a destination, and a listing of the source.
COPY_WITHIN = 2 * REPLICA + DISCOVERY + SLACK
#: After an episode of n seconds a back-off may last for 2n + 1 s, a hanging call for 10 s. The rate recovers
#: last after throttling, so two minutes are added.
EPISODE, CALM = (4.0, 12.0), (15.0, 30.0)
RECOVERED_WITHIN = 2 * EPISODE[1] + 1 + 10.0 + 120.0
#: Shorter times in the first round, the warm-up.
FIRST_EPISODE, FIRST_CALM = (3.0, 3.0), (1.0, 1.0)
#: Seconds between two reloads.
RELOAD_EVERY = (4.0, 12.0)

#: Allowed growth in MiB. The allocator keeps the memory of a burst. After credentials expired, two sessions
#: exist until the old one is collected, which takes about 10 MiB.
MORE_MEMORY = 12.0
#: Threads and descriptors: each registry and destination has workers with one connection each. The others
#: belong to the process and to scrapes. Growth counts only above MOST, and if it is larger than MORE.
_POLLED = len(HOMES) + len(DESTINATIONS)
MOST_THREADS, MORE_THREADS = _POLLED * MAX_IN_FLIGHT + 12, 4
MOST_DESCRIPTORS, MORE_DESCRIPTORS = _POLLED * MAX_IN_FLIGHT + 20, 8
#: Shorter runs, in seconds, are not checked for growth.
SHORTEST_CHECKED = 120.0

_COMMON = f"""
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
replica_interval: {REPLICA:.0f}s
destinations:
  - registry_id: "{PARTNER}"
    role_arn: arn:aws:iam::{PARTNER}:role/ecr-replica-reader
    external_id: planted-secret
"""
#: The configurations of reloads: targets in addition to `latest`, as text and as selections.
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
    """Write a configuration. Returns its selections."""
    targets, watching = CONFIGURATIONS[number]
    state = file.with_name("state")
    file.write_text(
        f"targets: [{targets}, {{repository: team/api, tag: latest}}]\nstate_file: {state}\n{_COMMON}"
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
    """The problems, each counted, and printed when it is found first."""

    began: float
    found: Counter[str] = field(default_factory=Counter)

    def add(self, problem: str) -> None:
        self.found[problem] += 1
        if self.found[problem] == 1 and len(self.found) <= 50:
            print(f"{time.monotonic() - self.began:7.1f} s  WRONG: {problem}", flush=True)


class LogReader:
    """Reads new lines of the log and finds forbidden ones."""

    def __init__(self, file: Path, findings: Findings) -> None:
        self._file = file.open()
        self._findings = findings
        self._partial_line = ""
        self.lines = 0

    def check(self) -> None:
        *lines, self._partial_line = (self._partial_line + self._file.read()).split("\n")
        for line in lines:
            self.lines += 1
            error = " level=error " in line and " msg=config_invalid " not in line
            if error or "raceback" in line or "planted-secret" in line or not line.startswith("time="):
                self._findings.add(f"log: {line[:2000]}")


class Reloads:
    """Reloads valid and invalid files by signal and by request."""

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
        """Three requests at the same time. The exporter serves them one after the other."""
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


class Phases:
    """The phases fault, healing and calm in turn. The checks of a page depend on the phase."""

    def __init__(self, faults: Faults, findings: Findings, random: Random) -> None:
        self._faults = faults
        self._findings = findings
        self._random = random
        self._kinds = list(faults.kinds)
        self._deck: list[str] = list(self._kinds)
        self.kind = "start"
        self.phase = "healing"
        self.rounds = 0
        self.warm = time.monotonic()  # the time when each fault had been played once
        #: The begin and the end of the episode, and the end of the phase.
        self.began = self._ended = time.monotonic()
        self._until = 0.0
        self._correct_since: float | None = None  # since when pages are correct again
        self.recovered: dict[str, float] = {}
        self.episodes: Counter[str] = Counter()

    def step(self, now: float) -> None:
        if self.phase == "calm" and now >= self._until:
            self._deck = self._deck or self._random.sample(self._kinds, len(self._kinds))
            self.kind = self._deck.pop()
            self.phase, self.began = "fault", now
            self._until = now + self._random.uniform(*(EPISODE if self.rounds else FIRST_EPISODE))
            self.episodes[self.kind] += 1
            self._faults.begin(self.kind)
        elif self.phase == "fault" and now >= self._until:
            self._faults.clear()
            self.phase, self._ended, self._correct_since = "healing", now, None

    def checked(self, now: float, problems: list[str]) -> None:
        """Take the problems of a page by the rules of the phase calm."""
        if self.phase == "calm":
            for problem in problems:
                self._findings.add(f"{problem} (calm since {self.kind})")
        elif self.phase == "healing":
            # Pages are correct for a while, because a reload may add series later.
            self._correct_since = None if problems else self._correct_since or now
            if (late := now - self._ended > RECOVERED_WITHIN) and problems:
                self._findings.add(f"no recovery from {self.kind}: {'; '.join(problems[:3])}")
            if late or now - (self._correct_since or now) > NAMES_WITHIN:
                self.recovered[self.kind] = max(self.recovered.get(self.kind, 0.0), now - self._ended)
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
        self.faults = Faults(aws, Random(arguments.seed + 1))
        self.phases = Phases(self.faults, self.findings, random)
        self.reloads = Reloads(command, directory / "config.yaml", self.truth, self.findings, random)
        self.log = LogReader(directory / "exporter.log", self.findings)
        self.usages: list[Usage] = []
        self.lag = 0.0
        self.names = 0
        self.checked: Counter[str] = Counter()
        self._random = random
        self._failing_since: float | None = None

    def run(self) -> None:
        pause = threading.Event()
        next_page = next_usage = 0.0
        next_reload, next_line = self.began + 10.0, self.began + 60.0
        while (now := time.monotonic()) < self.end:
            if self.command.process.poll() is not None:
                self.findings.add(f"the command ended by itself with {self.command.process.returncode}")
                return
            self.phases.step(now)
            self.churn.step(now)
            self.truth.record()
            if now >= next_page:
                self._check_page()
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

    def _check_page(self) -> None:
        at = time.monotonic()
        shown = read(self.command.page())
        self.truth.record()  # changes while the page was rendered
        self.checked[self.phases.phase] += 1
        for problem in shown.problems:
            self.findings.add(problem)
        # An image that a reload selects is MISSING until the next look, if ECR does not report it.
        looks = time.time() > shown.reload_time + COPY_WITHIN
        strict = [
            *self.truth.false_series(shown, at - NAMES_WITHIN, lambda _: at - STATUS_WITHIN, looks=looks),
            *self.truth.false_copies(shown, lambda _: at - COPY_WITHIN),
            *self.truth.absent_series(shown, since=at - NAMES_WITHIN),
            *self.truth.absent_copies(shown, at - COPY_WITHIN, at - STATUS_WITHIN - COPY_WITHIN),
            *self._not_recovered(shown, at),
        ]
        if self.phases.phase == "calm":
            self.names = len(shown.digests)
            if not strict:
                self.lag = max(self.lag, self.truth.lag(shown, at))
        else:
            for problem in self._false_in_a_fault(shown, at):
                self.findings.add(f"{problem} (during {self.phases.kind})")
        self.phases.checked(at, strict)

    def _false_in_a_fault(self, shown: Shown, at: float) -> Iterator[str]:
        """Where AWS fails, anything may be as old as the fault or `stale_after`. Elsewhere it may not."""

        def since(place: Place | None, within: float, interval: float) -> float:
            if self._one_region_fails() and (place is None or place.region != self.faults.region):
                return at - within
            return max(self.phases.began - within, at - interval - STALE_AFTER - SLACK)

        names_since = since(None, NAMES_WITHIN, SETTLED)
        yield from self.truth.false_series(
            shown, names_since, lambda place: since(place, STATUS_WITHIN, SETTLED), looks=False
        )
        yield from self.truth.false_copies(shown, lambda place: since(place, COPY_WITHIN, REPLICA))
        if self._one_region_fails():
            yield from self.truth.absent_series(shown, since=at - NAMES_WITHIN)
            yield from self._not_recovered(shown, at)

    def _one_region_fails(self) -> bool:
        return self.phases.phase == "fault" and bool(self.faults.region)

    def _not_recovered(self, shown: Shown, at: float) -> Iterator[str]:
        """Problems that recovery ends. In calm a target may fail briefly if its repository was deleted."""
        calm = self.phases.phase == "calm" or self._one_region_fails()
        if not shown.failing_targets:
            self._failing_since = None
        else:
            self._failing_since = self._failing_since or at
            if not calm or at - self._failing_since > NAMES_WITHIN:
                yield f"targets fail: {', '.join(sorted(shown.failing_targets))}"
        # What was seen before a fault is believed for a while, though the looks come late afterwards.
        for place, looked in shown.looked_since.items() if self.phases.phase == "healing" else ():
            if (late := time.time() - looked) > COPY_WITHIN:
                yield f"{place.account}/{place.region} was looked at {late:.0f} s ago"
        # A low rate is no problem where no call waits: only waiting calls raise the rate of their operation.
        if not calm and shown.overdue > 1.0:
            yield f"calls are overdue by {shown.overdue:.1f} s"

    def _progress(self) -> None:
        now = self.usages[-1]
        print(
            f"{now.at - self.began:7.1f} s  {self.names} names, {sum(self.aws.calls.values())} calls,"
            f" {sum(self.phases.episodes.values())} episodes, {sum(self.reloads.done.values())} reloads,"
            f" {now.memory:.1f} MiB, {now.threads} threads, {now.descriptors} descriptors,"
            f" {len(self.findings.found)} wrong",
            flush=True,
        )

    def grown(self) -> list[tuple[str, float, float]]:
        """The medians of the first and of the last fifth of the run after the warm-up."""
        warm = max(self.phases.warm, self.began + (self.end - self.began) / 4)
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

    def check_growth(self) -> None:
        if self.end - self.began < SHORTEST_CHECKED:
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
        ("faults", ", ".join(f"{n} {kind}" for kind, n in sorted(soak.faults.played.items()))),
        ("episodes", sum(soak.phases.episodes.values())),
        (
            "slowest recovery, s",
            ", ".join(f"{kind} {s:.1f}" for kind, s in sorted(soak.phases.recovered.items())),
        ),
        ("reloads", ", ".join(f"{n} {kind}" for kind, n in sorted(soak.reloads.done.items()))),
        ("scrapes", ", ".join(f"{n} {kind}" for kind, n in sorted(scrapers.scrapes.items()))),
        ("pages checked", ", ".join(f"{n} in {phase}" for phase, n in sorted(soak.checked.items()))),
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
            soak.faults.clear()
            code, seconds = command.stop()
        for problem in scrapers.problems:
            soak.findings.add(problem)
        if code != 0 or seconds > 5.0:
            soak.findings.add(f"SIGTERM ended the command with {code} after {seconds:.1f} s")
        if not file.with_name("state").exists():
            soak.findings.add("there is no state file")
        soak.log.check()
        soak.check_growth()
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
