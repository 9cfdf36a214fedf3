"""The status page as HTML: what it says, what it escapes, and what its style looks like."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
from support.facts import hand_made
from support.fakes import IRELAND, digest_of
from support.status import App, get, store_of

from exporter import __version__
from exporter.http.filters import Filters
from exporter.http.pages import age, headline, notes
from exporter.http.report import Report
from exporter.http.routes import Request, Routes
from exporter.replication.model import Destination, Status
from exporter.replication.store import Store
from exporter.replication.targets import Shard

VOID = {"meta", "link", "input", "br"}


class Document(HTMLParser):
    """The text, links and form of a page. Each element that is opened must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fields: dict[str, str] = {}
        self.refresh: str | None = None
        self.tags: list[str] = []
        #: Whether each entry that can be opened is open.
        self.open: list[bool] = []
        self.text = self.style = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.links += [values[name] for name in ("href", "src", "action") if name in values]
        if tag == "input":
            self.fields[values["name"]] = values["value"]
        if tag == "details":
            self.open.append("open" in values)
        if values.get("http-equiv") == "refresh":
            self.refresh = values["content"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += re.sub(r"\s+", " ", data)


def document(store: Store, target: str = "/", **app: str) -> Document:
    response = get(store, target, **app)
    assert response.status == 200, response.body
    return Document(response.body.decode())


def test_the_page_names_the_failing_image_its_cause_its_age_and_the_command() -> None:
    page = document(store_of("COMPLETE", "FAILED", code="DESTINATION_REGISTRY_ACCESS_DENIED"))
    text = page.text
    at = [
        text.index(part)
        for part in (
            "1 of 2 images is not well",
            "FAILED team/app:v11 to eu-west-1 in 444455556666 for 1 h 1 min",
            "The registry policy of the destination does not allow account 111122223333 to replicate.",
            "What to do: Allow ecr:ReplicateImage",
            "aws ecr describe-image-replication-status --region us-east-1",
            "FAILED first seen1 h 1 min ago 2027-01-15T08:00:05Z",
            "next in 12 s",
        )
    ]
    assert at == sorted(at)
    assert "./runbooks/ECRReplicationFailed.md" in page.links


def test_the_page_needs_no_script_and_nothing_from_elsewhere() -> None:
    response = get(hand_made())
    page = Document(response.body.decode())
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert {link[:2] for link in page.links} <= {"./", "#i", "#d", "#r", "#t", "da"}
    policy = dict(response.headers)["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert "\r" not in page.style
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in response.body.decode()


def test_every_link_of_the_page_leads_somewhere() -> None:
    store = hand_made()
    links = {link for link in document(store).links if link.startswith("./")}
    assert {"./metrics", "./api/v1/status", "./config", "./-/healthy", "./-/ready"} <= links
    for link in links:
        assert get(store, link[1:]).status == 200, link


def test_the_page_says_version_and_state() -> None:
    store = store_of("COMPLETE")
    assert f"Version {__version__}. Ready." in document(store).text
    assert 'Not ready: <b>"&.' in document(store, awaited='<b>"&').text
    assert "Not healthy: no heartbeat." in document(store, unhealthy="no heartbeat", awaited="x").text


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}{%x%}--><style>"


def test_hostile_names_are_text() -> None:
    store = store_of("FAILED", "MISSING", name=f"r{HOSTILE}", tag=f"t{HOSTILE}", code=f"c{HOSTILE}")
    facts = store.registries[0]
    facts.labels = (f"l{HOSTILE}",)
    store.unread = (Destination(f"d{HOSTILE}", "1"),)
    page = document(store, "/?repository=%3Cscript%3E%22")
    assert page.fields["repository"] == '<script>"'
    page = document(store)
    assert "script" not in page.tags
    assert page.tags.count("style") == 1
    for start in "rtcld":
        assert f"{start}{HOSTILE}" in page.text


def test_a_telemetry_path_is_a_link() -> None:
    response = Routes(App(Store()), telemetry_path='/m"><b>{x}').answer(Request("GET", "/"))
    page = Document(response.body.decode())
    assert "./m%22%3E%3Cb%3E%7Bx%7D" in page.links
    assert "b" not in page.tags


def test_a_shard_says_that_there_are_others() -> None:
    sentence = "This is shard 1 of 3"
    app = App(store_of("COMPLETE"), shard=Shard(1, 3))
    assert sentence in Document(Routes(app).answer(Request("GET", "/")).body.decode()).text
    assert sentence not in document(store_of("COMPLETE")).text


# -- searching and refreshing --------------------------------------------------------------------


def test_a_search_keeps_what_was_typed() -> None:
    target = "/?repository=team%2F*&tag=v1&digest=sha256%3Aab&status=FAILED"
    page = document(store_of("FAILED"), target)
    assert page.fields == {"repository": "team/*", "tag": "v1", "digest": "sha256:ab"}
    assert "<option selected>FAILED" in get(store_of("FAILED"), target).body.decode()
    assert "Nothing found" in page.text


def test_a_search_that_finds_nothing_offers_a_wider_one() -> None:
    page = document(store_of("FAILED"), "/?repository=app")
    assert "./?repository=%2Aapp%2A" in page.links
    assert "1 found" in document(store_of("FAILED"), "/?repository=%2Aapp%2A").text


def test_the_page_loads_itself_again_until_that_is_stopped() -> None:
    page = document(store_of("FAILED"), "/?tag=v10")
    assert page.refresh == "30"  # without a URL: the browser loads the same query
    stopped = document(store_of("FAILED"), "/?tag=v10&refresh=off")
    assert stopped.refresh is None
    assert "./?tag=v10&refresh=off" in page.links
    assert "./?tag=v10&refresh=on" in stopped.links
    assert document(store_of("FAILED"), "/?tag=v10&refresh=on").refresh == "30"


def test_the_page_of_an_image_is_open_and_does_not_refresh() -> None:
    store = store_of("FAILED", "FAILED")
    page = document(store)
    asked = {"repository": "team/app", "digest": digest_of("v10")}
    link = f"./?{urlencode(asked)}"
    assert link in page.links
    assert page.open == [True, False]
    alone = document(store, link[1:])
    assert (alone.open, alone.refresh) == ([True], None)
    assert f"{link}&refresh=on" in alone.links
    assert document(store, "/?digest=sha256:&refresh=on").open == [True, True]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            "/?x=1",
            "There is no parameter 'x'; the parameters are repository, tag, digest, status, verdict,",
        ),
        ("/?limit=501", "limit is a number from 1 to 500, not '501'."),
        ("/?limit=0", "limit is a number from 1 to 500, not '0'."),
        ("/?status=nope", "'nope' is not a status"),
        ("/?tag=a&tag=b", "The parameter tag is given more than once."),
        ("/?refresh=5", "refresh is on or off, not '5'."),
    ],
)
def test_a_bad_query_is_refused_with_a_sentence(target: str, sentence: str) -> None:
    response = get(Store(), target)
    assert response.status == 400
    assert sentence in response.body.decode()


