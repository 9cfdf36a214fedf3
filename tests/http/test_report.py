"""Facts -> the report of the page and the API."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.facts import HERE, OTHER, PUSHED, hand_made, image, repository
from support.fakes import ACCOUNT, HOME, IRELAND, OREGON, FakeClock, digest_of

from exporter.http.advice import NOT_WELL, Verdict, advise, verdict_of
from exporter.http.filters import Filters, QueryError
from exporter.http.report import ImageReport, Report
from exporter.http.reporter import LATE_AFTER, MOST_NAMES, Reporter
from exporter.replication.facts import ImageFacts, RegistryFacts
from exporter.replication.model import (
    Destination,
    FailureScope,
    Name,
    Reason,
    Replica,
    ReplicaState,
    Replication,
    Source,
    Status,
)
from exporter.replication.store import Store

FAILED = Replication(OTHER, Status.FAILED, "DENIED")
COMPLETE = Replication(IRELAND, Status.COMPLETE)
GONE = ((Replica(IRELAND, ReplicaState.ABSENT, held=False),),)
#: A clock at which every unfinished image of the tests is late, unless a test sets another time.
LATE = 2 * LATE_AFTER


def store_of(*images: ImageFacts, name: str = "team/app") -> Store:
    store = Store()
    store.stale_after = 1e9
    facts = RegistryFacts(HOME, labels=("team/*",), begun=True, repositories_known=True)
    facts.repositories[name] = repository("team/*", *images)
    store.registries = [facts]
    return store


def reporter(store: Store, *, now: float = PUSHED + LATE, due: Mapping[str, float] | None = None) -> Reporter:
    """`now` is Unix time; the monotonic clock is at 100. `due`: monotonic times of calls, by digest."""
    asked = due or {}
    clock = FakeClock(now=100.0, wall_ahead=now - 100.0)
    return Reporter(store=store, clock=clock, due=lambda _, __, digest: asked.get(digest))


def report_of(
    store: Store, filters: Filters | None = None, *, limit: int = 500, now: float = PUSHED + LATE
) -> Report:
    return reporter(store, now=now).report(filters or Filters(), limit=limit)


def shown(report: Report) -> list[tuple[str, str | None, Verdict]]:
    return [(",".join(row.tags), row.region, row.verdict) for row in report.images]


PRESENT, ABSENT, UNTAGGED, OTHER_IMAGE, ARCHIVED = ReplicaState


@pytest.mark.parametrize(
    ("status", "copies", "verdict"),
    [
        ("COMPLETE", [], Verdict.WELL),
        ("COMPLETE", [None, PRESENT], Verdict.WELL),
        ("COMPLETE", [PRESENT, ABSENT], Verdict.COPY_GONE),
        ("COMPLETE", [ARCHIVED], Verdict.COPY_GONE),
        ("COMPLETE", [UNTAGGED, ABSENT], Verdict.COPY_GONE),
        ("COMPLETE", [UNTAGGED, PRESENT], Verdict.TAG_DIFFERS),
        ("COMPLETE", [OTHER_IMAGE], Verdict.TAG_DIFFERS),
        ("FAILED", [], Verdict.FAILED),
        ("FAILED", [ABSENT], Verdict.FAILED),
        ("FAILED", [PRESENT, None], Verdict.FAILED),
        ("FAILED", [PRESENT, PRESENT], Verdict.WELL),
        ("MISSING", [], Verdict.MISSING),
        ("IN_PROGRESS", [ABSENT], Verdict.STUCK),
        ("IN_PROGRESS", [PRESENT], Verdict.WELL),
        ("UNKNOWN", [], Verdict.UNKNOWN_STATUS),
        ("TELEPORTED", [], Verdict.UNKNOWN_STATUS),
    ],
)
def test_what_a_status_and_the_copies_mean(
    status: str, copies: list[ReplicaState | None], verdict: Verdict
) -> None:
    assert verdict_of(status, copies) is verdict


def test_the_worst_comes_first_and_each_image_counts_once() -> None:
    report = report_of(hand_made())
    assert shown(report) == [
        ("v1,latest", "eu-west-1", Verdict.FAILED),
        ("v6", "eu-west-1", Verdict.COPY_GONE),
        ("v1,latest", "eu-west-1", Verdict.TAG_DIFFERS),
        ("v3", "eu-west-1", Verdict.MISSING),
        ("v2", "eu-west-1", Verdict.UNKNOWN_STATUS),
        ("v4", "eu-west-1", Verdict.STUCK),
        ("v2", "eu-west-1", Verdict.STUCK),
    ]
    summary = report.summary
    assert (summary.images, summary.not_well, summary.on_the_way, summary.not_known) == (7, 5, 0, 1)
    assert summary.skipped == 7
    assert sum(summary.verdicts.values()) == report.matched == 7
    assert not report.truncated


def test_a_row_says_what_where_why_and_since_when() -> None:
    first = report_of(hand_made()).images[0]
    assert (first.repository, first.tags) == ("team/app", ["v1", "latest"])
    assert (first.source_registry_id, first.source_region) == HOME
    assert (first.region, first.registry_id) == OTHER
    assert (first.status, first.failure_code) == ("FAILED", "DENIED")
    assert [(copy.tag, copy.state) for copy in first.copies] == [("v1", "absent"), ("latest", None)]
    assert "the failure code DENIED" in first.cause
    assert first.runbook == "ECRReplicationFailed"
    assert first.since_timestamp_seconds == PUSHED + 5
    assert first.pushed_timestamp_seconds == PUSHED


def test_an_unfinished_image_is_on_the_way_for_thirty_minutes() -> None:
    store = store_of(
        image("a", Replication(IRELAND, Status.IN_PROGRESS)),
        image("b", Replication(IRELAND, Status.MISSING)),
        image("c", Replication(IRELAND, Status.IN_PROGRESS), pushed_at=None),
    )
    early = report_of(store, now=PUSHED + LATE_AFTER)
    assert shown(early) == [
        ("c", "eu-west-1", Verdict.STUCK),
        # Both are equally old, so the digest decides.
        ("b", "eu-west-1", Verdict.ON_THE_WAY),
        ("a", "eu-west-1", Verdict.ON_THE_WAY),
    ]
    assert (early.summary.not_well, early.summary.on_the_way) == (1, 2)
    late = report_of(store, now=PUSHED + LATE_AFTER + 1)
    assert {verdict for _, _, verdict in shown(late)} == {Verdict.STUCK, Verdict.MISSING}
    assert (late.summary.not_well, late.summary.on_the_way) == (3, 0)


def test_a_failed_image_that_is_unfinished_elsewhere_is_not_well_and_counts_once() -> None:
    store = store_of(image("a", Replication(IRELAND, Status.IN_PROGRESS), FAILED))
    summary = report_of(store, now=PUSHED + 1).summary
    assert (summary.not_well, summary.on_the_way) == (1, 0)
    assert summary.verdicts == {Verdict.FAILED: 1, Verdict.ON_THE_WAY: 1}


def test_the_newest_failure_is_first_and_the_oldest_stuck_image_too() -> None:
    ages = {"old": 300.0, "new": 100.0, "mid": 200.0}
    stuck = Replication(IRELAND, Status.IN_PROGRESS)
    failed = [image(f"f-{name}", FAILED, pushed_at=PUSHED - age) for name, age in ages.items()]
    late = [image(f"s-{name}", stuck, pushed_at=PUSHED - age) for name, age in ages.items()]
    store = store_of(*failed, *late)
    expected = ["f-new", "f-mid", "f-old", "s-old", "s-mid", "s-new"]
    assert [tags for tags, *_ in shown(report_of(store))] == expected
    cut = report_of(store, limit=4)
    assert [tags for tags, *_ in shown(cut)] == expected[:4]
    assert (cut.truncated, cut.matched, cut.summary.not_well) == (True, 6, 6)


def test_images_of_several_repositories_are_merged_in_order() -> None:
    store = store_of(*(image(f"a{n}", FAILED, pushed_at=PUSHED + n) for n in (0, 2, 4)))
    others = repository("team/*", *(image(f"b{n}", FAILED, pushed_at=PUSHED + n) for n in (1, 3)))
    store.registries[0].repositories["team/api"] = others
    assert [tags for tags, *_ in shown(report_of(store))] == ["a4", "b3", "a2", "b1", "a0"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(repository="team/app"), ["v1", "v2", "v3"]),
        (Filters(repository="team/*"), ["v1", "v2", "v3"]),
        (Filters(repository="app"), []),
        (Filters(repository="*ap?"), ["v1", "v2", "v3"]),
        (Filters(repository="TEAM/app"), []),
        (Filters(tag="v2"), ["v2"]),
        (Filters(tag="v[13]"), ["v1", "v3"]),
        (Filters(tag="v"), []),
        (Filters(digest=digest_of("v3")), ["v3"]),
        (Filters(digest=digest_of("v3")[:15]), ["v3"]),
        (Filters(digest=digest_of("v3").removeprefix("sha256:")[:8]), ["v3"]),
        (Filters(digest=digest_of("v4")), []),
        (Filters(status="COMPLETE"), ["v2", "v3"]),
        (Filters(status="FAILED"), ["v1"]),
        (Filters(status="MISSING"), []),
        (Filters(verdict="copy_gone"), ["v3"]),
        (Filters(verdict="well"), ["v2"]),
        (Filters(tag="v[12]", verdict="well"), ["v2"]),
        (Filters(tag="v1", status="COMPLETE"), []),
    ],
)
def test_a_search_finds_what_matches_in_every_state(filters: Filters, found: list[str]) -> None:
    store = store_of(image("v1", FAILED), image("v2", COMPLETE), image("v3", COMPLETE, replicas=GONE))
    report = report_of(store, filters)
    assert sorted(",".join(row.tags) for row in report.images) == found
    assert report.matched == len(found)
    assert report.summary.not_well == 2  # whatever is searched for


def test_a_search_finds_images_that_nothing_is_known_of() -> None:
    nowhere = replace(image("v2"), replications=())
    report = report_of(store_of(image("v1"), nowhere), Filters(repository="team/app"))
    assert shown(report) == [("v1", None, Verdict.NOT_KNOWN), ("v2", None, Verdict.NOWHERE)]
    assert report.images[1].runbook == "ECRReplicationNothingReplicated"
    assert (report.summary.not_well, report.summary.not_known) == (0, 1)


def test_a_status_that_no_image_has_and_ecr_does_not_know_is_refused() -> None:
    store = store_of(image("v1", Replication(IRELAND, "TELEPORTED")))
    assert len(report_of(store, Filters(status="TELEPORTED")).images) == 1
    assert report_of(store, Filters(status="FAILED")).images == []
    with pytest.raises(QueryError, match="'failed' is not a status; a status is one of IN_PROGRESS, COMP"):
        report_of(store, Filters(status="failed"))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"repo": ["x"]}, "There is no parameter 'repo'"),
        ({"tag": ["a", "b"]}, "The parameter tag is given more than once."),
        ({"verdict": ["bad"]}, "'bad' is not a verdict; a verdict is one of failed, copy_gone"),
    ],
)
def test_a_query_that_is_not_understood_is_refused(query: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(QueryError, match=r"\.$") as caught:
        Filters.of(query)
    assert sentence in str(caught.value)


def test_an_empty_form_searches_for_nothing() -> None:
    filters = Filters.of({"repository": [""], "tag": [" "], "digest": [""], "status": [""]})
    assert not filters
    assert filters == Filters()


def test_times_of_calls_and_looks_are_unix_times() -> None:
    store = hand_made()
    home = store.registries[0].repositories["team/app"]
    v6 = home.images[digest_of("v6")]
    home.put(replace(v6, answered_at=90.0))
    store.destinations[1].interval = 900.0
    maker = reporter(store, now=PUSHED, due={v6.digest: 130.0})
    row = maker.report(Filters(tag="v6"), limit=1).images[0]
    assert (row.asked_timestamp_seconds, row.next_ask_timestamp_seconds) == (PUSHED - 10, PUSHED + 30)
    assert (row.looked_timestamp_seconds, row.next_look_timestamp_seconds) == (PUSHED + 40, PUSHED + 940)
    failed = maker.report(Filters(status="FAILED"), limit=1).images[0]
    assert failed.asked_timestamp_seconds is None
    assert failed.looked_timestamp_seconds is None


def test_an_answer_that_says_the_same_still_moves_the_time_of_the_call() -> None:
    store = store_of(image("v1", FAILED))
    home = store.registries[0].repositories["team/app"]
    maker = reporter(store, now=PUSHED)
    before = maker.report(Filters(), limit=1).images[0]
    home.put(replace(home.images[digest_of("v1")], answered_at=95.0))
    after = maker.report(Filters(), limit=1).images[0]
    assert after == replace(before, asked_timestamp_seconds=PUSHED - 5)


def test_a_change_is_shown_and_a_report_changes_nothing() -> None:
    store = hand_made()
    maker = reporter(store)
    version = store.version
    first = maker.report(Filters(), limit=500)
    assert maker.report(Filters(), limit=500) == first
    assert store.version == version
    store.registries[0].repositories["team/app"].put(image("v7", FAILED, pushed_at=PUSHED + 99))
    assert shown(maker.report(Filters(), limit=1)) == [("v7", "eu-west-1", Verdict.FAILED)]
    store.registries[0].repositories["team/app"].replace(gone=[digest_of("v7")], new=())
    assert maker.report(Filters(), limit=500) == first


def test_an_answer_that_is_too_old_is_not_shown() -> None:
    store = store_of(replace(image("v1", FAILED), good_until=100.0), image("v2", FAILED))
    clock = FakeClock(now=100.0, wall_ahead=PUSHED)
    maker = Reporter(store=store, clock=clock, due=lambda *_: None)
    assert maker.report(Filters(), limit=9).summary.not_well == 2
    clock.now = 100.5
    after = maker.report(Filters(), limit=9)
    assert shown(after) == [("v2", "eu-west-1", Verdict.FAILED)]
    assert (after.summary.images, after.summary.not_known) == (2, 1)


def test_destinations_by_state_and_how_looking_goes() -> None:
    store = hand_made()
    store.unread = (Destination("ap-south-1", "555566667777"),)
    unread, other, home = report_of(store).destinations[0:3]
    assert unread.remedy == "Give an entry of destinations with registry_id 555566667777."
    assert (unread.success, unread.statuses, unread.copies) == (None, {}, {})
    assert (home.region, home.registry_id) == OTHER
    assert (home.success, home.reasons) == (False, ["access_denied"])
    assert home.remedy == "Follow the runbook ECRDestinationNotRead."
    assert home.statuses == {"FAILED": 1, "TELEPORTED": 1}
    assert (other.region, other.registry_id) == IRELAND
    assert other.statuses == {"COMPLETE": 3, "IN_PROGRESS": 2, "MISSING": 1}
    assert other.copies == {"archived": 1, "other_image": 1, "present": 1, "untagged": 1}
    assert (other.success, other.last_success_timestamp_seconds) == (True, PUSHED + 40)


def test_registries_and_targets_with_their_failures() -> None:
    store = hand_made()
    store.registries[0].failures[FailureScope("rules")] = Reason.THROTTLED
    report = report_of(store)
    home = report.registries[0]
    assert (home.source_registry_id, home.last_success_timestamp_seconds) == (ACCOUNT, PUSHED + 60)
    assert report.registries[1].last_success_timestamp_seconds is None
    assert [(each.call, each.repository, each.reason) for each in home.failures] == [
        ("rules", "", "throttled"),
        ("images", "team/gone", "repository_not_found"),
    ]
    targets = {each.target: each for each in report.targets}
    assert targets["team/gone"].reasons == ["repository_not_found", "throttled"]
    assert targets["team/*"].success is False
    assert targets["team/unlisted"].success is None


def test_repositories_that_are_replicated_nowhere_are_named() -> None:
    store = store_of(image("v1", COMPLETE))
    facts = store.registries[0]
    facts.rules = replace(hand_made().registries[0].rules, rules=())  # type: ignore[type-var]
    names = [f"team/{n}" for n in range(MOST_NAMES)]
    facts.repositories |= {name: repository("team/*") for name in names}
    found = report_of(store).unreplicated
    assert [each.repository for each in found] == ["team/app", *names][:MOST_NAMES]


# -- what to do ----------------------------------------------------------------------------------


def row_of(name: str, tag: str, digest: str, to: Destination = OTHER, *, code: str = "X") -> ImageReport:
    facts = replace(
        image("t", Replication(to, Status.FAILED, code)),
        digest=digest,
        names=(Name(tag, "") if tag else Name("", digest),),
    )
    return report_of(store_of(facts, name=name)).images[0]


def run(command: str, folder: Path) -> list[str]:
    """The words that a program gets from the shell. Nothing else in the folder may have been made."""
    for program in ("aws", "crane"):
        script = folder / program
        script.write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@"\n')
        script.chmod(0o755)
    before = set(folder.iterdir())
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, cwd=folder, capture_output=True, check=True, timeout=20
    )
    assert set(folder.iterdir()) == before
    assert done.stderr == b""
    return [word.decode() for word in done.stdout.split(b"\0")[:-1]][1:]


def test_commands_are_filled_in_for_the_image(tmp_path: Path) -> None:
    digest = digest_of("v1")
    row = row_of("team/app", "v1", digest, code="DESTINATION_REGISTRY_ACCESS_DENIED")
    assert f"does not allow account {ACCOUNT}" in row.cause
    commands = [command.command for command in row.commands]
    hosts = [f"{account}.dkr.ecr.{region}.amazonaws.com" for region, account in (HOME[::-1], OTHER)]
    source = f"--region us-east-1 --registry-id {ACCOUNT} --repository-name team/app"
    there = "--region eu-west-1 --registry-id 444455556666 --repository-name team/app"
    assert commands == [
        f"aws ecr describe-image-replication-status {source} --image-id imageDigest={digest}",
        "aws ecr get-registry-policy --region eu-west-1",
        f"aws ecr describe-images {there} --image-ids imageDigest={digest} --filter imageStatus=ANY",
        f"crane copy {hosts[0]}/team/app@{digest} {hosts[1]}/team/app:v1",
    ]
    assert run(commands[0], tmp_path) == commands[0].split()[1:]


@pytest.mark.parametrize(
    ("region", "host"),
    [("cn-north-1", "444455556666.dkr.ecr.cn-north-1.amazonaws.com.cn/a:v1"), ("us-iso-east-1", None)],
)
def test_the_host_of_a_registry_is_that_of_its_partition(region: str, host: str | None) -> None:
    row = row_of("a", "v1", digest_of("v1"), Destination(region, "444455556666"))
    copies = [each.command.split()[-1] for each in row.commands if each.command.startswith("crane copy")]
    assert copies == ([host] if host else [])


def test_a_command_that_lacks_a_fact_is_left_out() -> None:
    row = row_of("team/app", "", digest_of("v1"), Destination("", ""))
    assert [command.command.split()[2] for command in row.commands] == ["describe-image-replication-status"]


def test_commands_concern_the_tags_with_the_problem() -> None:
    replicas = ((HERE,), (Replica(IRELAND, ReplicaState.OTHER_IMAGE, held=True),))
    row = report_of(store_of(image("good,bad", COMPLETE, replicas=replicas))).images[0]
    assert row.cause == "At the destination the tag bad names another image."
    assert [c.command.split()[-1] for c in row.commands if c.command.startswith("crane tag")] == ["bad"]


def test_commands_of_several_tags_say_which_is_whose() -> None:
    failed = Replication(IRELAND, Status.FAILED, "X")
    row = report_of(store_of(image("v1,v2", failed))).images[0]
    copies = {c.purpose: c.command.rpartition(":")[2] for c in row.commands if c.command.startswith("crane")}
    purpose = "Copy the image by hand; crane keeps the digest: tag"
    assert copies == {f"{purpose} v1": "v1", f"{purpose} v2": "v2"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.text(min_size=1, max_size=12)
    | st.sampled_from(["$(touch x)", "`touch x`", "a;touch x", "'", "a\nb", "-x"]),
    st.text(max_size=12) | st.sampled_from(["$(touch x)", "&& touch x", '"', "\x1b[201~touch x\n", "\u202e"]),
)
def test_hostile_names_do_no_harm_in_a_shell(tmp_path: Path, name: str, tag: str) -> None:
    row = row_of(name, tag, "sha256:0")
    harmless = all(map(str.isprintable, (name, tag))) and not name.startswith("-") and "://" not in name
    for command in row.commands:
        assert command.command.isprintable()
        words = run(command.command, tmp_path)
        if "--repository-name" in words:
            assert words[words.index("--repository-name") + 1] == name
    assert harmless <= any("--repository-name" in each.command for each in row.commands)


def test_an_image_without_a_tag_is_copied_by_its_digest() -> None:
    digest = f"sha256:{'a' * 64}"
    facts = {
        "source_registry_id": ACCOUNT,
        "source_region": "us-east-1",
        "repository": "team/app",
        "digest": digest,
        "region": "eu-west-1",
        "registry_id": "444455556666",
        "status": Status.FAILED,
        "failure_code": "",
    }
    advised = advise(Verdict.FAILED, facts, {"": None})
    assert advised.cause == "ECR reports no failure code."
    [copied] = [each.command for each in advised.commands if each.command.startswith("crane")]
    assert copied == (
        f"crane copy {ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/team/app@{digest}"
        f" 444455556666.dkr.ecr.eu-west-1.amazonaws.com/team/app@{digest}"
    )


def test_a_failed_image_whose_copy_is_there_says_so() -> None:
    seen = image("v1", FAILED, replicas=((Replica(FAILED.destination, PRESENT, True),),))
    [row] = report_of(store_of(seen), Filters(status="FAILED")).images
    assert (row.verdict, row.cause) == (
        Verdict.WELL,
        "ECR reports FAILED, but the destination holds the image.",
    )


def test_every_runbook_that_is_named_exists() -> None:
    folder = Path(__file__).parents[2] / "docs/runbooks"
    names = ("source_registry_id", "source_region", "repository", "digest", "region", "registry_id", "status")
    by_copy = {Verdict.COPY_GONE: (ABSENT, ARCHIVED), Verdict.TAG_DIFFERS: (OTHER_IMAGE, UNTAGGED)}
    for verdict in NOT_WELL | {Verdict.NOWHERE}:
        for state, code in product(by_copy.get(verdict, (PRESENT,)), ("", "UNKNOWN")):
            facts = dict.fromkeys(names, "x") | {"failure_code": code}
            advised = advise(verdict, facts, {"v1": state})
            assert advised.cause
            assert advised.remedy
            assert folder.joinpath(f"{advised.runbook}.md").is_file()


def test_a_store_without_facts_gives_an_empty_report() -> None:
    report = report_of(Store())
    assert (report.images, report.destinations, report.targets, report.matched) == ([], [], [], 0)


def test_two_registries_do_not_mix() -> None:
    store = store_of(image("v1", FAILED))
    elsewhere = RegistryFacts(Source("999988887777", "eu-west-1"))
    elsewhere.repositories["team/app"] = repository("team/*", image("v1", Replication(OREGON, Status.FAILED)))
    store.registries.append(elsewhere)
    rows = report_of(store).images
    assert {(row.source_registry_id, row.region) for row in rows} == {
        (ACCOUNT, "eu-west-1"),
        ("999988887777", "us-west-2"),
    }


STATES: tuple[tuple[Replication, ...], ...] = (
    (COMPLETE, FAILED),
    (COMPLETE,),
    (Replication(IRELAND, Status.IN_PROGRESS), FAILED),
    (Replication(IRELAND, Status.IN_PROGRESS), Replication(OREGON, Status.MISSING)),
    (),
)


def numbered(number: int, replications: tuple[Replication, ...] = STATES[0], *, gone: bool) -> ImageFacts:
    """An image as old as two others. What is said of it is one object, as in the exporter."""
    seen = image(f"v{number}", pushed_at=PUSHED + number // 3, replicas=GONE if gone else ())
    return replace(seen, replications=replications or None)


#: An image of one of two repositories, and how it is now; None if it goes.
CHANGES = st.tuples(
    st.integers(0, 70),
    st.booleans(),
    st.none() | st.tuples(st.sampled_from(STATES), st.booleans()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CHANGES, max_size=4), max_size=8))
def test_a_report_after_changes_is_that_of_a_new_process(
    rounds: list[list[tuple[int, bool, tuple[tuple[Replication, ...], bool] | None]]],
) -> None:
    """Images change, come and go in two repositories. Some are as old as others, and some are late."""
    clock = FakeClock(now=100.0, wall_ahead=PUSHED + LATE_AFTER - 100)
    store = store_of(*(numbered(n, gone=False) for n in range(64)))
    home = store.registries[0].repositories
    home["team/api"] = repository("team/*")
    maker = Reporter(store=store, clock=clock, due=lambda *_: None)
    for changes in rounds:
        for number, other, change in changes:
            facts = home["team/api" if other else "team/app"]
            if change:
                facts.put(numbered(number, change[0], gone=change[1]))
            else:
                facts.replace(gone={digest_of(f"v{number}")} & facts.images.keys(), new=())
        for filters, limit in [(Filters(), 3), (Filters(), 199), (Filters(tag="v1*"), 9)]:
            new = Reporter(store=store, clock=clock, due=lambda *_: None)
            assert maker.report(filters, limit=limit) == new.report(filters, limit=limit)
        clock.now += 3
