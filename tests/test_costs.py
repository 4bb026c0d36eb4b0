"""The cost model, on seconds that are made up."""

import random
import statistics

import pytest

from server.scheduling.costs import CostModel, ShareSlope
from server.scheduling.quantile import Quantile, RecentQuantile

SHAPE = (64, 96)


def observe(costs: CostModel, *stages_s: float, model: str = "model", shape: tuple[int, int] = SHAPE) -> None:
    for exit_index, stage_s in enumerate(stages_s, 1):
        costs.observe(model, shape, exit_index, stage_s)


def noisy(costs: CostModel, count: int, factor: float = 1.0, *, seed: int = 0, exits: tuple[int, ...] = (1, 2)) -> None:
    """`count` stages of 10 ms at the usual pace, five per cent of which are late by 10 ms."""
    chance = random.Random(seed)
    for number in range(count):
        hiccup_s = 0.01 if chance.random() < 0.05 else 0.0
        costs.observe("model", SHAPE, exits[number % len(exits)], factor * 0.01 * chance.gauss(1.0, 0.02) + hiccup_s)


def test_nothing_known_costs_nothing() -> None:
    assert CostModel().typical_s("model", SHAPE, 4) == 0


def test_costs_add_up_and_safe_ones_are_above_typical_ones() -> None:
    costs = CostModel()
    observe(costs, 0.01, 0.02, 0.03)
    assert costs.typical_s("model", SHAPE, 0) == 0
    assert costs.typical_s("model", SHAPE, 2) == pytest.approx(0.03)
    assert costs.typical_s("model", SHAPE, 3, after=1) == pytest.approx(0.05)
    assert costs.usual_s("model", SHAPE, 3, after=1) == pytest.approx((0.0, 0.02, 0.05))
    assert costs.safe_s("model", SHAPE, 3) == pytest.approx(0.06 * CostModel.MARGIN_FIRST + CostModel.SPARE_S)


def test_an_unseen_shape_is_reckoned_from_the_nearest_by_area() -> None:
    costs = CostModel()
    observe(costs, 0.01, shape=(64, 64))
    observe(costs, 0.7, shape=(640, 640))
    assert costs.typical_s("model", (64, 128), 1) == pytest.approx(0.02)
    assert costs.typical_s("model", (640, 320), 1) == pytest.approx(0.35)
    assert costs.typical_s("other", (64, 64), 1) == 0


def test_a_stage_that_was_never_reached_at_a_shape_is_reckoned_too() -> None:
    costs = CostModel()
    observe(costs, 0.01, 0.01, shape=(64, 64))
    observe(costs, 0.03, shape=(128, 64))
    assert costs.typical_s("model", (128, 64), 2) == pytest.approx(0.03 + 0.02)


def test_shapes_that_were_not_seen_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CostModel, "SHAPES", 16)
    costs = CostModel()
    for side in range(CostModel.SHAPES + 1):
        costs.observe("model", (32, 32 + side), 1, 0.01)
        costs.observe("model", (32, 32), 1, 0.01)
    shapes = {cost.shape for cost in costs.snapshot()}
    assert len(shapes) == CostModel.SHAPES and (32, 32) in shapes and (32, 33) not in shapes
    assert {cost.shape for cost in costs.snapshot(2)} == {(32, 32), (32, 32 + CostModel.SHAPES)}


# --- active shares ---


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.2, 2.0])
def test_seconds_follow_the_active_share_as_they_were_seen_to(slope: float) -> None:
    costs, chance, shares = CostModel(), random.Random(0), []
    for _ in range(300):
        shares.append(share := min(1.0, max(0.0, chance.gauss(0.4, 0.15))))
        costs.observe("model", SHAPE, 2, 0.01 * (1 + slope * (share - 0.5)) * chance.gauss(1.0, 0.03), share)
    for share in (0.2, 0.4, 0.6):
        assert costs.stage_s("model", SHAPE, 2, share) == pytest.approx(0.01 * (1 + slope * (share - 0.5)), rel=0.06)
    median = statistics.median(shares[-RecentQuantile.LATEST :])
    assert costs.stage_s("model", SHAPE, 2) == pytest.approx(0.01 * (1 + slope * (median - 0.5)), rel=0.04)