def test_a_long_list_is_cut_and_says_so() -> None:
    store = store_of(*["FAILED"] * 501)
    page = document(store, "/?status=FAILED")
    assert page.tags.count("details") == 100
    assert "The first 100 of 501 are shown. Show 500" in page.text
    assert "501 of 501 images are not well" in page.text
    assert "./?status=FAILED&limit=500&refresh=on" in page.links
    page = document(store, "/?status=FAILED&limit=500")
    assert page.tags.count("details") == 500
    assert "The first 500 of 501 are shown. Search for the others." in page.text
    assert "./?status=FAILED&limit=500&refresh=off" in page.links
    page = document(store, "/?status=FAILED&refresh=off")
    assert "./?status=FAILED&limit=500&refresh=off" in page.links


def test_a_list_that_is_a_little_too_long_has_a_link_to_all_of_it() -> None:
    assert "The first 100 of 101 are shown. Show 101" in document(store_of(*["FAILED"] * 101)).text
    assert "are shown" not in document(store_of(*["FAILED"] * 100)).text


def test_commands_that_look_stand_apart_from_those_that_repair() -> None:
    text = document(store_of("FAILED")).text
    parts = ["What to do", "Look changes nothing", "aws ecr", "Repair changes the destination", "crane copy"]
    at = [text.index(part) for part in parts]
    assert at == sorted(at)
    assert "aws ecr describe" not in text[at[3] :]


