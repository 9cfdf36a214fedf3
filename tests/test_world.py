"""Random worlds through targets, schedule, state and exposition: what must always hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from fakes import HOME, IRELAND, OREGON, FakeECR, Rig, refusal
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.config import RegistrySettings, Settings, TargetSettings
from exporter.ecr import ECRError
from exporter.metrics import Exposition, Instruments
from exporter.model import Reason, Replication, Rule, Status
from exporter.state import RECENT

REPOSITORIES = ("team/app", "team/api", "other/base")
TAGS = ("v1", "v2", "v3-dev", "latest")
INTERVALS = {
    "discovery_interval": 60.0,
    "pending_interval": 15.0,
    "failed_interval": 300.0,
    "settled_interval": 1800.0,
    "stale_after": 600.0,
}
#: Of everything that is due, the budget below makes do with so many seconds.
SLACK = 30.0

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


class World(RuleBasedStateMachine):
    @initialize(watched=st.lists(targets, min_size=1, max_size=3, unique=True), first=rules)
    def start(self, watched: list[TargetSettings], first: tuple[Rule, ...]) -> None:
        self.watched = watched
        self.ecr = FakeECR(rules=first, page_size=2)
        for repository in REPOSITORIES[:2]:
            self.ecr.create(repository)
        self.broken: tuple[str, str, Reason] | None = None
        self.broken_since = 0.0
        self.ecr.fault = self._fault
        self.rig = Rig(
            Settings(
                targets=tuple(watched),
                registries=(RegistrySettings(),),
                requests_per_second=50.0,
                **INTERVALS,  # type: ignore[arg-type]
            ),
            self.ecr,
        )
        self.exposition = Exposition(
            instruments=Instruments(), ledger=self.rig.ledger, figures=self.rig.poller, clock=self.rig.clock
        )
        self.asked: dict[tuple[str, str], float] = {}
        self.told: set[tuple[str, str]] = set()
        self._run(5)

    def _fault(self, operation: str, repository: str) -> ECRError | None:
        if self.broken and self.broken[0] == operation and self.broken[1] in ("", repository):
            return refusal(self.broken[2])
        return None

    def _run(self, seconds: float) -> None:
        """Second by second, so that each call's time is known."""
        end = self.rig.clock.now + seconds
        while self.rig.clock.now < end:
            before = len(self.ecr.log)
            self.rig.run(min(1.0, end - self.rig.clock.now))
            for operation, repository, digest in self.ecr.log[before:]:
                if operation == "DescribeImageReplicationStatus":
                    self.asked[repository, digest] = self.rig.clock.now

    # -- what happens --

    @rule(repository=st.sampled_from(REPOSITORIES), tag=st.sampled_from(TAGS), age=st.sampled_from([0, 100, 9000]))
    def push(self, repository: str, tag: str, age: float) -> None:
        self.ecr.push(repository, tag, at=self.rig.clock.time() - age)

    @rule(data=st.data())
    def delete_image(self, data: st.DataObject) -> None:
        images = [(r, d) for r, found in self.ecr.repositories.items() for d in found]
        if images:
            repository, digest = data.draw(st.sampled_from(sorted(images)))
            del self.ecr.repositories[repository][digest]

    @rule(repository=st.sampled_from(REPOSITORIES))
    def delete_repository(self, repository: str) -> None:
        self.ecr.repositories.pop(repository, None)

    @rule(data=st.data(), reported=replications)
    def report(self, data: st.DataObject, reported: list[Replication]) -> None:
        images = [(r, d) for r, found in self.ecr.repositories.items() for d in found]
        if images:
            self.ecr.report(*data.draw(st.sampled_from(sorted(images))), *reported)

    @rule(new=rules)
    def change_rules(self, new: tuple[Rule, ...]) -> None:
        self.ecr.rules = new

    @rule(
        operation=st.sampled_from(
            ["DescribeImageReplicationStatus", "DescribeImages", "DescribeRepositories", "DescribeRegistry"]
        ),
        repository=st.sampled_from(["", "team/app"]),
        reason=st.sampled_from([Reason.ACCESS_DENIED, Reason.UNAVAILABLE, Reason.THROTTLED, Reason.INVALID]),
    )
    def break_(self, operation: str, repository: str, reason: Reason) -> None:
        self.broken = (operation, repository, reason)

    @rule()
    def mend(self) -> None:
        if self.broken:
            self.broken = None
            self._run(70)  # until the longest back-off is over

    @rule(seconds=st.sampled_from([1, 20, 65, 400, 700]))
    def wait(self, seconds: float) -> None:
        self._run(seconds)

    # -- what must hold --

    def _page(self, accept: str) -> str:
        return self.exposition.page(accept=accept, accept_encoding="", names=()).body.decode()

    def _samples(self, name: str) -> list[Any]:
        families = parse_text(self._page(""))
        return [s for family in families for s in family.samples if s.name == name]

    @invariant()
    def both_formats_parse_and_agree(self) -> None:
        plain = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in parse_text(self._page(""))
            for s in family.samples
            if s.name.startswith("ecr_") and not s.name.startswith("ecr_replication_exporter")
        }
        openmetrics = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in parse_openmetrics(self._page("application/openmetrics-text; version=1.0.0"))
            for s in family.samples
            if s.name.startswith("ecr_") and not s.name.startswith("ecr_replication_exporter")
        }
        assert plain == openmetrics

    @invariant()
    def each_image_is_in_exactly_one_state_at_each_destination(self) -> None:
        ones: Counter[tuple[str, ...]] = Counter()
        places: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
        for sample in self._samples("ecr_image_replication_status"):
            labels = dict(sample.labels)
            state = labels.pop("status")
            key = tuple(labels[k] for k in sorted(labels))
            ones[key] += int(sample.value)
            assert state not in places[key]
            places[key].add(state)
        assert set(ones.values()) <= {1}

    @invariant()
    def nothing_is_told_that_was_not_asked(self) -> None:
        for registry in self.rig.snapshot().registries:
            for repository, images in registry.repositories:
                for image in images:
                    assert (image.replications is None) == ((repository, image.digest) not in self.asked) or (
                        image.replications is None
                    )

    @invariant()
    def what_ecr_never_had_is_never_told(self) -> None:
        for sample in self._samples("ecr_image_info"):
            assert sample.labels["repository"] in REPOSITORIES
            assert sample.labels["digest"].startswith("sha256:")
            assert sample.labels["tag"] in (*TAGS, "")

    def teardown(self) -> None:
        """At rest and in order, what is told is what is so, and everything is asked in time."""
        if not hasattr(self, "rig"):
            return
        self.broken = None
        self._run(2100)
        self._everything_is_so()
        self._everything_was_asked_in_time()

    def _everything_is_so(self) -> None:
        now = self.rig.clock.time()
        for (repository, tag, digest), told in self.rig.states().items():
            images = self.ecr.repositories[repository].values()
            (image,) = [i for i in images if (tag and tag in i.tags) or i.digest == digest]
            assert any(self._selects(t, repository, image, tag, now) for t in self.watched)
            reported = self.ecr.statuses.get((repository, image.digest), ())
            owed = {d for rule in self.ecr.rules if rule.covers(repository) for d in rule.destinations}
            assert set(told) == {r.destination for r in reported} | owed
            for destination, status in told.items():
                said = {r.status for r in reported if r.destination == destination}
                assert status in (said or {Status.MISSING})
        watched = {(r, n) for r, *n in ((r, t, d) for r, t, d in self.rig.states()) for n in [tuple(n)]}
        for repository, found in self.ecr.repositories.items():
            for image in found.values():
                for tag in image.tags:
                    if any(
                        t.latest is None and self._selects(t, repository, image, tag, now) for t in self.watched
                    ):
                        assert (repository, (tag, "")) in watched

    @staticmethod
    def _selects(target: TargetSettings, repository: str, image: Any, tag: str, now: float) -> bool:
        from fnmatch import fnmatchcase as match

        if not match(repository, target.repository):
            return False
        wanted = (target.tag,) if target.tag else target.tags or ("*",)
        by_tag = any(match(tag, w) for w in wanted) and not any(match(tag, w) for w in target.exclude_tags)
        young = target.pushed_within is None or now - image.pushed_at < target.pushed_within
        old_enough_to_doubt = target.pushed_within is not None and now - image.pushed_at < target.pushed_within + 70
        return (by_tag if tag else target.untagged) and (young or old_enough_to_doubt)

    def _everything_was_asked_in_time(self) -> None:
        now, wall = self.rig.clock.now, self.rig.clock.time()
        for registry in self.rig.snapshot().registries:
            for repository, images in registry.repositories:
                for image in images:
                    statuses = {r.status for r in image.replications or ()}
                    recent = image.pushed_at is not None and wall - image.pushed_at < RECENT - 100
                    unfinished = statuses - {"COMPLETE", "FAILED"}
                    if recent and unfinished:
                        interval = INTERVALS["pending_interval"]
                    elif statuses - {"COMPLETE"}:
                        interval = INTERVALS["failed_interval"]
                    else:
                        interval = INTERVALS["settled_interval"]
                    assert now - self.asked[repository, image.digest] <= interval + SLACK
        assert all(t.success is not None for r in self.rig.snapshot().registries for t in r.targets)
        assert self.rig.snapshot().registries[0].source == HOME


World.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
TestWorld = pytest.mark.filterwarnings("default::hypothesis.errors.HypothesisWarning")(World.TestCase)
