"""The pace of required work."""

import math
import random

import pytest

from server.scheduling.pace import Pace


def paced(ratios: list[float], typical_s: float = 0.01) -> Pace:
    pace = Pace()
    for ratio in ratios:
        pace.add(typical_s, ratio * typical_s)
    return pace


def test_the_mean_counts_and_not_the_median() -> None:
    """One stage in ten is held up, which a median does not see."""
    pace = paced([1.0] * 9 + [4.0])
    assert 1.0 < pace.factor < Pace.FIRST + 0.2
    assert paced(([1.0] * 9 + [4.0]) * 100).factor == pytest.approx(1.3, abs=0.15)


def test_sums_stay_below_what_is_sure() -> None:
    chance = random.Random(0)
    draw = lambda: chance.choice([0.9, 1.0, 1.1, 1.0, 3.0])  # noqa: E731
    pace = paced([draw() for _ in range(500)])
    for stages in (1, 4, 16):
        safe_s = stages * pace.factor * 0.01 + pace.noise_s(stages)
        sums_s = [sum(0.01 * draw() for _ in range(stages)) for _ in range(2000)]
        assert sum(found <= safe_s for found in sums_s) >= 0.98 * len(sums_s)
    assert pace.noise_s(16) == pytest.approx(4 * pace.noise_s(1))


def test_a_stall_is_cut_and_forgotten() -> None:
    pace = paced([1.0] * 500)
    before = pace.factor
    pace.add(0.01, 60.0)
    assert pace.factor - before < 0.05
    for _ in range(500):
        pace.add(0.01, 0.01)
    assert pace.factor == pytest.approx(1.0, abs=0.01)
    assert pace.noise_s(1) == pytest.approx(Pace.SURE * Pace.FIRST_DEVIATION_S, rel=0.2)


def test_at_first_something_is_assumed_and_what_is_unknown_tells_nothing() -> None:
    pace = Pace()
    pace.add(0.0, 1.0)
    assert pace.factor == Pace.FIRST
    assert pace.noise_s(9) == pytest.approx(3 * Pace.SURE * Pace.FIRST_DEVIATION_S)
    assert math.isclose(paced([Pace.FIRST] * 50).factor, Pace.FIRST)
