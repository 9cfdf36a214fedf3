"""The documents as a whole: links that lead somewhere, and names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.command import run

from exporter.metrics.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "docs" / "runbooks", ROOT / "helm" / "ecr-replication-exporter")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))
#: The changelog speaks of names that are gone.
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


#: Names of Prometheus and of VictoriaMetrics.
BORROWED = {
    "body_size_limit",
    "convert_classic_histograms_to_nhcb",
    "max_scrape_size",
    "sample_limit",
    "scrape_duration_seconds",
}


def titled(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_each_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_each_document_is_linked() -> None:
    """From another one, by way of README.md."""
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", prose(page))
        found = {(page.parent / link).resolve() for link in links if not link.startswith("http")}
        todo += [each for each in found - seen if each.suffix == ".md" and each.exists()]
    runbooks = set((ROOT / "docs" / "runbooks").glob("*.md"))
    assert set(PAGES) - seen - runbooks - {FOLDERS[-1] / "README.md"} == set()


def metrics() -> set[str]:
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {row.name + suffix for row in CATALOGUE for suffix in ("", *suffixes.get(row.type, ()))}


@pytest.mark.parametrize("page", PRESENT, ids=titled)
def test_each_metric_exists(page: Path) -> None:
    known = metrics()
    for name in re.findall(r"\becr_\w+", page.read_text()):
        family = any(each.startswith(name) for each in known) if name.endswith("_") else name in known
        assert family, name


@pytest.fixture(scope="module")
def flags() -> set[str]:
    helps = [run(*command, "--help").stdout for command in ((), ("wait",), ("check",))]
    return {flag for text in helps for flag in re.findall(r"--[a-z][a-z.-]+[a-z]", text)}


@pytest.mark.parametrize("page", PRESENT, ids=titled)
def test_each_flag_exists(page: Path, flags: set[str]) -> None:
    ours = r"--(?:config|web|log)\.[a-z.-]+[a-z]|--(?:total-)?shards?\b|--demo\b"
    assert set(re.findall(ours, page.read_text())) <= flags


def test_the_reference_of_the_command_has_each_flag(flags: set[str]) -> None:
    text = (ROOT / "docs" / "command.md").read_text() + (ROOT / "docs" / "pipelines.md").read_text()
    assert {flag for flag in flags if f"`{flag}" not in text and f" {flag}" not in text} == set()


@pytest.fixture(scope="module")
def code() -> set[str]:
    """All words of what documents speak of: code, chart, rules, examples. In lower case."""
    folders = ("exporter", "helm", "examples", "benchmarks", "tests")
    suffixes = {".py", ".yaml", ".yml", ".json", ".tf", ".tpl"}
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    texts = (path.read_text().lower() for path in files if path != Path(__file__))
    return {word for text in texts for word in re.findall(r"\w+", text)}


@pytest.mark.parametrize("page", PRESENT, ids=titled)
def test_each_key_label_and_event_exists(page: Path, code: set[str]) -> None:
    """Words in snake case. Metrics have a test of their own."""
    words = set(re.findall(r"`(?!ecr_)([a-z]+(?:_[a-z]+)+)(?::[^`]*)?`", prose(page)))
    assert words - code <= BORROWED
