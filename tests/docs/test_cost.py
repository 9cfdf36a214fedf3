"""The figures of docs/cost.md: the series of an image, and their size."""

from __future__ import annotations

import gzip

import pytest
from support.copies import looking
from support.fakes import ACCOUNT, FakeECR, Figures, Rig, complete

from exporter.metrics.exposition import Exposition
from exporter.metrics.self_metrics import Instruments
from exporter.replication.model import Destination, Rule, Source

TAGS = 300
REGIONS = ("eu-west-1", "us-west-2", "ap-southeast-2")


def page(destinations: int, *, looked: bool, image_series: str = "all") -> tuple[bytes, bytes]:
    """The plain and the compressed page of an exporter that watches tags with well images."""
    to = [Destination(region, ACCOUNT) for region in REGIONS[:destinations]]
    home = FakeECR(rules=(Rule(tuple(to)),), page_size=1000)
    there = [FakeECR(source=Source(ACCOUNT, each.region), rules=(), page_size=1000) for each in to]
    for number in range(TAGS):
        tag, pushed_at = f"2026.11.{number:04}", 1.8e9 - 60 * number
        digest = home.push("team/application", tag, at=pushed_at)
        home.report("team/application", digest, *map(complete, to))
        for ecr in there:
            ecr.push("team/application", tag, at=pushed_at, digest=digest)
    settings = looking(replica_interval=900.0 if looked else 0.0, image_series=image_series)
    rig = Rig(settings, home, *there)
    rig.run(2000)
    exposition = Exposition(instruments=Instruments(), store=rig.store, figures=Figures(), clock=rig.clock)
    plain = exposition.page(accept="", accept_encoding="", names=()).body
    packed = exposition.page(accept="", accept_encoding="gzip", names=()).body
    assert gzip.decompress(b"".join(packed)).count(b"\n") == b"".join(plain).count(b"\n")
    return b"".join(plain), b"".join(packed)


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("destinations", [1, 3])
def test_the_series_of_a_name_and_their_size(destinations: int, *, looked: bool) -> None:
    plain, packed = page(destinations, looked=looked)
    series = [line for line in plain.splitlines() if b'tag="' in line and not line.startswith(b"#")]
    assert len(series) == TAGS * (2 + (5 if looked else 4) * destinations)
    assert 200 < sum(map(len, series)) / len(series) < 220
    assert len(packed) / len(series) < 25, "of few images, whose headings count"


def test_a_well_image_may_have_no_series() -> None:
    plain, _ = page(3, looked=True, image_series="unfinished")
    assert b'tag="' not in plain
    assert b"ecr_repository_replication_images{" in plain