def test_a_slope_that_was_not_seen_is_assumed() -> None:
    costs = CostModel()
    for _ in range(50):
        costs.observe("model", SHAPE, 2, 0.01, 0.4)
    assert costs.stage_s("model", SHAPE, 2, 0.4) == pytest.approx(0.01, rel=1e-3)
    assert costs.stage_s("model", SHAPE, 2, 0.5) == pytest.approx(0.01 / (1 - 0.1 * ShareSlope.PRIOR), rel=1e-2)


def test_a_hiccup_hardly_moves_the_slope() -> None:
    slope = ShareSlope()
    for number in range(100):
        share = 0.3 + 0.2 * (number % 2)
        slope.add(share, slope.factor(share))
    slope.add(0.3, 100.0)
    assert slope.value == pytest.approx(ShareSlope.PRIOR, abs=0.1)


# --- noise, and a device that slows down ---


def test_equal_stages_keep_the_estimate_where_it_is() -> None:
    """Two equal requests with the same deadline get the same exit."""
    costs = CostModel()
    noisy(costs, 200)
    before_s = costs.typical_s("model", SHAPE, 2)
    for seed in range(1, 30):
        noisy(costs, 2, seed=seed)
        assert costs.slow_down == 1
        assert costs.typical_s("model", SHAPE, 2) == pytest.approx(before_s, rel=0.015)


def test_the_safe_estimate_is_rarely_exceeded() -> None:
    costs, chance, late = CostModel(), random.Random(1), 0
    for _ in range(2000):
        stage_s = 0.01 * chance.gauss(1.0, 0.15)
        late += stage_s > costs.safe_s("model", SHAPE, 1) > CostModel.SPARE_S
        costs.observe("model", SHAPE, 1, stage_s)
    assert 0 < late < 0.06 * 2000


def test_a_slow_device_shows_in_every_model_shape_and_exit_at_once() -> None:
    costs = CostModel()
    noisy(costs, 100)
    observe(costs, *[0.03] * 4, model="other", shape=(32, 32))
    noisy(costs, CostModel.RECENT, 3.0, exits=(1,))
    assert costs.slow_down == pytest.approx(3.0, rel=0.1)
    assert costs.typical_s("other", (32, 32), 4) == pytest.approx(0.36, rel=0.1)


def test_a_bad_minute_is_forgotten_within_a_few_stages() -> None:
    costs = CostModel()
    noisy(costs, 100)
    noisy(costs, 3000, 3.0)
    noisy(costs, CostModel.RECENT)
    assert costs.typical_s("model", SHAPE, 2) == pytest.approx(0.02, rel=0.1)
    noisy(costs, 60)
    assert costs.safe_s("model", SHAPE, 2) < 0.04


def test_what_is_learnt_while_the_device_is_slow_is_reckoned_at_its_usual_pace() -> None:
    costs = CostModel()
    noisy(costs, 10)
    noisy(costs, 40, 3.0)
    assert all(cost.half_s < 0.012 for cost in costs.snapshot())


def test_one_hiccup_is_no_slow_device() -> None:
    costs = CostModel()
    noisy(costs, 100)
    observe(costs, 1.0)
    assert costs.slow_down == 1
    assert costs.typical_s("model", SHAPE, 2) == pytest.approx(0.02, rel=0.02)


def test_what_was_expected_is_told() -> None:
    costs = CostModel()
    assert costs.observe("model", SHAPE, 1, 0.01) == 0
    assert costs.observe("model", SHAPE, 1, 0.02) == pytest.approx(0.01)


# --- stages that were cut ---


def test_a_stage_that_is_cut_at_the_deadline_is_soon_not_begun() -> None:
    costs = CostModel()
    observe(costs, 0.01, 0.01)
    left_s = 0.03  # of the deadline, after exit 1; the second stage takes longer than was known
    for _ in range(5):
        if costs.safe_s("model", SHAPE, 2, after=1) <= left_s:
            costs.observe_cut("model", SHAPE, 2, left_s)
    assert costs.safe_s("model", SHAPE, 2, after=1) > left_s


