"""The environment of the exporter in a soak: changes of images, faults of AWS, and clients."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from soak_truth import Home, Truth
from support.embedded_aws import DropConnection, EmbeddedAWS, Fault, Garbage, Hang, replication_rule

from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.replication.model import Destination

OTHER, PARTNER = "222233334444", "444455556666"
HOMES = (Home(ACCOUNT, REGION), Home(OTHER, "eu-central-1"))
#: Regions that hold copies only. One of them fails in the episodes of destinations.
COPY_REGIONS = ("eu-west-1", "us-west-2")
DESTINATIONS = (
    *(Destination(region, home.account) for home in HOMES for region in COPY_REGIONS),
    *(Destination(region, PARTNER) for region in ("us-west-1", "us-west-2")),
)
REPOSITORIES = ("team/api", "team/web", "lib/base", "lib/tools")
#: Images of a repository. Older ones are deleted.
MOST_IMAGES = 20
#: Repositories with new names that are created and deleted, at the same time and for each home.
PASSING = 2
#: Seconds between two changes.
CHANGE_EVERY = (0.2, 0.8)


class Churn:
    """Changes images in two registries, and records every change. For one thread only."""

    def __init__(self, aws: EmbeddedAWS, truth: Truth, random: Random) -> None:
        self._aws = aws
        self._truth = truth
        self._random = random
        self._number = 0
        self._passing: list[tuple[Home, str]] = []
        self._pinned: list[tuple[Home, str, str]] = []
        self._gone: list[tuple[Home, str, str]] = []
        self._due = 0.0
        self.changes: Counter[str] = Counter()
        aws.denied.add(Destination("us-west-1", PARTNER))
        for home in HOMES:
            self._rules(home, more=False)
            for repository in REPOSITORIES:
                aws.create_repository(*home, repository)
                for _ in range(MOST_IMAGES // 2):
                    self._push(home, repository)
                self._name(home, repository, "latest")
        truth.record()

    def step(self, now: float) -> None:
        """Make a change if one is due."""
        if now >= self._due:
            self._due = now + self._random.uniform(*CHANGE_EVERY)
            self._truth.record()  # what was true until the change, such as a replication that has just ended
            self._change()
            self._truth.record()

    def _change(self) -> None:
        kinds: dict[Callable[[Home, str], object], int] = {
            self._push: 30,
            self._move: 20,
            self._delete: 12,
            self._untag: 6,
            self._push_again: 6,
            self._pin: 8,
            self._unpin: 8,
            self._create: 4,
            self._remove: 4,
            self._replicate: 2,
            self._harm_copy: 16,
            self._copy_by_hand: 4,
        }
        kind = self._random.choices(list(kinds), list(kinds.values()))[0]
        home = self._random.choice(HOMES)
        passing = [name for at, name in self._passing if at == home]
        kind(home, self._random.choice([*REPOSITORIES, *passing]))
        self.changes[kind.__name__.strip("_")] += 1

    def _push(self, home: Home, repository: str, digest: str | None = None) -> str:
        self._number += 1
        tag = f"{self._random.choice(('v', 'v', 'build-'))}{self._number}"
        hangs = self._random.random() < 0.03
        takes = math.inf if hangs else self._random.uniform(0.5, 6.0)
        digest = self._aws.push(*home, repository, tag, digest=digest, delay=lambda _: takes)
        images = sorted(self._truth.images(home, repository), key=lambda image: image["imagePushedAt"])
        for old in images[: max(0, len(images) - MOST_IMAGES)]:
            if "latest" not in old.get("imageTags", ()):
                self._aws.delete_image(*home, repository, old["imageDigest"])
        return digest

    def _name(self, home: Home, repository: str, tag: str) -> None:
        digest = self._random.choice(self._truth.images(home, repository))["imageDigest"]
        self._aws.push(*home, repository, tag, digest=digest)

    def _move(self, home: Home, repository: str) -> None:
        """Give an image a tag, which may be in use."""
        if self._truth.images(home, repository):
            self._name(home, repository, self._random.choice(("latest", "latest", "v-stable", "canary")))

    def _expendable(self, home: Home, repository: str) -> list[dict[str, Any]]:
        """The images without the tag `latest`, which a target names."""
        images = self._truth.images(home, repository)
        return [image for image in images if "latest" not in image.get("imageTags", ())]

    def _delete(self, home: Home, repository: str) -> None:
        if images := self._expendable(home, repository):
            digest = self._random.choice(images)["imageDigest"]
            self._aws.delete_image(*home, repository, digest)
            self._gone = [*self._gone[-20:], (home, repository, digest)]

    def _untag(self, home: Home, repository: str) -> None:
        tagged = [image for image in self._expendable(home, repository) if image.get("imageTags")]
        if tagged:
            self._aws.untag(*home, repository, self._random.choice(tagged)["imageTags"][0])

    def _push_again(self, home: Home, repository: str) -> None:
        """Push a deleted image. It has the same digest and replicates again."""
        deleted = [digest for at, name, digest in self._gone if (at, name) == (home, repository)]
        self._push(home, repository, self._random.choice(deleted) if deleted else None)

    def _pin(self, home: Home, repository: str) -> None:
        """ECR changes the status of an image that may be COMPLETE, and its copies are deleted.

        An image that is seen at its destinations is not asked about again.
        """
        for image in self._random.sample(images := self._expendable(home, repository), min(1, len(images))):
            digest = image["imageDigest"]
            report = self._truth.reported(home, repository, digest)
            state = self._random.choice(
                ({"status": "FAILED", "failureCode": "SOAKED"}, {"status": "TELEPORTED"})
            )
            keys = {place: (home, repository, digest, place) for place in report}
            if any(self._truth.statuses.now(keys[place])[1] != status for place, status in report.items()):
                continue  # it has just changed, which is not recorded yet
            pinned = [{"region": to.region, "registryId": to.account} | state for to in report]
            for place in report:
                there = Home(place.account, place.region)
                if any(row["imageDigest"] == digest for row in self._truth.held(there, repository)):
                    self._aws.delete_image(*there, repository, digest)
            if pinned:
                self._aws.set_status(*home, repository, digest, pinned)
                self._pinned.append((home, repository, digest))

    def _unpin(self, *_: object) -> None:
        if self._pinned:
            home, repository, digest = self._pinned.pop(0)
            if self._truth.exists(home, repository, digest):
                self._aws.set_status(*home, repository, digest, None)

    def _create(self, home: Home, _: str) -> None:
        if len(self._passing) < PASSING * len(HOMES):
            self._number += 1
            name = f"{self._random.choice(('team', 'lib'))}/passing-{self._number}"
            self._aws.create_repository(*home, name)
            self._passing.append((home, name))
            for _ in range(self._random.randint(0, 4)):
                self._push(home, name)

    def _remove(self, *_: object) -> None:
        if self._passing:
            home, name = self._passing.pop(0)
            self._aws.delete_repository(*home, name)

    def _destination(self, home: Home) -> Home:
        """A registry that images of the home are replicated to."""
        places = [*((home.account, region) for region in COPY_REGIONS), (PARTNER, "us-west-2")]
        return Home(*self._random.choice(places))

    def _harm_copy(self, home: Home, repository: str) -> None:
        """Delete, untag, archive or restore a copy, or give its tag to another. Delete the oldest."""
        there = self._destination(home)
        copies = sorted(self._truth.held(there, repository), key=lambda image: image["imagePushedAt"])
        for old in copies[: -2 * MOST_IMAGES]:
            self._aws.delete_image(*there, repository, old["imageDigest"])
        if not (copies := copies[-2 * MOST_IMAGES :]):
            return
        image, other = self._random.choice(copies), self._random.choice(copies)
        digest, tags = image["imageDigest"], image.get("imageTags", ())
        match self._random.choice(("delete", "untag", "archive", "restore", "take")):
            case "delete":
                self._aws.delete_image(*there, repository, digest)
            case "untag" if tags:
                self._aws.untag(*there, repository, tags[0])
            case "archive":
                self._aws.archive_image(*there, repository, digest)
            case "restore":
                self._aws.restore_image(*there, repository, digest)
            case "take" if tags:
                self._aws.push(*there, repository, tags[0], digest=other["imageDigest"])

    def _copy_by_hand(self, home: Home, repository: str) -> None:
        there = self._destination(home)
        if images := self._truth.images(home, repository):
            image = self._random.choice(images)
            with contextlib.suppress(Refuse):  # it exists
                self._aws.create_repository(*there, repository)
            for tag in image.get("imageTags", [None]):
                self._aws.push(*there, repository, tag, digest=image["imageDigest"])

    def _replicate(self, home: Home, _: str) -> None:
        """Replace the rules, with or without one destination."""
        self._rules(home, more=self._random.random() < 0.5)

    def _rules(self, home: Home, *, more: bool) -> None:
        rules = [
            replication_rule(*(Destination(region, home.account) for region in COPY_REGIONS), prefix="team/"),
            replication_rule(Destination("us-west-1", PARTNER), prefix="team/w"),  # which refuses it
            replication_rule(Destination("eu-west-1", home.account), prefix="lib/", mirrors_deletions=True),
        ]
        if more:
            rules.append(replication_rule(Destination("us-west-2", PARTNER), prefix="lib/"))
        self._aws.set_rules(*home, rules)


# -- faults ------------------------------------------------------------------------------------------

_GARBAGE = (
    b"",
    b"<html><body>502 Bad Gateway</body></html>",
    b'{"imageDetails": [{"imageDig',
    b"null",
    b"[]",
    b"{}",
)
_OPERATIONS = (
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeImages",
    "DescribeImageReplicationStatus",
    "AssumeRole",
)
#: Calls a second that AWS allows each account during throttling.
_ALLOWED = 8.0


class Faults:
    """The faults of the server. `clear` ends them and releases calls that hang."""

    def __init__(self, aws: EmbeddedAWS, random: Random) -> None:
        self._aws = aws
        self._random = random
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.played: Counter[str] = Counter()
        #: The Region in which alone calls fail; "" for all of AWS.
        self.region = ""
        self.kinds: Mapping[str, Callable[[], Callable[[Call], Fault | None]]] = {
            "throttling": self._throttling,
            "errors": lambda: self._often(0.7, self._error),
            "drops": lambda: self._often(self._random.choice((0.5, 1.0)), DropConnection),
            "hangs": lambda: self._often(1.0, lambda: Hang(30.0, self._released)),
            "garbage": lambda: self._often(0.8, lambda: Garbage(self._random.choice(_GARBAGE))),
            "expired": self._expired,
            "denied": self._denied,
            "mixed": lambda: self._often(0.5, self._anything),
            "destination hangs": lambda: self._in_one_region(lambda: Hang(30.0, self._released)),
            "destination denied": lambda: self._in_one_region(
                lambda: Refuse(400, "AccessDeniedException", "no")
            ),
            "destination throttled": lambda: self._in_one_region(
                lambda: Refuse(400, "ThrottlingException", "Rate exceeded")
            ),
        }

    def begin(self, kind: str) -> None:
        """Begin an episode of a kind of fault."""
        self._released = threading.Event()
        self.region = ""
        play = self.kinds[kind]()

        def fault(call: Call) -> Fault | None:
            with self._lock:  # the server calls this from many threads
                found = play(call)
                self.played[kind] += found is not None
                return found

        self._aws.fault = fault

    def clear(self) -> None:
        self._aws.fault = lambda _: None
        self._released.set()

    def _often(self, share: float, fault: Callable[[], Fault]) -> Callable[[Call], Fault | None]:
        return lambda _: fault() if self._random.random() < share else None

    def _in_one_region(self, fault: Callable[[], Fault]) -> Callable[[Call], Fault | None]:
        region = self.region = self._random.choice(COPY_REGIONS)
        return lambda call: fault() if call.kind.region == region else None

    def _error(self) -> Fault:
        status, code = self._random.choice(
            ((500, "ServerException"), (503, "ServiceUnavailable"), (500, "InternalFailure"))
        )
        return Refuse(status, code, "soaking")

    def _anything(self) -> Fault:
        return self._random.choice(
            (
                self._error(),
                DropConnection(),
                Garbage(self._random.choice(_GARBAGE)),
                Hang(3.0, self._released),
            )
        )

    def _throttling(self) -> Callable[[Call], Fault | None]:
        buckets: dict[str, tuple[float, float]] = {}

        def refuse(call: Call) -> Fault | None:
            now = time.monotonic()
            tokens, at = buckets.get(call.kind.account, (1.0, now))
            tokens = min(_ALLOWED, tokens + (now - at) * _ALLOWED)
            allowed = tokens >= 1.0
            buckets[call.kind.account] = (tokens - allowed, now)
            return None if allowed else Refuse(400, "ThrottlingException", "Rate exceeded")

        return refuse

    def _expired(self) -> Callable[[Call], Fault | None]:
        code = self._random.choice(("ExpiredTokenException", "UnrecognizedClientException"))
        return lambda _: Refuse(400, code, "The security token included in the request is expired")

    def _denied(self) -> Callable[[Call], Fault | None]:
        operation = self._random.choice(_OPERATIONS)
        return lambda call: (
            Refuse(400, "AccessDeniedException", "no") if call.operation == operation else None
        )


# -- scrapes -----------------------------------------------------------------------------------------


class Scrapers:
    """Several kinds of clients, each in its own thread, until the end of the context."""

    def __init__(self, url: str, *, seed: int) -> None:
        self._address = urlsplit(url).netloc
        self._stopped = threading.Event()
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self.scrapes: Counter[str] = Counter()
        kinds = (self._plain, self._gzip, self._openmetrics, self._aborted, self._named)
        self._threads = [
            threading.Thread(target=self._scrape, args=(kind, Random(seed + n)), daemon=True)
            for n, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Scrapers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _scrape(self, kind: Callable[[], None], random: Random) -> None:
        name = kind.__name__.strip("_")
        longest = 6.0 if kind == self._openmetrics else 2.0  # its parser is slow and uses the same processor
        while not self._stopped.wait(random.uniform(0.2, longest)):
            try:
                kind()
            except Exception as error:  # noqa: BLE001 - any error fails the soak
                self.problems.append(f"scrape ({name}): {error!r}")
            self.scrapes[name] += 1

    def _get(self, target: str = "/metrics", **headers: str) -> bytes:
        connection = http.client.HTTPConnection(self._address, timeout=10.0)
        try:
            began = time.monotonic()
            connection.request("GET", target, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            body = response.read()
            self.seconds.append(time.monotonic() - began)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"{target} answers {response.status}")
        return body

    def _plain(self) -> None:
        if not self._get().endswith(b"\n"):
            raise ValueError("the page is truncated")

    def _gzip(self) -> None:
        gzip.decompress(self._get(Accept_Encoding="gzip"))

    def _openmetrics(self) -> None:
        page = self._get(Accept="application/openmetrics-text; version=1.0.0")
        for _ in openmetrics(page.decode()):
            pass

    def _named(self) -> None:
        page = self._get("/metrics?name[]=ecr_image_info").decode()
        others = [line for line in page.splitlines() if line and "ecr_image_info" not in line]
        if others:
            raise ValueError(f"name[] does not remove {others[0]}")

    def _aborted(self) -> None:
        """Close the connection in the middle of the answer."""
        connection = http.client.HTTPConnection(self._address, timeout=10.0)
        try:
            connection.request("GET", "/metrics")
            connection.getresponse().read(100)
        finally:
            connection.close()
