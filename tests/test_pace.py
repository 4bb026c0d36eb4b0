"""The pace of required work."""

import random

import pytest

from server.scheduling.pace import Pace

TYPICAL_S = 0.01


def paced(ratios: list[float], gap_s: float = 0.01) -> Pace:
    """After stages that came one every `gap_s`, the last one at 0."""
    pace = Pace()
    for number, ratio in enumerate(ratios, 1 - len(ratios)):
        pace.add(TYPICAL_S, ratio * TYPICAL_S, gap_s * number)
    return pace


def test_the_mean_counts_and_not_the_median() -> None:
    """One stage in ten is held up, which a median does not see."""
    assert paced([1.0] * 500).factor(0.0) == pytest.approx(1.0, abs=0.03)
    assert paced(([1.0] * 9 + [3.0]) * 50).factor(0.0) == pytest.approx(1.2, abs=0.05)


def test_sums_stay_below_what_is_sure() -> None:
    chance = random.Random(0)
    ratios = [chance.choice([0.9, 1.0, 1.1, 1.0, 3.0]) for _ in range(40_000)]
    pace = paced(ratios[:500])
    for stages in (1, 4, 16):
        safe_s = stages * pace.factor(0.0) * TYPICAL_S + pace.noise_s(0.0) * stages**0.5
        sums_s = [TYPICAL_S * sum(ratios[first : first + stages]) for first in range(0, 32_000, stages)]
        assert sum(found <= safe_s for found in sums_s) >= 0.97 * len(sums_s)


def test_what_is_faster_makes_nobody_late() -> None:
    assert paced([1.0, 0.2] * 250).noise_s(0.0) < paced([1.0, 1.8] * 250).noise_s(0.0)


def test_a_stall_is_cut_and_forgotten() -> None:
    pace = paced([1.0] * 3000)
    pace.add(TYPICAL_S, 60.0, 0.0)
    assert pace.factor(0.0) < 1.1 and pace.noise_s(0.0) > 2 * Pace().noise_s(0.0)
    soon_s, later_s = 10 * Pace.HALF_LIFE_S, 10 * Pace.EARLIER_HALF_LIFE_S
    assert pace.factor(soon_s) < 1.1 and pace.noise_s(soon_s) < 2 * Pace().noise_s(0.0)
    assert pace.factor(later_s) == pytest.approx(Pace.FIRST, abs=0.01)
    assert pace.noise_s(later_s) == pytest.approx(Pace().noise_s(0.0), rel=0.01)


@pytest.mark.parametrize("stages", [1, 4])
def test_after_a_pause_the_pace_of_earlier_load_counts(stages: int) -> None:
    """Earlier load has a pace of 1.5, and the last seconds before the pause have one of 1.0. After the pause, about 1.5
    is expected. Before any load, 1.3 would be."""
    pace, typical_s = Pace(), stages * TYPICAL_S
    ratios = [1.3, 1.7] * (1000 // stages) + [1.0] * (32 // stages)
    for number, ratio in enumerate(ratios, 1 - len(ratios)):
        pace.add(typical_s, ratio * typical_s, 0.03 * stages * number, stages)
    assert pace.factor(0.0) < 1.25
    later_s = 10 * Pace.HALF_LIFE_S
    assert pace.factor(later_s) == pytest.approx(1.45, abs=0.05)
    upper_s = 0.2 * typical_s / (2 * stages) ** 0.5  # half of the batches exceed the mean, by 0.2 of their typical time
    assert pace.noise_s(later_s) == pytest.approx(Pace.DEVIATIONS * upper_s, rel=0.15)
    pace.add(typical_s, 3.0 * typical_s, later_s, 2 * Pace.EARLIER_STAGES)
    assert pace.factor(2 * later_s) == pytest.approx(3.0, abs=0.2), "a large batch counts as all of earlier load"


def test_at_first_something_is_assumed_and_what_is_unknown_tells_nothing() -> None:
    pace = Pace()
    pace.add(0.0, 1.0, 0.0)
    assert pace.factor(0.0) == pytest.approx(Pace.FIRST)
    assert pace.noise_s(0.0) == pytest.approx(Pace.DEVIATIONS * Pace.FIRST_DEVIATION_S)


def test_few_promises_are_broken_whatever_the_noise_is() -> None:
    """Stages that are correlated and heavy-tailed, and sums that exceed what is left for them only rarely."""
    chance = random.Random(0)
    for tail in (0.2, 1.0):
        pace, level, broken = Pace(), 0.0, 0
        count = 20_000
        for _ in range(count):
            level = 0.99 * level + tail * chance.gauss(0.0, 0.0004)
            needs_s = level + tail * chance.expovariate(1 / 0.0004)
            kept = needs_s <= pace.noise_s(0.0)
            broken += not kept
            pace.promised(kept=kept)
        assert broken / count <= 1.5 * Pace.BROKEN_SHARE


def test_how_much_is_left_has_limits() -> None:
    least, most = Pace.DEVIATIONS_LIMITS
    for kept, count, limit in ((False, 100, most), (True, 100_000, least)):
        pace = Pace()
        for _ in range(count):
            pace.promised(kept=kept)
        assert pace.noise_s(0.0) == pytest.approx(limit * Pace.FIRST_DEVIATION_S)
