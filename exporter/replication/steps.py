"""Long work in steps: a generator that yields after each slice of the items, and returns its result.

The polling loop does other work between two steps. A caller that cannot wait uses `finished`.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from itertools import islice
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]

#: Items of a slice. At some microseconds for each item, a step takes a few milliseconds.
SLICE = 500


def sliced(items: Collection[T]) -> Iterator[list[T]]:
    """The items in order, at most SLICE at a time."""
    left = iter(items)
    while some := list(islice(left, SLICE)):
        yield some


def finished(steps: Steps[T]) -> T:
    """The result of all remaining steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