def test_a_stage_that_is_cut_early_or_of_which_nothing_is_known_teaches_nothing() -> None:
    costs = CostModel()
    costs.observe_cut("model", SHAPE, 1, 0.5)
    assert costs.typical_s("model", SHAPE, 1) == 0
    observe(costs, 0.01)
    costs.observe_cut("model", SHAPE, 1, 0.005)
    assert costs.typical_s("model", SHAPE, 1) == pytest.approx(0.01)


def test_a_stage_that_is_cut_does_not_make_the_safe_estimate_smaller() -> None:
    """Nobody knows how long it would have taken."""
    costs, seen = CostModel(), (0.1, 0.14)
    for index in range(200):
        observe(costs, seen[index % 2])
    margin = costs.margin("model")
    for _ in range(3 * Quantile(CostModel.SAFE_SHARE).run):
        costs.observe_cut("model", SHAPE, 1, 1.01 * costs.typical_s("model", SHAPE, 1))
    assert costs.margin("model") == pytest.approx(margin, rel=0.05) and margin > 1.1 * CostModel.MARGIN_LEAST


def test_short_stages_leave_the_safe_estimate_of_long_ones_as_it_is() -> None:
    """A stage that takes less than what is spared in every safe estimate says nothing of how much longer stages take at
    worst."""
    chance, costs, late = random.Random(3), CostModel(), 0
    for _ in range(2 * Quantile(CostModel.SAFE_SHARE).run):
        observe(costs, 0.0006, shape=(32, 32))
    for number in range(3000):
        stage_s = 0.04 * chance.lognormvariate(0.0, 0.3)
        late += number >= 1000 and stage_s > costs.safe_s("model", (640, 640), 1)
        observe(costs, stage_s, shape=(640, 640))
    assert late / 2000 == pytest.approx(1 - CostModel.SAFE_SHARE, abs=0.015)


def test_empty_masks_are_forgotten() -> None:
    """While the lens is covered, nothing stays active."""
    costs = CostModel()
    for _ in range(200):
        costs.observe("model", SHAPE, 2, 0.018, 0.4)
    usual_s = costs.typical_s("model", SHAPE, 2, after=1)
    for _ in range(200):
        costs.observe("model", SHAPE, 2, 0.009, 0.0)
    assert costs.typical_s("model", SHAPE, 2, after=1) < 0.7 * usual_s
    for _ in range(200):
        costs.observe("model", SHAPE, 2, 0.018, 0.4)
    assert costs.typical_s("model", SHAPE, 2, after=1) == pytest.approx(usual_s, rel=0.05)


def test_a_stage_whose_time_is_proportional_to_the_active_share_is_known_at_every_share() -> None:
    chance, costs = random.Random(2), CostModel()
    for _ in range(400):
        share = chance.choice([0.02, 0.1, 0.2, 0.4, 0.6, 0.9])
        costs.observe("model", SHAPE, 2, 0.02 * share * chance.gauss(1, 0.05), share)
    costs.observe("model", SHAPE, 2, 0.0005, 0.0)
    assert 0 < costs.stage_s("model", SHAPE, 2, 0.0) < 0.003
    assert costs.stage_s("model", SHAPE, 2, 0.5) == pytest.approx(0.01, rel=0.2)


# --- a worker that follows another ---


def test_a_snapshot_tells_the_next_one_all_that_is_usual() -> None:
    costs, follower = CostModel(), CostModel()
    for number in range(200):
        share = 0.2 + 0.1 * (number % 5)
        costs.observe("model", SHAPE, 1, 0.02)
        costs.observe("model", SHAPE, 2, 0.01 * (1 + 1.6 * (share - 0.5)), share)
    follower.restore(costs.snapshot())
    assert follower.snapshot() == costs.snapshot()
    for share in (0.2, 0.9):
        assert follower.typical_s("model", SHAPE, 2, 1, share) == pytest.approx(
            costs.typical_s("model", SHAPE, 2, 1, share)
        )
    follower.observe("model", SHAPE, 2, 0.01, 0.5)
    assert follower.snapshot()[1].slope == pytest.approx(costs.snapshot()[1].slope, rel=0.05)
