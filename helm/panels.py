"""What a Grafana dashboard is made of: panels of a few kinds, rows of them, and where they go on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

RED, ORANGE, BLUE, GREEN, GREY = "red", "orange", "blue", "green", "text"
STATUS_COLOURS = {"FAILED": RED, "MISSING": ORANGE, "IN_PROGRESS": BLUE, "COMPLETE": GREEN}
REPLICA_COLOURS = {
    "absent": RED,
    "archived": RED,
    "untagged": ORANGE,
    "other_image": ORANGE,
    "present": GREEN,
}


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""
    #: What shows one moment, rather than a line.
    instant: bool = False
    format: str = "time_series"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    kind: str
    queries: Sequence[Query]
    description: str
    width: int = 12
    height: int = 8
    unit: str = "short"
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Any] = ()
    transformations: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


def lines(title: str, *queries: Query, about: str, **more: Any) -> Panel:
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel(title, "timeseries", queries, about, options=options, **more)


def stat(
    title: str, query: Query, about: str, *, steps: Sequence[tuple[float | None, str]], **more: Any
) -> Panel:
    """A figure with the colours of its steps; the last of its line counts."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "none",
        "textMode": "auto",
    }
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}
    defaults = {"thresholds": thresholds, "color": {"mode": "thresholds"}, **more.pop("defaults", {})}
    return Panel(title, "stat", [query], about, options=options, defaults=defaults, height=4, **more)


def table(
    title: str, expr: str, *, about: str, columns: Mapping[str, str], sort: str = "", **more: Any
) -> Panel:
    """A table of labels: label -> heading, in that order. "Value" is the figure."""
    order = {label: position for position, label in enumerate(columns)}
    organize = {
        "id": "organize",
        "options": {
            "indexByName": order,
            "renameByName": dict(columns),
            "includeByName": dict.fromkeys(columns, True),
        },
    }
    options = {"showHeader": True, "cellHeight": "sm"}
    if sort:
        options["sortBy"] = [{"displayName": sort, "desc": True}]
    query = Query(expr, instant=True, format="table")
    return Panel(title, "table", [query], about, options=options, transformations=[organize], **more)


def matrix(
    title: str,
    expr: str,
    *,
    row: str,
    about: str,
    column: str = "status",
    colours: Mapping[str, str] = STATUS_COLOURS,
    **more: Any,
) -> Panel:
    """A row for each value of the label `row`, a column for each value of `column`."""
    pivot = {
        "id": "groupingToMatrix",
        "options": {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "zero"},
    }
    query = Query(expr, instant=True, format="table")
    return Panel(
        title,
        "table",
        [query],
        about,
        transformations=[pivot],
        overrides=[_cell(*each) for each in colours.items()],
        **more,
    )


def _cell(status: str, colour: str) -> Mapping[str, Any]:
    """A column that is coloured from 1 on."""
    steps = [{"value": None, "color": GREY}, {"value": 1, "color": colour}]
    return {
        "matcher": {"id": "byName", "options": status},
        "properties": [
            {"id": "custom.cellOptions", "value": {"type": "color-text"}},
            {"id": "thresholds", "value": {"mode": "absolute", "steps": steps}},
        ],
    }


def line_colour(status: str, colour: str) -> Mapping[str, Any]:
    return {
        "matcher": {"id": "byName", "options": status},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }


def link(column: str, title: str, url: str) -> Mapping[str, Any]:
    """A link in the cells of a column. `${__value.raw}` in the URL is the cell."""
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": "links", "value": [{"title": title, "url": url, "targetBlank": True}]}],
    }


def annotation(name: str, expr: str, text: str, colour: str) -> Mapping[str, Any]:
    """Marks on every graph where the query has an answer."""
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": colour,
        "expr": expr,
        "step": "60s",
        "titleFormat": name,
        "textFormat": text,
    }


def variable(name: str, label: str, metric: str, of: str) -> Mapping[str, Any]:
    """A choice of some values of a label, or all."""
    query = f"label_values({metric}, {of})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> Mapping[str, Any]:
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": dict(panel.custom), **panel.defaults},
            "overrides": list(panel.overrides),
        },
        "options": dict(panel.options),
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "format": query.format,
                "instant": query.instant,
                "range": not query.instant,
            }
            for position, query in enumerate(panel.queries)
        ],
    }
    return made | ({"transformations": list(panel.transformations)} if panel.transformations else {})


def placed(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """All rows and panels from left to right and from top to bottom."""
    made: list[Mapping[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                y, x, height = y + height, 0, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            made.append(_panel(panel, len(made) + 1, place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return made
