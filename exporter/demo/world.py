"""A small world of images that change. It shows every replication state at any time."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import boto3

from exporter.demo.aws import ACCOUNT, REGION, DemoAWS
from exporter.demo.ecr import DENIED, Delay, digest_of
from exporter.demo.registries import Refuse
from exporter.replication.model import Destination

PARTNER = "444455556666"
IRELAND = Destination("eu-west-1", ACCOUNT)
OREGON = Destination("us-west-2", ACCOUNT)
PARTNER_IRELAND = Destination("eu-west-1", PARTNER)
PARTNER_OREGON = Destination("us-west-2", PARTNER)

TEAMS = ("team/web", "team/api", "team/worker")
BASE = "platform/base"
#: Digest of a release whose copies stay IN_PROGRESS.
STUCK = digest_of(b"team/api:v2.4.0")

#: Releases of BASE whose copy in Ireland is damaged INCIDENT_AFTER seconds after the start, and how.
DELETED, UNTAGGED, MOVED, ARCHIVED = "11.1", "11.2", "11.3", "11.4"
INCIDENT_AFTER = 10.0
#: Builds that the lifecycle rule keeps in a repository.
KEPT_BUILDS = 10
#: Seconds between two pushes and for a copy, as minimum and maximum.
PUSH_EVERY = (5.0, 10.0)
COPY_TAKES = (2.0, 8.0)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
#: Images of a backfill. Seconds that it takes, between the starts of two, and since the start of the first.
BACKFILL_IMAGES = 1200
BACKFILL_TAKES, BACKFILL_EVERY, BACKFILL_RUNS_SINCE = 50 * MINUTE, HOUR, 10 * MINUTE

QUEUE = "ecr-events"

#: Configuration of `--demo`. Intervals are short so that changes are visible soon.
DEMO_CONFIG = f"""\
registries:
  - name: demo
    region: {REGION}
    events_queue_url: https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{QUEUE}
destinations:
  - registry_id: "{PARTNER}"
    role_arn: arn:aws:iam::{PARTNER}:role/ecr-replica-reader
