"""What the make-believe AWS says, since when, and what that allows a page of metrics to say.

AWS is right at every moment; the exporter may be late, by so much as its intervals allow. So the truth
is kept as histories, and a page is judged by all that was true within its window: a status must have
been the image's own in it, a name must have been the image's, and what stood unchanged throughout must
be shown. While AWS fails, the window grows back to before the failure, and anything may be absent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from support.embedded_aws import EmbeddedAWS

from exporter.demo import Call, CallKind, Refuse

#: Seconds of history: longer than any window.
KEPT = 240.0


class Home(NamedTuple):
    """A source registry."""

    account: str
    region: str


class Place(NamedTuple):
    """Where an image is copied to."""

    region: str
    account: str


@dataclass(frozen=True, slots=True)
class Watching:
    """What a configuration selects of the repositories of a prefix; the newest `latest` of the images."""

    prefix: str
    tags: tuple[str, ...] = ("*",)
    latest: int | None = None

    def names(self, images: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """The digest of each tag that is watched."""
        matching = []
        for image in images:
            tags = [t for t in image.get("imageTags", ()) if any(fnmatchcase(t, glob) for glob in self.tags)]
            if tags:
                matching.append((image["imagePushedAt"], image["imageDigest"], tags))
        matching.sort(reverse=True)
        return {tag: digest for _, digest, tags in matching[: self.latest] for tag in tags}


class Histories:
    """The values that keys had, and since when. A key that has none is None."""

    def __init__(self) -> None:
        self._of: dict[Hashable, list[tuple[float, Any]]] = {}

    def record(self, values: Mapping[Any, Any], at: float) -> None:
        """These are all values there are at the time."""
        for key in self._of.keys() - values.keys():
            self._put(key, None, at)
        for key, value in values.items():
            self._put(key, value, at)

    def _put(self, key: Hashable, value: Any, at: float) -> None:
        history = self._of.setdefault(key, [(float("-inf"), None)])
        if history[-1][1] != value:
            history.append((at, value))
        while len(history) > 1 and history[1][0] < at - KEPT:
            del history[0]
        if len(history) == 1 and history[0][1] is None:
            del self._of[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._of)

    def now(self, key: Hashable) -> tuple[float, Any]:
        """The value, and since when it is that."""
        history = self._of.get(key)
        return history[-1] if history else (float("-inf"), None)

    def within(self, key: Hashable, since: float) -> set[Any]:
        """All values from a time on."""
        history = self._of.get(key, [(float("-inf"), None)])
        ends = [at for at, _ in history[1:]] + [float("inf")]
        return {value for (_, value), end in zip(history, ends, strict=True) if end >= since}


@dataclass(frozen=True, slots=True)
class Shown:
    """A page of metrics, as far as it is judged."""

    status: Mapping[tuple[Home, str, str, Place], str]
    digests: Mapping[tuple[Home, str, str], str]
    failing_targets: frozenset[str]
    #: Of the registries' request rate limits.
    least_rate: float
    overdue: float
    reload_successful: bool
    reload_time: float
    problems: tuple[str, ...]


def read(page: str) -> Shown:
    """Take a page apart; what is wrong with it by itself becomes a problem."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    own = "ecr_replication_exporter_"
    status: dict[tuple[Home, str, str, Place], str] = {}
    ones: Counter[tuple[Home, str, str, Place]] = Counter()
    for labels, value in samples.get("ecr_image_replication_status", ()):
        key = (*_image(labels), _place(labels))
        ones[key] += value == 1
        if value == 1:
            status[key] = labels["status"]
    problems = [f"{key} is in {n} states at once" for key, n in ones.items() if n != 1]
    failed = {key for key, state in status.items() if state == "FAILED"}
    coded = {
        (*_image(labels), _place(labels))
        for labels, _ in samples.get("ecr_image_replication_failure_info", ())
    }
    problems += [f"{key}: FAILED and failure_info disagree" for key in failed ^ coded]
    return Shown(
        status=status,
        digests={_image(labels): labels["digest"] for labels, _ in samples.get("ecr_image_info", ())},
        failing_targets=frozenset(
            f"{labels['target']} in {labels['source_registry_id']}"
            for labels, value in samples.get("ecr_target_success", ())
            if value == 0
        ),
        least_rate=min((value for _, value in samples.get(f"{own}request_rate_limit", ())), default=0.0),
        overdue=max((value for _, value in samples.get(f"{own}poll_overdue_seconds", ())), default=0.0),
        reload_successful=samples[f"{own}config_last_reload_successful"][0][1] == 1,
        reload_time=samples[f"{own}config_last_reload_success_timestamp_seconds"][0][1],
        problems=tuple(problems),
    )


def _image(labels: Mapping[str, str]) -> tuple[Home, str, str]:
    home = Home(labels["source_registry_id"], labels["source_region"])
    return home, labels["repository"], labels["tag"]


def _place(labels: Mapping[str, str]) -> Place:
    return Place(labels["region"], labels["registry_id"])


