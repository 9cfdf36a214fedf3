"""What targets select, and how a repository's images are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import HOME, digest_of

from exporter.config.settings import TargetSettings
from exporter.replication.model import Image, Name, Source
from exporter.replication.targets import (
    RepositoryTargets,
    Selected,
    Selection,
    Shard,
    Target,
    Targets,
    Watched,
)

NOW = 1_000_000.0
A, B, C, D = (digest_of(letter) for letter in "abcd")
IMAGES = (
    Image(A, ("v1", "stable"), NOW - 300),
    Image(B, ("v2", "latest"), NOW - 200),
    Image(C, ("v3-dev",), NOW - 100),
    Image(D, (), NOW - 50),
)


def of(*settings: TargetSettings, repository: str = "team/app") -> RepositoryTargets:
    return Targets(settings).of(repository)


def shown(selection: Selection) -> set[str]:
    """What is watched: tags, and digests where there is no tag."""
    return {name.tag or name.digest for watched in selection.images.values() for name in watched.names}


# -- which repositories ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "repository", "covered"),
    [
        ("team/app", "team/app", True),
        ("team/app", "team/app2", False),
        ("team/app", "my/team/app", False),
        ("*", "team/app", True),
        ("team/*", "team/deep/down", True),
        ("team/*", "team", False),
        ("team/*", "my/team/app", False),
        ("team-?/app", "team-1/app", True),
        ("team-?/app", "team-12/app", False),
        ("team-[ab]", "team-a", True),
        ("team-[!ab]", "team-a", False),
        ("te.m/*", "team/app", False),
    ],
)
def test_a_target_covers_the_repositories_that_it_names(pattern: str, repository: str, covered: bool) -> None:
    assert Target(TargetSettings(pattern), HOME).covers(repository) is covered


def test_repositories_that_are_spelt_out_are_watched_whether_they_exist_or_not() -> None:
    targets = Targets([TargetSettings("team/gone"), TargetSettings("lib/*")])
    assert targets.matching(["lib/a", "lib/b", "other"]) == {"team/gone", "lib/a", "lib/b"}
    assert targets.repositories == {"team/gone"}
    assert targets.need_repositories


def test_repositories_need_no_listing_unless_a_glob_ranges_over_them() -> None:
    assert not Targets([TargetSettings("team/app", tags=("v*",))]).need_repositories


def test_each_repository_gets_the_targets_that_cover_it_and_identical_ones_once() -> None:
    settings = [TargetSettings("*"), TargetSettings("team/app"), TargetSettings("lib/*"), TargetSettings("*")]
    targets = Targets(settings)
    assert [target.label for target in targets.all] == ["*", "team/app", "lib/*"]
    assert set(targets.of("team/app").labels) == {"*", "team/app"}
    assert set(targets.of("lib/a").labels) == {"*", "lib/*"}


# -- which images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "selected"),
    [
        (TargetSettings("*"), "v1 stable v2 latest v3-dev"),
        (TargetSettings("*", tag="v1"), "v1"),
        (TargetSettings("*", tag="v9"), ""),
        (TargetSettings("*", tags=("v*",)), "v1 v2 v3-dev"),
        (TargetSettings("*", tags=("v?", "latest")), "v1 v2 latest"),
        (TargetSettings("*", tags=("V1", "v")), ""),
        (TargetSettings("*", exclude_tags=("*-dev", "latest")), "v1 stable v2"),
        (TargetSettings("*", tags=("v*",), exclude_tags=("v*",)), ""),
        (TargetSettings("*", tags=("v1", "v2"), exclude_tags=("v1",)), "v2"),
        (TargetSettings("*", digest=B), B),
        (TargetSettings("*", digest=D), D),
        (TargetSettings("*", untagged=True), f"v1 stable v2 latest v3-dev {D}"),
        (TargetSettings("*", untagged=True, tags=("v1",)), f"v1 {D}"),
        (TargetSettings("*", latest=1), "v3-dev"),
        (TargetSettings("*", latest=2), "v3-dev v2 latest"),
        (TargetSettings("*", latest=2, untagged=True), f"{D} v3-dev"),
        (TargetSettings("*", latest=1, exclude_tags=("*-dev",)), "v2 latest"),
        (TargetSettings("*", latest=99), "v1 stable v2 latest v3-dev"),
        (TargetSettings("*", pushed_within=199.9), "v3-dev"),
        (TargetSettings("*", pushed_within=200), "v3-dev v2 latest"),
        (TargetSettings("*", pushed_within=300, latest=1, tags=("stable",)), "stable"),
    ],
    ids=lambda value: value.label if isinstance(value, TargetSettings) else "",
)
def test_a_target_selects(settings: TargetSettings, selected: str) -> None:
    assert shown(of(settings).select(IMAGES, now=NOW)) == set(selected.split())


def test_tags_are_told_apart_by_case() -> None:
    images = [Image(A, ("RC1", "rc2"), NOW)]
    assert shown(of(TargetSettings("*", tags=("RC*",))).select(images, now=NOW)) == {"RC1"}


def test_of_images_pushed_at_the_same_moment_the_greater_digest_is_the_later() -> None:
    twins = [Image(digest, (f"v{n}",), NOW) for n, digest in enumerate((A, B, C))]
    for order in (twins, twins[::-1]):
        chosen = of(TargetSettings("*", latest=2)).select(order, now=NOW)
        assert set(chosen.images) == set(sorted((A, B, C))[1:])


def test_an_image_without_push_time_is_the_oldest_and_never_too_old() -> None:
    images = [Image(A, ("ageless",), None), Image(B, ("old",), NOW - 1e6)]
    assert shown(of(TargetSettings("*", latest=1)).select(images, now=NOW)) == {"old"}
    assert shown(of(TargetSettings("*", pushed_within=10)).select(images, now=NOW)) == {"ageless"}


def test_overlapping_targets_watch_an_image_once_under_all_names_and_count_it_each() -> None:
    by_tag, by_digest, by_glob = (
        TargetSettings("team/app", tag="v1"),
        TargetSettings("team/app", digest=A),
        TargetSettings("team/*", tags=("s*",)),
    )
    selection = of(by_tag, by_digest, by_glob).select(IMAGES, now=NOW)
    names = (Name("", A), Name("stable", ""), Name("v1", ""))
    assert selection.images == {A: Watched(A, names, IMAGES[0].pushed_at, IMAGES[0].pushed_at)}
    assert selection.targets == tuple(Selected(s.label, 1, frozenset()) for s in (by_tag, by_digest, by_glob))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (TargetSettings("team/app", tag="v9"), {Name("v9", "")}),
        (TargetSettings("team/app", tag="v1"), set()),
        (TargetSettings("team/app", digest=digest_of("?")), {Name("", digest_of("?"))}),
        (TargetSettings("team/app", tags=("v1", "v8", "v9", "x*")), {Name("v8", ""), Name("v9", "")}),
        (TargetSettings("team/app", tags=("v9",), exclude_tags=("v9",)), set()),
        (TargetSettings("team/app", tags=("v1",), latest=1, pushed_within=1), set()),
        (TargetSettings("team/*", tag="v9"), set()),
        (TargetSettings("team/*", digest=digest_of("?")), set()),
    ],
    ids=lambda value: value.label if isinstance(value, TargetSettings) else "",
)
def test_a_name_that_is_spelt_out_and_does_not_exist_is_missed(
    settings: TargetSettings, missing: set[Name]
) -> None:
    (target,) = of(settings).select(IMAGES, now=NOW).targets
    assert target.missing == missing


# -- by name or page by page -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (TargetSettings("team/app", tag="v1"), {Name("v1", "")}),
        (TargetSettings("team/app", digest=A), {Name("", A)}),
        (TargetSettings("team/app", tags=("v1", "v2"), latest=1), {Name("v1", ""), Name("v2", "")}),
        (TargetSettings("team/app", tags=("v1", "v2"), exclude_tags=("v2",)), {Name("v1", "")}),
        (TargetSettings("team/app"), None),
        (TargetSettings("team/app", tags=("v1", "w*")), None),
        (TargetSettings("team/app", tags=("v1",), untagged=True), None),
        (TargetSettings("team/*", tag="v1"), None),
    ],
    ids=lambda value: value.label if isinstance(value, TargetSettings) else "",
)
def test_names_suffice_where_nothing_but_names_is_asked_for(settings: TargetSettings, names: object) -> None:
    assert of(settings).names == names


def test_names_suffice_only_if_they_do_for_every_target() -> None:
    one, two, all_ = TargetSettings("a", tag="1"), TargetSettings("a", tag="2"), TargetSettings("*")
    assert of(one, two, repository="a").names == frozenset({Name("1", ""), Name("2", "")})
    assert of(one, two, all_, repository="a").names is None


@pytest.mark.parametrize(
    ("settings", "untagged"),
    [
        (TargetSettings("a", untagged=True), True),
        (TargetSettings("a", digest=A), True),
        (TargetSettings("a", tag="v1"), False),
    ],
    ids=["untagged", "digest", "tag"],
)
def test_untagged_images_are_listed_only_for_those_who_may_want_them(
    settings: TargetSettings, untagged: bool
) -> None:
    assert of(settings, repository="a").untagged is untagged


# -- shards ----------------------------------------------------------------------------------------

SOURCES = st.builds(Source, st.from_regex(r"[0-9]{12}", fullmatch=True), st.sampled_from(["a", "b"]))


@given(st.integers(1, 50), SOURCES, st.text(max_size=20))
def test_every_repository_is_of_exactly_one_shard(total: int, source: Source, repository: str) -> None:
    assert sum(Shard(ordinal, total).owns(source, repository) for ordinal in range(total)) == 1


def test_whose_a_repository_is_never_changes() -> None:
    """A release that splits otherwise would have every shard start cold and see its series move."""
    source = Source("111122223333", "us-east-1")
    owners = [
        next(n for n in range(3) if Shard(n, 3).owns(source, f"team/app-{number}")) for number in range(12)
    ]
    assert owners == [0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 2, 2]


def test_shards_are_of_like_size() -> None:
    source = Source("111122223333", "us-east-1")
    for ordinal in range(4):
        owned = sum(Shard(ordinal, 4).owns(source, f"team/app-{number}") for number in range(2000))
        assert 400 <= owned <= 600


def test_a_shard_has_the_targets_of_its_own_repositories_and_all_globs() -> None:
    targets = Targets(
        [TargetSettings("team/a"), TargetSettings("team/b"), TargetSettings("team/*")],
        ours=lambda name: name != "team/b",
    )
    assert [target.label for target in targets.all] == ["team/a", "team/*"]
    assert targets.matching(["team/b", "team/c", "other"]) == {"team/a", "team/c"}