targets:
  - repository: team/*       # the five newest of the teams' images
    tags: ["build-*", latest]
    latest: 5
  - repository: {BASE}  # pushed before its rule existed, so MISSING
    tag: "12.4"
  - repository: {BASE}
    tag: "12.5"
  - repository: {BASE}  # their copies in {IRELAND.region} get deleted, untagged, replaced and archived
    tags: ["11.*"]
  - repository: team/api       # v2.4.0, which stays IN_PROGRESS
    digest: {STUCK}
discovery_interval: 1m      # pushes and deletions show at once: the queue tells of them
pending_interval: 2s
failed_interval: 15s
settled_interval: 1m
replica_interval: 5s
stale_after: 5m
requests_per_second: 20
"""


def _rule(prefix: str, *destinations: Destination, mirrors_deletions: bool = False) -> dict[str, Any]:
    return {
        "deleteReplication": {"enabled": mirrors_deletions},
        "destinations": [{"region": to.region, "registryId": to.registry_id} for to in destinations],
        "repositoryFilters": [{"filter": prefix, "filterType": "PREFIX_MATCH"}],
    }


RULES = (
    _rule("team/", IRELAND, OREGON, mirrors_deletions=True),
    _rule("team/web", PARTNER_IRELAND, mirrors_deletions=True),
    _rule("team/worker", PARTNER_OREGON),  # its registry policy does not allow replication
    _rule("platform/", IRELAND),
)


def _backfill(
    to: Destination, number: int, *, at: float, age: float, takes: float, code: str = ""
) -> dict[str, Any]:
    """A backfill that started at the Unix time `at`, `age` seconds ago. It fails with the code, if any."""
    done = int(BACKFILL_IMAGES * min(1.0, age / takes))
    ended = age >= takes
    row: dict[str, Any] = {
        "replicationBackfillId": str(UUID(int=number + int(at))),
        "destination": {"region": to.region, "registryId": to.registry_id},
        "status": "IN_PROGRESS" if not ended else "FAILED" if code else "COMPLETE",
        "startedAt": at,
        "progress": {
            "totalReplicationCount": BACKFILL_IMAGES,
            "completedReplicationCount": 0 if code else done,
            "failedReplicationCount": done if code else 0,
            "failureCodes": [code] if code else [],
        },
    }
    return row | ({"endedAt": at + takes} if ended else {})


class World:
    """Teams that push to one registry. For one thread only."""

    def __init__(self, aws: DemoAWS, *, now: float, random: Random) -> None:
        """Create older images, so that every state is visible from the start. `now` is Unix time."""
        self._aws = aws
        self._random = random
        self._builds: dict[str, deque[str]] = defaultdict(deque)
        self._number = 100
        self._next_push = now
        self._began = now - BACKFILL_RUNS_SINCE
        self._incident_at = now + INCIDENT_AFTER
        for name in (*TEAMS, BASE):
            # Replication creates repositories without this setting.
            aws.create_repository(
                ACCOUNT, REGION, name, {"imageScanningConfiguration": {"scanOnPush": name == BASE}}
            )
        aws.denied.add(PARTNER_OREGON)
        self._push(BASE, "12.4", at=now - 12 * DAY)
        aws.set_rules(ACCOUNT, REGION, RULES)
        self._push(BASE, "12.5", at=now - 2 * DAY)
        self._releases = {
            tag: self._push(BASE, tag, at=now - 30 * DAY) for tag in (DELETED, UNTAGGED, MOVED, ARCHIVED)
        }
        self._push("team/api", "v2.4.0", at=now - 45 * MINUTE, digest=STUCK, delay=lambda _: math.inf)
        for ago in range(6, 0, -1):
            for name in TEAMS:
                self._build(name, now - ago * 10 * MINUTE)
        self._go_on_with_backfills(now)

    def step(self, now: float) -> None:
        """Push the builds that are due at `now` (Unix time), and let the backfill go on."""
        self._go_on_with_backfills(now)
        while self._next_push <= now:
            with contextlib.suppress(Refuse):  # a user may have deleted the repository
                self._build(self._random.choice(TEAMS), self._next_push)
            self._next_push += self._random.uniform(*PUSH_EVERY)
        if self._incident_at <= now:
            self._incident_at = math.inf
            with contextlib.suppress(Refuse):
                self._damage_copies(now)

    def _damage_copies(self, now: float) -> None:
        """Delete, untag and archive copies in Ireland. Push a release again whose tag is immutable there."""
        aws, there = self._aws, (ACCOUNT, IRELAND.region, BASE)
        aws.set_settings(*there, {"imageTagMutability": "IMMUTABLE"})
        aws.delete_image(*there, self._releases[DELETED])
        aws.push(*there, f"{UNTAGGED}-old", digest=self._releases[UNTAGGED])
        aws.untag(*there, UNTAGGED)
        aws.archive_image(*there, self._releases[ARCHIVED])
        self._push(BASE, MOVED, at=now)

    def _build(self, repository: str, at: float) -> None:
        """Push a build and tag it latest. Delete the oldest build above KEPT_BUILDS."""
        self._number += 1
        digest = self._push(repository, f"build-{self._number}", at=at)
        self._push(repository, "latest", at=at, digest=digest)
        builds = self._builds[repository]
        builds.append(digest)
        if len(builds) > KEPT_BUILDS:
            self._aws.delete_image(ACCOUNT, REGION, repository, builds.popleft())

    def _go_on_with_backfills(self, now: float) -> None:
        """One backfill follows the other. One to the partner who denies replication FAILED an hour before."""
        number, age = divmod(now - self._began, BACKFILL_EVERY)
        rows = [
            _backfill(OREGON, int(number), at=now - age, age=age, takes=BACKFILL_TAKES),
            _backfill(PARTNER_OREGON, 0, at=self._began - HOUR, age=HOUR, takes=5 * MINUTE, code=DENIED),
        ]
        self._aws.set_backfills(ACCOUNT, REGION, rows)

    def _push(
        self, repository: str, tag: str, *, at: float, digest: str | None = None, delay: Delay | None = None
    ) -> str:
        return self._aws.push(
            ACCOUNT, REGION, repository, tag, pushed_at=at, digest=digest, delay=delay or self._delay
        )

    def _delay(self, _: Destination) -> float:
        return self._random.uniform(*COPY_TAKES)


class Demo:
    """The world, which a thread changes until it is stopped. A context manager."""

    def __init__(self, *, clock: Callable[[], float], random: Random) -> None:
        self.aws = DemoAWS(clock=clock).start()
        self.endpoint_url = self.aws.endpoint_url
        self._clock = clock
        self._world = World(self.aws, now=clock(), random=random)
        self.aws.add_queue(QUEUE)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="demo-world", daemon=True)
        self._thread.start()

    def session(self) -> boto3.Session:
        """A session of the account whose registry the demo watches."""
        return self.aws.session()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.aws.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _live(self) -> None:
        while not self._stopped.wait(1.0):
            self._world.step(self._clock())


def start(*, clock: Callable[[], float] = time.time, random: Random | None = None) -> Demo:
    """Start the demo."""
    return Demo(clock=clock, random=random or Random())  # noqa: S311 - not for security
