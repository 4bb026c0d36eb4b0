"""The running quantile."""

import random

import pytest

from server.scheduling.quantile import Quantile


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


def test_a_quantile_falls_once_all_values_of_a_run_lie_below() -> None:
    quantile = Quantile(0.95, [4.0] * Quantile.EXACT)
    for number in range(Quantile.RUN):
        assert quantile.value > 3.9
        quantile.add(2.0 if number else 3.0)
    assert quantile.value == 3.0
