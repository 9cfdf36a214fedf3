"""Random shortening of intervals, and delays after failures."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.backoff import Backoff, spread


@given(st.floats(0, 1e9), st.integers())
def test_spread_shortens_by_a_tenth_at_most_and_never_lengthens(interval: float, seed: int) -> None:
    assert 0.9 * interval <= spread(interval, Random(seed)) <= interval


def test_spread_uses_the_whole_tenth() -> None:
    random = Random(0)
    times = [spread(100, random) for _ in range(1000)]
    assert min(times) < 90.5
    assert max(times) > 99.5


@given(st.integers())
def test_back_off_doubles_up_to_its_cap_and_half_of_it_is_chance(seed: int) -> None:
    backoff, random = Backoff(base=1, cap=60), Random(seed)
    for longest in (1, 2, 4, 8, 16, 32, 60, 60):
        assert longest / 2 <= backoff.failed(random) <= longest


def test_back_off_survives_a_long_outage() -> None:
    backoff, random = Backoff(), Random(0)
    assert max(backoff.failed(random) for _ in range(5000)) <= 60
