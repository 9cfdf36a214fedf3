"""The status page: a report as HTML. It needs no script, no font and no image."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from exporter.http.advice import Verdict
from exporter.http.filters import Filters
from exporter.http.report import Report
from exporter.replication.model import Status

#: Rows of the page, and the most of it.
ROWS, MOST_ROWS = 100, 500
#: Seconds between two loads of a page that refreshes itself.
REFRESH = 30

_STYLE = files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8").replace("\r\n", "\n")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
)


def age(seconds: float) -> str:
    """A duration with at most two units, and with seconds only below a minute: "3 h 12 min"."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        number, left = divmod(left, length)
        parts.append(f"{number} {unit}" if number else "")
    first = next(position for position, part in enumerate(parts) if part)
    return " ".join(filter(None, parts[first : first + 2]))


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def headline(report: Report) -> str:
    """How many images are not well."""
    summary = report.summary
    if summary.not_well:
        verb = "is" if summary.not_well == 1 else "are"
        return f"{summary.not_well:,} of {_count(summary.images, 'image')} {verb} not well"
    if not summary.images or any(notes(report)):
        return "No problem is known yet"
    if summary.on_the_way:
        verb = "is" if summary.on_the_way == 1 else "are"
        return f"No image has a problem, {summary.on_the_way:,} {verb} on the way"
    return f"All {summary.images:,} images are well" if summary.images > 1 else "The only image is well"


def notes(report: Report) -> Iterator[str]:
    """What limits the headline, in sentences."""
    if failing := sum(target.success is False for target in report.targets):
        yield f"{_count(failing, 'target')} fail{'s' * (failing == 1)}, so images may be absent here."
    if first := sum(target.success is None for target in report.targets):
        yield f"{_count(first, 'target')} {'is' if first == 1 else 'are'} in the first round."
    if report.summary.not_known:
        yield f"The status of {_count(report.summary.not_known, 'image')} is not known."
    if unread := sum(bool(each.remedy) for each in report.destinations):
        yield f"{_count(unread, 'destination')} cannot be looked at, so a lost copy there is not seen."
    if nowhere := len(report.unreplicated):
        yield f"{_count(nowhere, 'repository')} {'is' if nowhere == 1 else 'are'} replicated nowhere."
    if report.summary.skipped:
        yield f"max_images leaves out {_count(report.summary.skipped, 'image')}."


_environment = Environment(
    loader=PackageLoader("exporter.http"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(age=age, iso=_iso)
_template = _environment.get_template("status.html")


def render(
    report: Report,
    *,
    filters: Filters,
    limit: int,
    state: str,
    links: Sequence[tuple[str, str]],
    refreshes: bool,
) -> str:
    """The page. `limit` is that of the report; `links` are other paths, and what is there.

    `state` says how the process is.
    """
    same, other = ("on", "off") if refreshes else ("off", "on")
    return _template.render(
        report=report,
        now=report.timestamp_seconds,
        filters=filters,
        limit=limit,
        statuses=sorted({*Status, *(status for each in report.destinations for status in each.statuses)}),
        verdicts=list(Verdict),
        headline=headline(report),
        notes=list(notes(report)),
        state=state,
        links=links,
        most=min(report.matched, MOST_ROWS),
        all_rows=filters.query(limit=str(MOST_ROWS), refresh=same),
        refresh=REFRESH,
        refreshes=refreshes,
        other_refresh=filters.query(limit=str(limit) if limit != ROWS else "", refresh=other),
        style=_STYLE,
    )