# -- the headline --------------------------------------------------------------------------------


def report_of(store: Store) -> Report:
    return App(store).report(Filters(), limit=500)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["COMPLETE"], "The only image is well"),
        (["COMPLETE"] * 2, "All 2 images are well"),
        (["COMPLETE", "FAILED"], "1 of 2 images is not well"),
        (["FAILED"] * 1200, "1,200 of 1,200 images are not well"),
        ([], "No problem is known yet"),
    ],
)
def test_the_headline_counts_images(statuses: list[str], expected: str) -> None:
    assert headline(report_of(store_of(*statuses))) == expected


def test_an_image_that_is_on_the_way_is_not_well_yet() -> None:
    report = report_of(store_of("COMPLETE"))
    for number, expected in ((1, "1 is on the way"), (3, "3 are on the way")):
        other = replace(report, summary=replace(report.summary, on_the_way=number))
        assert headline(other) == f"No image has a problem, {expected}"


def test_all_is_well_only_if_all_is_known() -> None:
    store = store_of("COMPLETE")
    report = report_of(store)
    target, *_ = report.targets
    for other in (
        replace(report, targets=[replace(target, success=False)]),
        replace(report, targets=[replace(target, success=None)]),
        replace(report, summary=replace(report.summary, not_known=1)),
        replace(report, summary=replace(report.summary, skipped=2)),
        replace(report, destinations=[replace(report.destinations[0], remedy="x")]),
    ):
        assert headline(other) == "No problem is known yet"
        assert len(list(notes(other))) == 1


def test_notes_are_sentences() -> None:
    store = hand_made()
    store.unread = (Destination("ap-south-1", "1"),)
    assert list(notes(report_of(store))) == [
        "1 target fails, so images may be absent here.",
        "1 target is in the first round.",
        "The status of 1 image is not known.",
        "2 destinations cannot be looked at, so a lost copy there is not seen.",
        "max_images leaves out 7 images.",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
        (86460, "1 d"),
    ],
)
def test_ages_have_two_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


# -- the style -----------------------------------------------------------------------------------

STYLE = (Path(__file__).parents[2] / "exporter/http/templates/style.css").read_text()


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_in_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(dark: bool) -> None:
    light_block, dark_block = STYLE.split("@media (prefers-color-scheme: dark)")
    found = colours(light_block) | (colours(dark_block) if dark else {})
    assert colours(light_block).keys() - {"x"} == found.keys()
    on_paper = [(text, ground) for text in ("ink", "soft", "link", "bad") for ground in ("paper", "panel")]
    on_marks = [("on-mark", mark) for mark in ("bad", "warn", "info", "good")]
    for text, ground in [*on_paper, *on_marks]:
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    assert contrast(found["soft"], found["paper"]) >= 3.0  # the border of a field


def test_no_colour_stands_outside_the_two_schemes() -> None:
    _, rules = STYLE.split("* { box-sizing")
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb", rules)


def test_each_verdict_has_a_label_that_does_not_need_the_colour() -> None:
    statuses = [Status.FAILED, Status.MISSING, "TELEPORTED", Status.IN_PROGRESS]
    text = document(store_of(*statuses)).text
    for label in ("FAILED", "MISSING", "UNKNOWN STATUS", "STUCK"):
        assert f"{label} team/app:v1" in text
    assert IRELAND.region in text
