"""Random worlds through targets, schedule, state and exposition: what must always hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.fakes import HOME, IRELAND, OREGON, FakeClock, FakeECR, Rig, refusal

from exporter.aws.ecr import TagStatus
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.metrics.exposition import Exposition
from exporter.metrics.self_metrics import Instruments
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Image, Name, Page, Reason, Replication, Rule, Status
from exporter.replication.status import RECENT

REPOSITORIES = ("team/app", "team/api", "other/base")
TAGS = ("v1", "v2", "v3-dev", "latest")
DISCOVERY, PENDING, FAILED, SETTLED, STALE = 60.0, 15.0, 300.0, 1800.0, 600.0
#: Of everything that is due, the budget below makes do with so many seconds.
SLACK = 30.0
#: The longest back-off; a change, or the end of a failure, is known after it and one discovery.
BACKOFF = 60.0
KNOWN_AFTER = BACKOFF + DISCOVERY + SLACK

targets = st.sampled_from(
    [
        TargetSettings("*"),
        TargetSettings("team/*", tags=("v*",), exclude_tags=("*-dev",)),
        TargetSettings("team/app", tag="v1"),
        TargetSettings("team/api", tags=("latest", "v2")),
        TargetSettings("*", untagged=True, latest=2),
        TargetSettings("other/base", pushed_within=900.0),
    ]
)
destinations = st.sampled_from([IRELAND, OREGON])
# AWS may say anything at all; codes and inventions become label values.
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
replications = st.lists(
    st.one_of(
        st.builds(Replication, destinations, st.sampled_from(["IN_PROGRESS", "COMPLETE"])),
        st.builds(Replication, destinations, st.just("FAILED"), words),
        st.builds(Replication, destinations, words),
    ),
    max_size=3,
)
rules = st.lists(
    st.builds(
        lambda destination, prefix: Rule((destination,), prefix, prefix),
        destinations,
        st.sampled_from([(), ("team/",), ("nowhere",)]),
    ),
    max_size=3,
).map(tuple)


STATUS_CALL = "DescribeImageReplicationStatus"
CALLS = (STATUS_CALL, "DescribeImages", "DescribeRepositories", "DescribeRegistry")
REASONS = (Reason.ACCESS_DENIED, Reason.UNAVAILABLE, Reason.THROTTLED, Reason.INVALID)


@dataclass
class WatchedECR(FakeECR):
    """Remembers when it was asked, and what it answered."""

    clock: FakeClock = field(default_factory=FakeClock)
    asked: dict[tuple[str, str], float] = field(default_factory=dict)
    answers: dict[tuple[str, str], tuple[float, tuple[Replication, ...]]] = field(default_factory=dict)
    listed: dict[str, float] = field(default_factory=dict)
    #: Every repository, name and digest that ever belonged together.
    history: set[tuple[str, Name, str]] = field(default_factory=set)

    def remember(self) -> None:
        for repository, images in self.repositories.items():
            for image in images.values():
                names = [Name("", image.digest), *(Name(tag, "") for tag in image.tags)]
                self.history |= {(repository, name, image.digest) for name in names}

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        self.asked[repository, digest] = self.clock.now
        answer = super().status(repository, digest)
        self.answers[repository, digest] = self.clock.now, answer
        return answer

    def images(
        self, repository: str, token: str | None, *, tags: TagStatus = "TAGGED", archived: bool = False
    ) -> Page[Image]:
        page = super().images(repository, token, tags=tags, archived=archived)
        self.listed[repository] = self.clock.now
        return page

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        found = super().find(repository, names, archived=archived)
        self.listed[repository] = self.clock.now
        return found


def chosen(target: TargetSettings, images: Sequence[Image], oldest: float) -> set[tuple[Name, str]]:
    """What a target selects, told a second time and as plainly as can be."""
    wanted = (target.tag,) if target.tag else target.tags or ("*",)
    found = {}
    for image in sorted(images, key=lambda image: (image.pushed_at, image.digest)):
        names = {
            Name(tag, "")
            for tag in image.tags
            if any(fnmatchcase(tag, word) for word in wanted)
            and not any(fnmatchcase(tag, word) for word in target.exclude_tags)
        }
        if not image.tags and target.untagged:
            names = {Name("", image.digest)}
        if names and (target.pushed_within is None or (image.pushed_at or 0.0) >= oldest):
            found[image.digest] = names
    newest = list(found)[-target.latest :] if target.latest else found
    return {(name, digest) for digest in newest for name in found[digest]}


#: Seconds that pass after something happened: nothing is seen, a listing, a back-off, a staleness later.
pauses = st.sampled_from([0, 20, 160, 400, 1300])
repositories = st.sampled_from(REPOSITORIES)
ages = st.sampled_from([0, 100, 850, 9000])
tags = st.lists(st.sampled_from(TAGS), min_size=1, max_size=3, unique=True).map(sorted)


class World(RuleBasedStateMachine):
    @initialize(
        watched=st.lists(targets, min_size=1, max_size=3, unique=True),
        first=rules,
        images=st.lists(st.tuples(repositories, tags, ages, replications), min_size=3, max_size=9),
    )
    def start(
        self,
        watched: list[TargetSettings],
        first: tuple[Rule, ...],
        images: list[tuple[str, list[str], float, list[Replication]]],
    ) -> None:
        self.watched = watched
        self.ecr = WatchedECR(rules=first, page_size=2)
        for repository, names, age, reported in images:
            digest = self.ecr.push(repository, *names, at=self.ecr.clock.time() - age)
            self.ecr.report(repository, digest, *reported)
        self.broken: tuple[str, str, Reason] | None = None
        self.ecr.fault = self._fault
        self.rig = Rig(
            Settings(
                targets=tuple(watched),
                registries=(RegistrySettings(),),
                requests_per_second=20.0,
                discovery_interval=DISCOVERY,
                pending_interval=PENDING,
                failed_interval=FAILED,
                settled_interval=SETTLED,
                stale_after=STALE,
            ),
            self.ecr,
        )
        self.ecr.clock = self.rig.clock
        self.exposition = Exposition(
            instruments=Instruments(), store=self.rig.store, figures=self.rig.poller, clock=self.rig.clock
        )
        self._changed(70)

    def _fault(self, operation: str, repository: str) -> ECRError | None:
        if self.broken and self.broken[0] in ("", operation) and self.broken[1] in ("", repository):
            return refusal(self.broken[2])
        return None

    def _changed(self, pause: float) -> None:
        self.ecr.remember()
        self.changed_at = self.rig.clock.now
        self.rig.run(pause)

    # -- what happens --

    @rule(repository=repositories, names=tags, age=ages, pause=pauses)
    def push(self, repository: str, names: list[str], age: float, pause: float) -> None:
        self.ecr.push(repository, *names, at=self.rig.clock.time() - age)
        self._changed(pause)

    @precondition(lambda self: self._images())
    @rule(data=st.data(), pause=pauses)
    def push_again(self, data: st.DataObject, pause: float) -> None:
        repository, digest = data.draw(st.sampled_from(self._images()))
        self.ecr.push(repository, at=self.rig.clock.time(), digest=digest)
        self._changed(pause)

    @precondition(lambda self: self._images())
    @rule(data=st.data(), pause=pauses)
    def delete_image(self, data: st.DataObject, pause: float) -> None:
        repository, digest = data.draw(st.sampled_from(self._images()))
        del self.ecr.repositories[repository][digest]
        self._changed(pause)

    @rule(repository=repositories, pause=pauses)
    def delete_repository(self, repository: str, pause: float) -> None:
        self.ecr.repositories.pop(repository, None)
        self._changed(pause)

    @precondition(lambda self: self._images())
    @rule(data=st.data(), reported=replications)
    def report(self, data: st.DataObject, reported: list[Replication]) -> None:
        self.ecr.report(*data.draw(st.sampled_from(self._images())), *reported)

    @rule(new=rules, pause=pauses)
    def change_rules(self, new: tuple[Rule, ...], pause: float) -> None:
        self.ecr.rules = new
        self._changed(pause)

    @rule(
        operation=st.sampled_from([*CALLS, ""]),
        repository=st.sampled_from(["", "team/app"]),
        reason=st.sampled_from(REASONS),
        pause=pauses,
    )
    def break_(self, operation: str, repository: str, reason: Reason, pause: float) -> None:
        self.broken = (operation, repository, reason)
        self._changed(pause)

    @precondition(lambda self: self.broken)
    @rule(pause=pauses)
    def mend(self, pause: float) -> None:
        self.broken = None
        self._changed(pause)

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        self.rig.run(seconds)

    def _images(self) -> list[tuple[str, str]]:
        return sorted((r, digest) for r, found in self.ecr.repositories.items() for digest in found)

    # -- what is told --

    def _told(self) -> Iterator[tuple[str, ImageFacts]]:
        for registry in self.rig.snapshot().registries:
            for repository, images in registry.repositories:
                for image in images:
                    yield repository, image

    def _series(self, accept: str, parse: Callable[[str], Any]) -> dict[str, dict[tuple[str, ...], float]]:
        """Name -> label values in the order of the labels' names -> value."""
        page = self.exposition.page(accept=accept, accept_encoding="", names=()).whole().decode()
        series: dict[str, dict[tuple[str, ...], float]] = {}
        for sample in (sample for family in parse(page) for sample in family.samples):
            key = tuple(sample.labels[label] for label in sorted(sample.labels))
            family = series.setdefault(sample.name, {})
            assert key not in family
            family[key] = sample.value
        return series

    # -- what must hold at every moment --

    @invariant()
    def the_page_tells_what_the_ledger_knows_in_both_formats(self) -> None:
        text = self._series("", parse_text)
        openmetrics = self._series("application/openmetrics-text; version=1.0.0", parse_openmetrics)
        assert {n: s for n, s in text.items() if n.startswith("ecr_")} == {
            name: series for name, series in openmetrics.items() if name.startswith("ecr_")
        }
        ones = [key for key, value in text.get("ecr_image_replication_status", {}).items() if value == 1]
        known = [
            (name.digest, *r.destination, repository, HOME.region, HOME.registry_id, str(r.status), name.tag)
            for repository, image in self._told()
            for name in image.names
            for r in image.replications or ()
        ]
        assert Counter(ones) == Counter(known)
        places = {(*one[:6], one[7]) for one in ones}
        assert len(places) == len(ones), "two states at once"

    @invariant()
    def no_state_is_told_but_what_ecr_answered_last_or_owes(self) -> None:
        for repository, image in self._told():
            if image.replications is None:
                continue
            _, answer = self.ecr.answers[repository, image.digest]
            for destination, status, _ in image.replications:
                said = {r.status for r in answer if r.destination == destination}
                assert status in (said or {Status.MISSING})

    @invariant()
    def no_name_is_told_that_the_image_never_had(self) -> None:
        for repository, image in self._told():
            assert {(repository, name, image.digest) for name in image.names} <= self.ecr.history

    @invariant()
    def nothing_is_told_that_was_not_confirmed_for_long(self) -> None:
        now = self.rig.clock.now
        for repository, image in self._told():
            assert now - self.ecr.listed[repository] <= STALE
            if image.replications is not None:
                at, answer = self.ecr.answers[repository, image.digest]
                assert now - at <= self._interval(image, answer, at) + STALE

    @invariant()
    def a_failure_shows_in_the_targets_that_it_concerns(self) -> None:
        if not self.broken or self._quiet() < KNOWN_AFTER or self.broken[2] is Reason.THROTTLED:
            return
        operation, where, reason = self.broken
        for target in self.watched:
            watched = [r for r in self._watched(target) if where in ("", r)]
            concerned = {
                "": where == "",
                STATUS_CALL: False,  # asked too seldom to tell when
                "DescribeImages": bool(watched),
                "DescribeRepositories": where == "" and target.is_glob,
                "DescribeRegistry": where == "",
            }
            if concerned[operation]:
                told = self.rig.target(target.label)
                assert told.success is False
                assert reason in told.reasons

    # -- what must hold when things have calmed down --

    def _quiet(self) -> float:
        """Seconds since anything changed."""
        return self.rig.clock.now - self.changed_at

    def _watched(self, target: TargetSettings) -> list[str]:
        if not target.is_glob:
            return [target.repository]
        return [name for name in self.ecr.repositories if fnmatchcase(name, target.repository)]

    @invariant()
    def in_peace_what_is_told_is_what_is_so(self) -> None:
        if self.broken or self._quiet() < KNOWN_AFTER:
            return
        told = {(r, name, image.digest) for r, image in self._told() for name in image.names}
        assert told <= self._selected(DISCOVERY + SLACK)
        if self._quiet() > FAILED + KNOWN_AFTER:  # before, the last answer may be too old to be told
            assert told >= self._selected(0.0)
        for repository, image in self._told():
            assert image.pushed_at == self.ecr.repositories[repository][image.digest].pushed_at
            if image.replications is not None:
                _, answer = self.ecr.answers[repository, image.digest]
                expected = {
                    d for rule in self.ecr.rules if rule.covers(repository) for d in rule.destinations
                }
                expected = expected | {r.destination for r in answer}
                assert {r.destination for r in image.replications} == expected
        assert self.rig.snapshot().registries[0].source == HOME

    def _selected(self, doubt: float) -> set[tuple[str, Name, str]]:
        """What the targets select; `doubt` is how long ago they may have done so."""
        return {
            (repository, *found)
            for target in self.watched
            for repository in self._watched(target)
            for found in self._chosen(target, repository, doubt)
        }

    def _chosen(self, target: TargetSettings, repository: str, doubt: float) -> set[tuple[Name, str]]:
        images = list(self.ecr.repositories.get(repository, {}).values())
        return chosen(target, images, self.rig.clock.time() - (target.pushed_within or 0.0) - doubt)

    @invariant()
    def in_peace_every_image_is_asked_in_time(self) -> None:
        if self.broken:
            return
        now = self.rig.clock.now
        for repository, image in self._told():
            key = repository, image.digest
            asked_at = self.ecr.asked.get(key, 0.0)
            at, answer = self.ecr.answers.get(key, (0.0, ()))
            interval = self._interval(image, answer, asked_at) if at == asked_at else FAILED
            assert now <= max(asked_at + interval, self.changed_at + KNOWN_AFTER) + SLACK

    def _interval(self, image: ImageFacts, answer: Sequence[Replication], at: float) -> float:
        """How long this answer is good for, told a second time."""
        statuses = {r.status for r in image.replications or answer}
        unfinished = statuses - {Status.COMPLETE, Status.FAILED}
        age = self.rig.clock.time() - (image.replicated_from or 0.0)
        if unfinished and age < RECENT:
            age_then = age - (self.rig.clock.now - at)
            return max(PENDING, min(age_then / 8, FAILED))
        return FAILED if statuses - {Status.COMPLETE} else SETTLED

    @invariant()
    def in_peace_targets_tell_whether_all_that_they_name_is_there(self) -> None:
        if self.broken or self._quiet() < FAILED + KNOWN_AFTER:
            return
        for target in self.watched:
            told = self.rig.target(target.label)
            watched = self._watched(target)
            exists = target.is_glob or target.repository in self.ecr.repositories
            named = () if target.is_glob else (target.tag,) if target.tag else target.tags
            spelt = {tag for tag in named if not set("*?[") & set(tag)}
            found = self.ecr.repositories.get(target.repository, {}).values()
            complete = spelt <= {tag for image in found for tag in image.tags}
            reason = None if exists and complete else "image" if exists else "repository"
            assert told.reasons == ({Reason(f"{reason}_not_found")} if reason else set())
            assert told.success is (reason is None)
            least, most = (
                sum(len({d for _, d in self._chosen(target, r, doubt)}) for r in watched)
                for doubt in (0.0, DISCOVERY + SLACK)
            )
            assert least <= told.images <= most

    def teardown(self) -> None:
        """In the end everything heals by itself."""
        if not hasattr(self, "rig"):
            return
        if self.broken:
            self.mend(0)
        for seconds in (KNOWN_AFTER, FAILED + SLACK, SETTLED):
            self.rig.run(seconds + 1)
            for holds in self.invariants:
                holds.function(self)


World.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    # Its failures are short enough as they are; to explain them takes minutes.
    phases=[Phase.generate, Phase.shrink],
)
TestWorld = pytest.mark.filterwarnings("default::hypothesis.errors.HypothesisWarning")(World.TestCase)
