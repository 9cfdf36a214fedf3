"""Configurations for tests: files, and hypothesis strategies for valid ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from exporter.config.settings import DestinationSettings, RegistrySettings, Settings, TargetSettings, load
from exporter.config.web import load_web

CONFIGS = Path(__file__).parents[1] / "config" / "files"

BAD = sorted(CONFIGS.glob("*.bad.yaml"))

DIGEST = "sha256:" + "0123456789abcdef" * 4


def loader(path: Path) -> Callable[[str], object]:
    return load_web if path.name.startswith("web_") else load


names = st.from_regex(r"[a-z0-9]{2,9}(/[a-z]{1,5})?", fullmatch=True)

tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)

tag_globs = st.lists(st.one_of(tags, tags.map("{}*".format)), max_size=3, unique=True).map(tuple)

durations = st.integers(1, 10**11).map(lambda milliseconds: milliseconds / 1000)

intervals = st.integers(1000, 10**11).map(lambda milliseconds: milliseconds / 1000)

targets = st.one_of(
    st.builds(TargetSettings, names, tag=tags),
    st.builds(TargetSettings, names, digest=st.just(DIGEST)),
    st.builds(
        TargetSettings,
        names.map("{}*".format),
        tags=tag_globs,
        exclude_tags=tag_globs,
        latest=st.none() | st.integers(1, 10**9),
        pushed_within=st.none() | durations,
        untagged=st.booleans(),
        registries=st.sampled_from([(), ("a",), ("a", "333344445555/us-east-1")]),
        destinations=st.sampled_from([(), ("eu-west-1", "444455556666/us-west-2")]),
    ),
)


def _partly_named(targets: list[TargetSettings]) -> tuple[TargetSettings, ...]:
    """Every second target with a name of its own."""
    return tuple(replace(t, name=f"target {i}" * (i % 2)) for i, t in enumerate(targets))


configurations = st.builds(
    Settings,
    targets=st.lists(targets, min_size=1, max_size=5).map(_partly_named),
    registries=st.just(
        (
            RegistrySettings("a", role_arn="arn:aws-cn:iam::222233334444:role/x"),
            RegistrySettings(region="us-east-1", registry_id="333344445555"),
            RegistrySettings(region="us-east-1", registry_id="333344445555"),
            RegistrySettings(),
        )
    ),
    destinations=st.sampled_from(
        [(), (DestinationSettings("012345678901"), DestinationSettings("444455556666", region="us-west-2"))]
    ),
    discovery_interval=intervals,
    pending_interval=intervals,
    failed_interval=intervals,
    settled_interval=intervals,
    replica_interval=st.just(0.0) | intervals,
    stale_after=st.just(2e8 + 0.001),
    requests_per_second=st.floats(0.001, 10_000),
    max_images=st.integers(1, 10**15 - 1),
    state_file=st.none() | st.sampled_from(["/var/lib/exporter/state", "a b/c: #d", "~"]),
)
