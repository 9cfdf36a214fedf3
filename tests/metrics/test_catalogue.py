"""The catalogue and the exposition: object in, text out, as the official parsers read it."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.facts import PUSHED, hand_made, image, repository
from support.fakes import HOME, IRELAND, OREGON, FakeClock

from exporter.metrics.catalogue import CATALOGUE, PREFIX, D, Row, S
from exporter.metrics.exposition import Exposition
from exporter.metrics.reference import markdown
from exporter.metrics.self_metrics import Instruments
from exporter.replication.facts import (
    ImageFacts,
    RegistryFacts,
)
from exporter.replication.model import (
    Destination,
    Name,
    Reason,
    Replication,
    Source,
    Status,
)
from exporter.replication.store import Store

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Figures:
    """A poller that tells what it is told to tell."""

    def overdue(self) -> float:
        return 12.5

    def rates(self) -> Mapping[Source, float]:
        return {HOME: 10.0}

    def queues(self) -> Mapping[Source, bool]:
        return {HOME: True}


def exposition(store: Store) -> Exposition:
    instruments = Instruments()
    instruments.reloaded(success=True, at=PUSHED)
    instruments.reloaded(success=False, at=PUSHED + 99)
    instruments.aws_request("ecr", "DescribeImages", HOME, "success", 0.02)
    instruments.aws_request("ecr", "DescribeImages", HOME, Reason.THROTTLED, 0.2)
    instruments.replicated(HOME, IRELAND, 42.0)
    instruments.state_written(at=PUSHED + 7)
    instruments.web_loaded(True)
    instruments.queue_added(HOME)
    instruments.event_handled(HOME, "PUSH", "used", delay=1.5)
    instruments.event_handled(HOME, "unknown", "invalid", delay=None)
    clock = FakeClock(now=0.0)
    return Exposition(instruments=instruments, store=store, figures=Figures(), clock=clock)


def page(store: Store, accept: str = "", names: Iterable[str] = ()) -> str:
    return exposition(store).page(accept=accept, accept_encoding="", names=tuple(names)).whole().decode()


def parse(text: str) -> dict[str, Metric]:
    """The families of a page in whichever format."""
    found = list(parse_openmetrics(text) if text.endswith("# EOF\n") else parse_text(text))
    families = {family.name: family for family in found}
    assert len(families) == len(found)
    return families


def ours(families: Mapping[str, Metric]) -> dict[str, tuple[str, str, dict[str, float]]]:
    """What can be compared: no process, no versions, no order."""
    return {
        name: (
            family.type,
            family.documentation,
            {f"{s.name}{sorted(s.labels.items())}": s.value for s in family.samples},
        )
        for name, family in families.items()
        if name.startswith("ecr_") and name != PREFIX + "build_info"
    }


def stable(text: str) -> str:
    """The page without what differs from machine to machine."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if "ecr_" in line or line == "# EOF\n")


@pytest.mark.parametrize(("accept", "file"), [("", "exposition.prom"), (OPENMETRICS, "exposition.om")])
def test_the_exposition_is_as_it_was_approved(
    accept: str, file: str, golden: Callable[[str, str], str]
) -> None:
    text = stable(page(hand_made(), accept))
    assert ours(parse(text)) == ours(parse(golden(file, text)))


def test_both_formats_tell_the_same() -> None:
    text, openmetrics = (
        {
            sample: value
            for _, _, samples in ours(parse(page(hand_made(), accept))).values()
            for sample, value in samples.items()
        }
        for accept in ("", OPENMETRICS)
    )
    assert text == openmetrics


def test_an_empty_ledger_tells_nothing_of_images() -> None:
    samples = [s for f in parse(page(Store())).values() for s in f.samples]
    told = {s.name for s in samples if s.name.startswith("ecr_") and not s.name.startswith(PREFIX)}
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in told} == {
        "ecr_image_replication_duration_seconds"
    }


def test_every_series_appears_once() -> None:
    lines = [line.rpartition(" ")[0] for line in page(hand_made()).splitlines() if line[0] != "#"]
    assert len(set(lines)) == len(lines)


# -- the catalogue ---------------------------------------------------------------------------------


def test_the_catalogue_is_what_is_exported_and_nothing_else_is() -> None:
    families = parse(page(hand_made(), OPENMETRICS))
    catalogue = {row.name.removesuffix("_total"): (row.type, row.help) for row in CATALOGUE}
    assert {n: (f.type, f.documentation) for n, f in families.items() if n.startswith("ecr_")} == catalogue
    assert all(name.startswith("process_") for name in families.keys() - catalogue.keys())


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)
def test_every_row_has_samples_with_its_labels(row: Row) -> None:
    samples = parse(page(hand_made(), OPENMETRICS))[row.name.removesuffix("_total")].samples
    assert samples
    assert all(set(sample.labels) - {"le"} == set(row.labels) for sample in samples)


def test_the_documentation_is_the_catalogue() -> None:
    document = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert document.read_text() == markdown(), "run: make docs"


