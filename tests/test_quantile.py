"""The running quantile."""

import math
import random

import pytest

from server.scheduling.quantile import Quantile, RecentQuantile


def test_a_quantile_is_exact_at_first() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert Quantile(0.5, values).value == 3.0
    assert Quantile(0.95, values).value == 5.0


def test_a_quantile_then_moves_by_half_a_per_cent_at_most() -> None:
    quantile = Quantile(0.5, [100.0] * Quantile.EXACT)
    quantile.add(1e6)
    assert quantile.value == pytest.approx(100.25)
    quantile.add(0.0)
    assert quantile.value == pytest.approx(100.0, rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_quantile_finds_its_share(share: float) -> None:
    generator = random.Random(0)
    quantile = Quantile(share, [0.1] * Quantile.EXACT)
    for _ in range(4000):
        quantile.add(generator.uniform(0.5, 1.5))
    assert quantile.value == pytest.approx(0.5 + share, rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_chance_does_not_make_a_quantile_fall(share: float) -> None:
    """Runs of values below a high quantile are long although nothing has changed."""
    chance, quantile, below = random.Random(1), Quantile(share), 0
    for number in range(22_000):
        value = chance.lognormvariate(0.0, 0.3)
        below += number >= 2000 and value <= quantile.value
        quantile.add(value)
    assert below / 20_000 == pytest.approx(share, abs=0.01)


def test_a_quantile_falls_once_all_values_of_a_run_lie_below() -> None:
    quantile = Quantile(0.95, [4.0] * Quantile.EXACT)
    for number in range(quantile.run):
        assert quantile.value > 3.5
        quantile.add(2.0 if number else 3.0)
    assert quantile.value == 3.0


def test_a_recent_quantile_is_that_of_the_latest_values() -> None:
    recent, chance = RecentQuantile(0.98), random.Random(0)
    assert recent.value == 0.0
    values = [round(chance.random(), 1) for _ in range(300)]
    for count, value in enumerate(values, 1):
        recent.add(value)
        latest = sorted(values[max(0, count - RecentQuantile.LATEST) : count])
        assert recent.value == latest[math.ceil(0.98 * len(latest)) - 1]
    for _ in range(3):
        recent.add(9.0)
    assert recent.value == 9.0  # two of 128 would not count
    for _ in range(RecentQuantile.LATEST):
        recent.add(0.5)
    assert recent.value == 0.5
