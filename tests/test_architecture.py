"""The house rules that a reader relies on: who may import whom, and how large a room may grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import exporter

#: The floors, from the ground up. A room imports from the floors below its own, and nothing else of ours.
FLOORS = (
    {"model", "log", "letter", "deadline", "orders", "reloads", "garbage", "process"},
    {"words"},
    {"config"},
    {"budget", "errors", "schema"},
    {"answers"},
    {"ecr", "targets", "schedule", "state"},
    {"agenda", "statefile"},
    {"repository"},
    {"watch"},
    {"poller", "metrics"},
    {"instruments"},
    {"exposition"},
    {"desk", "web"},
    {"head"},
    {"server"},
    {"flags"},
    {"main", "demo"},
    {"__main__"},
)
#: Who may know that a package exists.
OWNERS = {
    "boto3": {"ecr", "demo"},
    "botocore": {"ecr", "errors", "demo"},
    "moto": {"demo"},
    "prometheus_client": {"process", "instruments", "exposition"},
    "yaml": {"letter"},
}
LONGEST = 500  # lines of a file

PACKAGE = Path(exporter.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(statement: ast.AST) -> list[str]:
    """The dotted names that a statement imports, if it is an import."""
    match statement:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            return [f"{module}.{alias.name}" for alias in names]
        case _:
            return []


def ours(statements: Iterator[ast.AST]) -> set[str]:
    """The rooms among all that is imported; `exporter.__version__` is none."""
    names = [name.split(".") for statement in statements for name in imported(statement)]
    return {name[1] for name in names if name[0] == "exporter"} - {"__version__"}


@pytest.fixture(params=SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def room(source: Path) -> str:
    """A room is a file, or a folder with all that is in it."""
    return source.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.fixture
def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text())


def test_every_room_is_on_the_map(room: str) -> None:
    assert any(room in floor for floor in FLOORS) or room == "__init__"


def test_a_room_imports_only_from_the_floors_below(room: str, tree: ast.Module) -> None:
    level = next((n for n, floor in enumerate(FLOORS) if room in floor), 0)
    below = {name for floor in FLOORS[:level] for name in floor}
    elsewhere = ours(ast.walk(tree)) - {room} - below
    # main builds the demo's world if it is asked to: the only import that waits.
    assert elsewhere <= ({"demo"} if room == "main" else set())


def test_the_demo_costs_nothing_unless_it_is_asked_for(room: str, tree: ast.Module) -> None:
    """moto is an extra: without it the exporter starts all the same."""
    assert "demo" not in ours(iter(tree.body)) - {room}


def test_a_package_is_imported_by_its_owners_alone(room: str, tree: ast.Module) -> None:
    packages = {name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)}
    assert [package for package in packages & OWNERS.keys() if room not in OWNERS[package]] == []


def test_a_file_is_read_in_one_sitting(source: Path) -> None:
    assert source.read_text().count("\n") <= LONGEST


def test_a_file_says_what_it_is_for(tree: ast.Module) -> None:
    assert ast.get_docstring(tree)
