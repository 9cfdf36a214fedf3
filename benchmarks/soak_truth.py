"""The history of the simulated AWS, and the check of a metrics page against it.

The exporter may be late by the length of its intervals. So a page is compared with everything that was true
in a time window. Each status and each name on the page was true for the image in the window. Everything that
did not change in the window is on the page. While AWS fails, the window begins before the failure, and
anything may be absent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from support.embedded_aws import EmbeddedAWS

from exporter.demo import Call, CallKind, Refuse

#: Seconds of history: longer than any window.
KEPT = 240.0
#: Seconds that a busy machine may add to any step.
SLACK = 6.0
#: Seconds for which the copies of an image are recorded after its tag moved away from it.
MOVED_KEPT = 30.0


class Home(NamedTuple):
    """A source registry."""

    account: str
    region: str


class Place(NamedTuple):
    """A destination of an image."""

    region: str
    account: str


class Copies:
    """What one repository of a destination holds."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = {row["imageDigest"]: row for row in rows}
        self._named = {tag: row["imageDigest"] for row in rows for tag in row.get("imageTags", ())}

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def states(self, tag: str, digest: str) -> frozenset[str]:
        """The states that describe the image under its tag. There are several if two problems coincide."""
        row, named = self._rows.get(digest), self._named.get(tag)
        states = {"other_image"} if named not in (None, digest) else set()
        if row and row["imageStatus"] != "ACTIVE":
            states.add("archived")
        elif named == digest:
            states.add("present")
        if named is None:
            states.add("untagged" if row else "absent")
        return frozenset(states)