@dataclass(slots=True)
class Truth:
    """All that AWS said lately, about what the configuration in force watches."""

    aws: EmbeddedAWS
    homes: tuple[Home, ...]
    watching: tuple[Watching, ...]
    #: (home, repository, tag) -> digest, of what is watched; (home, repository, digest, place) -> status.
    names: Histories = field(default_factory=Histories)
    statuses: Histories = field(default_factory=Histories)

    def record(self) -> None:
        """Look at everything. Called after each change, so that none is missed, and now and then."""
        names: dict[tuple[Home, str, str], str] = {}
        statuses: dict[tuple[Home, str, str, Place], str] = {}
        for home in self.homes:
            rules = self._ask(home, "DescribeRegistry")["replicationConfiguration"]["rules"]
            for row in self._ask(home, "DescribeRepositories", maxResults=1000)["repositories"]:
                repository = row["repositoryName"]
                images = self.images(home, repository)
                for watching in self.watching:
                    if repository.startswith(watching.prefix):
                        for tag, digest in watching.names(images).items():
                            names[home, repository, tag] = digest
                expected = set(_owed(rules, repository))
                for image in images:
                    digest = image["imageDigest"]
                    found = self.reported(home, repository, digest)
                    for place, status in {**dict.fromkeys(expected, "MISSING"), **found}.items():
                        statuses[home, repository, digest, place] = status
        at = time.monotonic()
        self.names.record(names, at)
        self.statuses.record(statuses, at)

    def images(self, home: Home, repository: str) -> list[dict[str, Any]]:
        return list(
            self._ask(home, "DescribeImages", repositoryName=repository, maxResults=1000)["imageDetails"]
        )

    def exists(self, home: Home, repository: str, digest: str) -> bool:
        try:
            return any(image["imageDigest"] == digest for image in self.images(home, repository))
        except Refuse:
            return False  # nor does the repository

    def reported(self, home: Home, repository: str, digest: str) -> dict[Place, str]:
        """The status at each destination that ECR reports."""
        answer = self._ask(
            home,
            "DescribeImageReplicationStatus",
            repositoryName=repository,
            imageId={"imageDigest": digest},
        )
        return {
            Place(row["region"], row["registryId"]): row["status"] for row in answer["replicationStatuses"]
        }

    def _ask(self, home: Home, operation: str, **params: Any) -> dict[str, Any]:
        """By-passes the server, and so its faults."""
        return self.aws.serve(Call(CallKind("ecr", operation, *home), params))

    # -- judging -----------------------------------------------------------------------------

    def false(self, shown: Shown, *, names_since: float, status_since: float) -> Iterator[str]:
        """What the page says and what was not true at any time since then."""
        for key, status in shown.status.items():
            home, repository, tag, place = key
            digests = self.names.within((home, repository, tag), names_since) - {None}
            if not digests:
                yield f"{_said(key)} is shown {status}, and the name is not watched"
                continue
            true: set[Any] = set()
            for digest in digests:
                true |= self.statuses.within((home, repository, digest, place), status_since)
            if status not in true:
                yield f"{_said(key)} is shown {status}; true was {sorted(map(str, true))}"
        for name, digest in shown.digests.items():
            if digest not in self.names.within(name, names_since):
                yield f"{_said(name)} is shown as {digest[:19]}, which it was not"

    def absent(self, shown: Shown, *, since: float) -> Iterator[str]:
        """What stood unchanged since then, and the page does not show."""
        places: dict[tuple[Home, str, str], list[Place]] = {}
        for home, repository, digest, place in self.statuses:
            if None not in self.statuses.within((home, repository, digest, place), since):
                places.setdefault((home, repository, digest), []).append(place)
        for name in self.names:
            digests = self.names.within(name, since)
            if len(digests) > 1 or None in digests:
                continue
            if name not in shown.digests:
                yield f"{_said(name)} is not shown"
            for place in places.get((name[0], name[1], next(iter(digests))), ()):
                if (*name, place) not in shown.status:
                    yield f"{_said((*name, place))} has no status"

    def lag(self, shown: Shown, at: float) -> float:
        """For how many seconds the page is behind AWS in what it says worst."""
        shows: dict[tuple[Home, str, str], dict[Place, str]] = {}
        for (*name, place), status in shown.status.items():
            shows.setdefault((name[0], name[1], name[2]), {})[place] = status
        worst = 0.0
        for name in self.names:
            named_since, digest = self.names.now(name)
            if (digest is None) == (name in shown.digests):
                worst = max(worst, at - named_since)
            if digest is None:
                continue
            for place, status in shows.get(name, {}).items():
                since, true = self.statuses.now((name[0], name[1], digest, place))
                if status != true:
                    worst = max(worst, at - max(since, named_since))
        return worst


def _owed(rules: Iterable[Mapping[str, Any]], repository: str) -> Iterator[Place]:
    for rule in rules:
        prefixes = [each["filter"] for each in rule.get("repositoryFilters", ())]
        if not prefixes or any(repository.startswith(prefix) for prefix in prefixes):
            for to in rule["destinations"]:
                yield Place(to["region"], to["registryId"])


def _said(key: tuple[Any, ...]) -> str:
    home, repository, tag, *place = key
    to = f" to {place[0].account}/{place[0].region}" if place else ""
    return f"{home.account}/{home.region} {repository}:{tag}{to}"