def test_there_are_no_created_series() -> None:
    for accept in ("", OPENMETRICS):
        assert "_created" not in page(hand_made(), accept)


def test_prometheus_finds_nothing_to_say_about_the_page(command: Callable[[str, str], str]) -> None:
    promtool = command("promtool", "prometheus")
    check = subprocess.run(
        [promtool, "check", "metrics"], input=page(hand_made()), capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


# -- whatever AWS says -----------------------------------------------------------------------------

words = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('"\\\n\r\t,{}= #')), max_size=12)


@given(st.lists(words, min_size=6, max_size=6))
def test_hostile_labels_survive_both_parsers(hostile: list[str]) -> None:
    tag, repository_name, status, code, account, region = hostile
    destination = Destination(region, account)
    states = (Replication(destination, status), Replication(OREGON, Status.FAILED, code))
    facts = ImageFacts("sha256:d", (Name(tag, ""),), PUSHED, PUSHED, states, good_until=9e9)
    store = Store()
    store.registries = [
        RegistryFacts(HOME, labels=("*",), repositories={repository_name: repository("*", facts)})
    ]
    store.stale_after = 600.0
    for accept in ("", OPENMETRICS):
        families = parse(page(store, accept))
        ones = [s.labels for s in families["ecr_image_replication_status"].samples if s.value == 1]
        place = {
            "repository": repository_name,
            "tag": tag,
            "digest": "",
            "source_registry_id": HOME.registry_id,
            "source_region": HOME.region,
        }
        there = {"region": region, "registry_id": account}
        assert {**place, **there, "status": status} in ones
        assert len(ones) == 2
        failures = [s.labels for s in families["ecr_image_replication_failure_info"].samples]
        assert code in [f["failure_code"] for f in failures if f["region"] == OREGON.region]


# -- how it is asked for ---------------------------------------------------------------------------


def test_the_format_follows_what_is_accepted() -> None:
    for accept, content_type in [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html", "text/plain"),
        (OPENMETRICS, "application/openmetrics-text"),
        (f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "application/openmetrics-text"),
    ]:
        headers = dict(exposition(Store()).page(accept=accept, accept_encoding="", names=()).headers)
        assert headers["Content-Type"].startswith(content_type)
        assert headers["Vary"] == "Accept, Accept-Encoding"
        assert "Content-Encoding" not in headers


def test_it_is_compressed_for_those_who_accept_that() -> None:
    told = exposition(hand_made())
    plain = told.page(accept="", accept_encoding="identity", names=())
    packed = told.page(accept="", accept_encoding="deflate, gzip;q=0.8", names=())
    assert dict(packed.headers)["Content-Encoding"] == "gzip"
    assert len(packed.whole()) < len(plain.whole()) / 4
    assert ours(parse(gzip.decompress(packed.whole()).decode())) == ours(parse(plain.whole().decode()))


def test_only_the_names_that_were_asked_for_are_told() -> None:
    names = ["ecr_target_images", "ecr_image_info", PREFIX + "aws_requests_total", "nonsense"]
    families = parse(page(hand_made(), names=names))
    assert set(families) == {"ecr_target_images", "ecr_image_info", PREFIX + "aws_requests"}
    assert len(families["ecr_image_info"].samples) == 8


def test_there_is_no_zero_before_all_images_are_known() -> None:
    complete = image("v1", Replication(IRELAND, Status.COMPLETE))
    for unknown in (
        image("v2"),
        image("v2", Replication(IRELAND, "FAILED")).unanswered(),
        replace(image("v2", Replication(OREGON, Status.COMPLETE)), unverified=True),
    ):
        store = hand_made()
        facts = repository("*", complete, unknown)
        store.registries = [RegistryFacts(HOME, labels=("*",), repositories={"app": facts})]
        counted = parse(page(store))["ecr_repository_replication_images"].samples
        assert {(sample.labels["status"], sample.value) for sample in counted} == {("COMPLETE", 1.0)}


def test_nothing_is_told_of_a_state_file_that_is_no_longer_written() -> None:
    instruments = Instruments()
    name = PREFIX + "state_file_last_success_timestamp_seconds"
    instruments.state_written(at=PUSHED)
    assert instruments.registry.get_sample_value(name) == PUSHED
    instruments.state_moved()
    assert instruments.registry.get_sample_value(name) is None
    instruments.state_written(at=PUSHED + 1)
    assert instruments.registry.get_sample_value(name) == PUSHED + 1


def test_a_destination_has_a_histogram_before_its_first_replication() -> None:
    instruments = Instruments()
    name = "ecr_image_replication_duration_seconds_count"
    labels = dict(zip((*S, *D), (*HOME, *IRELAND), strict=True))
    assert instruments.registry.get_sample_value(name, labels) is None
    instruments.replicates(HOME, IRELAND)
    assert instruments.registry.get_sample_value(name, labels) == 0
    instruments.replicated(HOME, IRELAND, 42.0)
    instruments.replicates(HOME, IRELAND)
    assert instruments.registry.get_sample_value(name, labels) == 1
