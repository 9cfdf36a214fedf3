"""The status page in a real browser: the demo shows every state, and hostile names do nothing."""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.chromium import Visit, showing, visit
from support.command import Command, ask, eventually, running
from support.facts import hand_made
from support.serving import Echo, port_of, serving
from support.status import App, store_of

from exporter.http.advice import NOT_WELL, Verdict
from exporter.http.routes import Request, Response, Routes

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>'&"

Browse = Callable[..., Visit]


@pytest.fixture
def browse(command: Callable[[str, str], str], tmp_path: Path) -> Browse:
    """Load a page in Chromium."""
    chromium = command("chromium", "chromium")
    return lambda url, *flags: visit(chromium, url, tmp_path / "profile", *flags)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with running(tmp_path_factory.mktemp("demo"), "--demo") as command:
        yield command


def text_of(document: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", document, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_the_demo_shows_every_state_within_thirty_seconds(demo: Command, browse: Browse) -> None:
    wanted = NOT_WELL - {Verdict.UNKNOWN_STATUS}
    eventually(
        lambda: all(f'class="mark {verdict}"' in ask(f"{demo.url}/").body for verdict in wanted), within=30
    )
    seen = browse(f"{demo.url}/")
    assert seen.console == []
    text = text_of(seen.document)
    for part in (
        r"\d+ of \d+ images are not well",
        r"FAILED team/worker:build-\d+",
        r"COPY GONE platform/base:11\.1",
        r"TAG DIFFERS platform/base:11\.[23]",
        r"MISSING platform/base:12\.4",
        r"STUCK team/api@sha256:",
        r"The registry policy of the destination does not allow account \d+ to replicate\.",
        r"aws ecr describe-image-replication-status --region us-east-1",
        r"FAILED first seen \d+ s ago",
        r"next in \d+",
    ):
        assert re.search(part, text), part
    assert "COMPLETE" in text_of(browse(f"{demo.url}/?status=COMPLETE").document)


def test_hostile_names_do_nothing_in_a_browser(browse: Browse) -> None:
    store = store_of("FAILED", "MISSING", name=HOSTILE, tag=HOSTILE, code=HOSTILE)
    with serving(Routes(App(store))) as server:
        seen = browse(f"http://127.0.0.1:{port_of(server)}/")
    assert seen.console == []
    assert "<title>2 of 2 images are not well" in seen.document
    assert "<img" not in seen.document
    assert "<script" not in seen.document
    assert HOSTILE in html.unescape(seen.document)


def test_what_breaks_the_policy_would_be_seen(browse: Browse) -> None:
    """The control: a page with the same headers that has a script and another style."""
    headers = Routes(App(hand_made())).answer(Request("GET", "/")).headers
    page = b"<title>ours</title><style>p{color:red}</style><script>document.title='owned'</script>"
    with serving(Echo(lambda _: Response(200, (page,), headers))) as server:
        seen = browse(f"http://127.0.0.1:{port_of(server)}/")
    assert "<title>ours" in seen.document
    assert len([line for line in seen.console if "Content Security Policy" in line]) == 2


def test_the_page_loads_the_same_query_again(command: Callable[[str, str], str], tmp_path: Path) -> None:
    """With the real headers, but after one second."""
    asked: list[object] = []
    routes = Routes(App(hand_made()))

    def reply(request: Request) -> Response:
        asked.append(request.query)
        answer = routes.answer(replace(request, headers={}))  # not compressed
        return replace(answer, pieces=(answer.body.replace(b'content="30"', b'content="1"'),))

    with serving(Echo(reply)) as server:
        url = f"http://127.0.0.1:{port_of(server)}/?tag=v1&status=COMPLETE"
        with showing(command("chromium", "chromium"), url, tmp_path / "profile"):
            eventually(lambda: len(asked) > 2)
    assert all(query == {"tag": ["v1"], "status": ["COMPLETE"]} for query in asked)


@pytest.mark.parametrize("size", [(1280, 900), (500, 900)], ids=["desk", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(browse: Browse, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    """Four pictures of different sizes or colours. People look at them with their own eyes."""
    picture = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with serving(Routes(App(hand_made()))) as server:
        url = f"http://127.0.0.1:{port_of(server)}/"
        browse(url, f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}", *scheme)
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == size
    assert len(data) > 20_000