@dataclass(frozen=True, slots=True)
class Watching:
    """A target of a configuration: repositories with a prefix, tag globs, and the newest `latest` images."""

    prefix: str
    tags: tuple[str, ...] = ("*",)
    latest: int | None = None

    def names(self, images: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """The digest of each watched tag."""
        matching = []
        for image in images:
            tags = [t for t in image.get("imageTags", ()) if any(fnmatchcase(t, glob) for glob in self.tags)]
            if tags:
                matching.append((image["imagePushedAt"], image["imageDigest"], tags))
        matching.sort(reverse=True)
        return {tag: digest for _, digest, tags in matching[: self.latest] for tag in tags}


#: What may be seen of a copy when its image is deleted at the source: rules may mirror deletions, and what
#: happens to the copy then is not recorded.
DELETED_TOO = frozenset({"absent", "untagged", "other_image", "archived"})


class Histories:
    """The values of keys over time. A key without a value has None."""

    def __init__(self) -> None:
        self._of: dict[Hashable, list[tuple[float, Any]]] = {}

    def record(self, values: Mapping[Any, Any], at: float) -> None:
        """Record all values at a time. Keys that are absent get None."""
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
        """The current value, and the time since when it is valid."""
        history = self._of.get(key)
        return history[-1] if history else (float("-inf"), None)

    def within(self, key: Hashable, since: float) -> set[Any]:
        """All values since a time."""
        history = self._of.get(key, [(float("-inf"), None)])
        ends = [at for at, _ in history[1:]] + [float("inf")]
        return {value for (_, value), end in zip(history, ends, strict=True) if end >= since}


@dataclass(frozen=True, slots=True)
class Shown:
    """The parts of a metrics page that are checked."""

    status: Mapping[tuple[Home, str, str, Place], str]
    digests: Mapping[tuple[Home, str, str], str]
    #: Whether the copy is present, or what is wrong with it.
    copies: Mapping[tuple[Home, str, str, Place], str]
    failing_targets: frozenset[str]
    #: The Unix time since which each repository of a destination was looked at.
    looked_since: Mapping[Place, float]
    overdue: float
    reload_successful: bool
    reload_time: float
    problems: tuple[str, ...]


def read(page: str) -> Shown:
    """Parse a page. Contradictions within the page become problems."""
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
    problems_of: dict[tuple[Home, str, str, Place], str] = {}
    for labels, _ in samples.get("ecr_image_replica_problem_info", ()):
        key = (*_image(labels), _place(labels))
        if key in problems_of:
            problems.append(f"{key} has two problems")
        problems_of[key] = labels["reason"]
    copies: dict[tuple[Home, str, str, Place], str] = {}
    for labels, value in samples.get("ecr_image_replica_present", ()):
        key = (*_image(labels), _place(labels))
        if (value == 1) == (key in problems_of):
            problems.append(f"{key}: replica_present and replica_problem_info disagree")
        copies[key] = problems_of.get(key, "present")
    problems += [f"{key} has a problem and no replica_present" for key in problems_of.keys() - copies.keys()]
    failed = {key for key, state in status.items() if state == "FAILED"}
    coded = {
        (*_image(labels), _place(labels))
        for labels, _ in samples.get("ecr_image_replication_failure_info", ())
    }
    problems += [f"{key}: FAILED and failure_info disagree" for key in failed ^ coded]
    return Shown(
        status=status,
        digests={_image(labels): labels["digest"] for labels, _ in samples.get("ecr_image_info", ())},
        copies=copies,
        failing_targets=frozenset(
            f"{labels['target']} in {labels['source_registry_id']}"
            for labels, value in samples.get("ecr_target_success", ())
            if value == 0
        ),
        looked_since={
            _place(labels): value
            for labels, value in samples.get("ecr_destination_last_success_timestamp_seconds", ())
        },
        overdue=max((value for _, value in samples.get(f"{own}poll_overdue_seconds", ())), default=0.0),
        reload_successful=samples[f"{own}config_last_reload_successful"][0][1] == 1,
        reload_time=samples[f"{own}config_last_reload_success_timestamp_seconds"][0][1],
        problems=tuple(problems),
    )


def _home(labels: Mapping[str, str]) -> Home:
    return Home(labels["source_registry_id"], labels["source_region"])


def _image(labels: Mapping[str, str]) -> tuple[Home, str, str]:
    return _home(labels), labels["repository"], labels["tag"]


def _place(labels: Mapping[str, str]) -> Place:
    return Place(labels["region"], labels["registry_id"])


@dataclass(slots=True)
class Truth:
    """The recent answers of AWS about everything that the current configuration selects."""

    aws: EmbeddedAWS
    homes: tuple[Home, ...]
    watching: tuple[Watching, ...]
    #: (home, repository, tag) -> digest of watched names, and (home, repository, digest, place) -> status.
    names: Histories = field(default_factory=Histories)
    statuses: Histories = field(default_factory=Histories)
    #: Of the statuses, those that only a look at the destination tells.
    sighted: Histories = field(default_factory=Histories)
    #: Of the statuses, those at destinations that no rule names now. ECR is not asked about an image that a
    #: reload selects and that is seen at all destinations of the rules, so they may be unknown.
    unruled: Histories = field(default_factory=Histories)
    #: The same of all tags, for configurations that watch them later: tag -> digest, and
    #: (home, repository, tag, digest, place) -> the states of the copy.
    tags: Histories = field(default_factory=Histories)
    copies: Histories = field(default_factory=Histories)

    def record(self) -> None:
        """Record the state of AWS. Called after each change and at intervals."""
        names: dict[tuple[Home, str, str], str] = {}
        tags: dict[tuple[Home, str, str], str] = {}
        statuses: dict[tuple[Home, str, str, Place], str] = {}
        held: dict[tuple[Place, str], Copies] = {}
        sighted: dict[tuple[Home, str, str, Place], bool] = {}
        unruled: dict[tuple[Home, str, str, Place], bool] = {}
        for home in self.homes:
            rules = self._ask(home, "DescribeRegistry")["replicationConfiguration"]["rules"]
            for row in self._ask(home, "DescribeRepositories", maxResults=1000)["repositories"]:
                repository = row["repositoryName"]
                images = self.images(home, repository)
                for watching in self.watching:
                    if repository.startswith(watching.prefix):
                        for tag, digest in watching.names(images).items():
                            names[home, repository, tag] = digest
                expected = set(_expected_by(rules, repository))
                for image in images:
                    digest = image["imageDigest"]
                    tags |= {(home, repository, tag): digest for tag in image.get("imageTags", ())}
                    found = self.reported(home, repository, digest)
                    for place in {*expected, *found}:
                        if (place, repository) not in held:
                            rows = self.held(Home(place.account, place.region), repository)
                            held[place, repository] = Copies(rows)
                        # Without a report, an image that is seen at its destination is COMPLETE.
                        seen = digest in held[place, repository]
                        unreported = "COMPLETE" if seen else "MISSING"
                        statuses[home, repository, digest, place] = found.get(place, unreported)
                        if seen and place not in found:
                            sighted[home, repository, digest, place] = True
                    unruled |= {(home, repository, digest, place): True for place in found.keys() - expected}
        at = time.monotonic()
        self.names.record(names, at)
        self.statuses.record(statuses, at)
        self.sighted.record(sighted, at)
        self.unruled.record(unruled, at)
        self.tags.record(tags, at)
        self.copies.record(dict(self._states(tags, statuses, held, at)), at)

    def _states(
        self,
        tags: Iterable[tuple[Home, str, str]],
        statuses: Iterable[tuple[Home, str, str, Place]],
        held: Mapping[tuple[Place, str], Copies],
        at: float,
    ) -> Iterator[tuple[tuple[Home, str, str, str, Place], frozenset[str]]]:
        """The copies under each tag, also of the images that it named a moment ago."""
        places: dict[tuple[Home, str, str], list[Place]] = {}
        for home, repository, digest, place in statuses:
            places.setdefault((home, repository, digest), []).append(place)
        for home, repository, tag in tags:
            for digest in self.tags.within((home, repository, tag), at - MOVED_KEPT) - {None}:
                for place in places.get((home, repository, digest), ()):
                    states = held[place, repository].states(tag, digest)
                    yield (home, repository, tag, digest, place), states

    def images(self, home: Home, repository: str) -> list[dict[str, Any]]:
        return list(
            self._ask(home, "DescribeImages", repositoryName=repository, maxResults=1000)["imageDetails"]
        )

    def held(self, registry: Home, repository: str) -> list[dict[str, Any]]:
        """All images of a repository, with archived ones; empty if there is no such repository."""
        every = {"repositoryName": repository, "maxResults": 1000, "filter": {"imageStatus": "ANY"}}
        try:
            return list(self._ask(registry, "DescribeImages", **every)["imageDetails"])
        except Refuse:
            return []

    def exists(self, home: Home, repository: str, digest: str) -> bool:
        try:
            return any(image["imageDigest"] == digest for image in self.images(home, repository))
        except Refuse:
            return False  # the repository does not exist

    def reported(self, home: Home, repository: str, digest: str) -> dict[Place, str]:
        """The status that ECR reports for each destination."""
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
        """Call ECR without the server, so without faults."""
        return self.aws.serve(Call(CallKind("ecr", operation, *home), params))

    # -- checks ------------------------------------------------------------------------------

    def false_series(
        self, shown: Shown, names_since: float, status_since: Callable[[Place], float], *, looks: bool = True
    ) -> Iterator[str]:
        """Series on the page that were not true at any time since the given times.

        An image that is held there is COMPLETE and not asked about if it is old when it is selected, or was
        COMPLETE before, also if a deleted copy came back between two looks. Not `looks`: destinations may be
        out of reach, so that an image that was just selected is MISSING.
        """
        for key, status in shown.status.items():
            home, repository, tag, place = key
            digests = self.names.within((home, repository, tag), names_since) - {None}
            if not digests:
                yield f"{_label(key)} is shown as {status}, but the name is not watched"
                continue
            true: set[Any] = set()
            for digest in digests:
                copy = (home, repository, digest, place)
                true |= self.statuses.within(copy, status_since(place))
                held = self.copies.within((home, repository, tag, digest, place), status_since(place))
                if any("present" in (states or ()) for states in held):
                    true.add("COMPLETE")
                if not looks and True in self.sighted.within(copy, status_since(place)):
                    true |= {"MISSING", "COMPLETE"}
            if status not in true:
                yield f"{_label(key)} is shown as {status}; true values are {sorted(map(str, true))}"
        for name, digest in shown.digests.items():
            if digest not in self.names.within(name, names_since):
                yield f"{_label(name)} is shown as {digest[:19]}, which is false"

    def absent_series(self, shown: Shown, *, since: float) -> Iterator[str]:
        """Series that did not change since that time and are absent from the page."""
        places: dict[tuple[Home, str, str], list[Place]] = {}
        for home, repository, digest, place in self.statuses:
            key = (home, repository, digest, place)
            if None not in self.statuses.within(key, since) and True not in self.unruled.within(key, since):
                places.setdefault((home, repository, digest), []).append(place)
        for name in self.names:
            digests = self.names.within(name, since)
            if len(digests) > 1 or None in digests:
                continue
            if name not in shown.digests:
                yield f"{_label(name)} is not shown"
            for place in places.get((name[0], name[1], next(iter(digests))), ()):
                if (*name, place) not in shown.status:
                    yield f"{_label((*name, place))} has no status"

    def false_copies(self, shown: Shown, since: Callable[[Place], float]) -> Iterator[str]:
        """Copies whose shown state was not true at any time since the time that is given by their place."""
        for key, state in shown.copies.items():
            home, repository, tag, place = key
            begin = since(place)
            true: set[str] = set()
            for digest in self.tags.within((home, repository, tag), begin) - {None}:
                for states in self.copies.within((home, repository, tag, digest, place), begin):
                    true |= states or DELETED_TOO
            if state not in true:
                yield f"the copy of {_label(key)} is shown as {state}; true values are {sorted(true)}"

    def absent_copies(self, shown: Shown, since: float, reported_since: float) -> Iterator[str]:
        """Copies that the page says nothing about, though their names did not change since that time.

        What was seen is forgotten when ECR reports another status, until the next look. So the status did not
        change since `reported_since`. After throttling looks come late, so there was one since the name is
        watched.
        """
        to_unix = time.time() - time.monotonic()
        for home, repository, tag, digest, place in self.copies:
            same = self.names.within((home, repository, tag), since) == {digest}
            always = None not in self.copies.within((home, repository, tag, digest, place), since)
            reported = len(self.statuses.within((home, repository, digest, place), reported_since)) <= 1
            # A look at the others can settle an image, and ECR is not asked then for a place without a rule.
            ruled = True not in self.unruled.within((home, repository, digest, place), since)
            watched_since = self.names.now((home, repository, tag))[0] + to_unix
            looked = shown.looked_since.get(place, 0.0) > watched_since + SLACK
            key = (home, repository, tag, place)
            if same and always and reported and ruled and looked and key not in shown.copies:
                yield f"the copy of {_label(key)} is not shown"

    def lag(self, shown: Shown, at: float) -> float:
        """The longest time in seconds by which a series of the page is behind AWS."""
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


def _expected_by(rules: Iterable[Mapping[str, Any]], repository: str) -> Iterator[Place]:
    for rule in rules:
        prefixes = [each["filter"] for each in rule.get("repositoryFilters", ())]
        if not prefixes or any(repository.startswith(prefix) for prefix in prefixes):
            for to in rule["destinations"]:
                yield Place(to["region"], to["registryId"])


def _label(key: tuple[Any, ...]) -> str:
    home, repository, tag, *place = key
    to = f" to {place[0].account}/{place[0].region}" if place else ""
    return f"{home.account}/{home.region} {repository}:{tag}{to}"
