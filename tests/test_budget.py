import math
import random

import pytest

from server.requests.budget import Budget, Costs, Quantile, TrafficCap

SHAPE = (64, 96)


def test_the_smallest_limit_of_a_budget_wins() -> None:
    budget = Budget(10.0, math.inf, 4).capped(30.0).capped(0.5, 3).capped(None).capped(2.0, 4)
    assert budget == Budget(10.0, 10.5, 3)


def test_traffic_lowers_the_deepest_exit() -> None:
    cap = TrafficCap(((16, 3), (32, 1)))
    assert [cap.deepest(jobs) for jobs in (0, 15, 16, 31, 32, 99)] == [None, None, 3, 3, 1, 1]


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


def test_nothing_known_costs_nothing() -> None:
    assert Costs().typical_s("model", SHAPE, 4) == 0


def test_costs_add_up_and_safe_ones_are_above_typical_ones() -> None:
    costs = Costs()
    for exit_index, stage_s in enumerate((0.01, 0.02, 0.03), 1):
        costs.observe("model", SHAPE, exit_index, stage_s)
    assert costs.typical_s("model", SHAPE, 2) == pytest.approx(0.03)
    assert costs.safe_s("model", SHAPE, 3) == pytest.approx(0.06 * Costs.SLOW_LEAST + Costs.SPARE_S)
    assert costs.typical_s("model", SHAPE, 0) == 0


def test_an_unseen_shape_is_reckoned_from_the_nearest_by_area() -> None:
    costs = Costs()
    costs.observe("model", (64, 64), 1, 0.01)
    costs.observe("model", (640, 640), 1, 0.7)
    assert costs.typical_s("model", (64, 128), 1) == pytest.approx(0.02)
    assert costs.typical_s("model", (640, 320), 1) == pytest.approx(0.35)
    assert costs.typical_s("other", (64, 64), 1) == 0


def test_a_stage_that_was_never_reached_at_a_shape_is_reckoned_too() -> None:
    costs = Costs()
    for exit_index in (1, 2):
        costs.observe("model", (64, 64), exit_index, 0.01)
    costs.observe("model", (128, 64), 1, 0.03)
    assert costs.typical_s("model", (128, 64), 2) == pytest.approx(0.03 + 0.02)


def test_slow_jobs_widen_the_safe_estimate_at_every_shape_of_their_model_alone() -> None:
    costs = Costs()
    for model in ("slowed", "steady"):
        for shape in (SHAPE, (64, 64)):
            costs.observe(model, shape, 1, 0.01)
    costs.judge("slowed", SHAPE, 1, 0.05)  # one is a hiccup
    assert costs.safe_s("slowed", (64, 64), 1) == pytest.approx(0.01 * Costs.SLOW_FIRST + Costs.SPARE_S, rel=0.01)
    for _ in range(400):
        costs.judge("slowed", SHAPE, 1, 0.02)
    assert costs.safe_s("slowed", (64, 64), 1) == pytest.approx(0.02 + Costs.SPARE_S, rel=0.01)
    assert costs.safe_s("steady", (64, 64), 1) == pytest.approx(0.01 * Costs.SLOW_LEAST + Costs.SPARE_S)
    assert costs.typical_s("slowed", SHAPE, 1) == pytest.approx(0.01)


def test_the_safe_estimate_recovers_without_deep_exits_being_run() -> None:
    costs = Costs()
    for exit_index in (1, 2):
        costs.observe("model", SHAPE, exit_index, 0.01)
    for _ in range(100):
        costs.judge("model", SHAPE, 2, 0.04)
    slow_s = costs.safe_s("model", SHAPE, 2)
    for _ in range(4000):
        costs.judge("model", SHAPE, 1, 0.01)
    assert slow_s > 0.03
    assert costs.safe_s("model", SHAPE, 2) == pytest.approx(0.02 * Costs.SLOW_LEAST + Costs.SPARE_S)


def test_a_stage_that_is_cut_at_the_deadline_is_soon_not_begun() -> None:
    costs = Costs()
    for exit_index in (1, 2):
        costs.observe("a", SHAPE, exit_index, 0.01)
    left_s = 0.03  # of the deadline, after exit 1; the second stage takes longer than was known
    for _ in range(5):
        if costs.safe_s("a", SHAPE, 2) - costs.typical_s("a", SHAPE, 1) <= left_s:
            costs.observe_cut("a", SHAPE, 2, left_s)
    assert costs.safe_s("a", SHAPE, 2) - costs.typical_s("a", SHAPE, 1) > left_s


def test_a_stage_that_is_cut_early_or_of_which_nothing_is_known_teaches_nothing() -> None:
    costs = Costs()
    costs.observe_cut("a", SHAPE, 1, 0.5)
    assert costs.typical_s("a", SHAPE, 1) == 0
    costs.observe("a", SHAPE, 1, 0.01)
    costs.observe_cut("a", SHAPE, 1, 0.005)
    assert costs.typical_s("a", SHAPE, 1) == 0.01


def test_a_quantile_forgets_a_slow_time() -> None:
    quantile = Quantile(0.9, [100.0] * Quantile.EXACT)
    for _ in range(Quantile.RUN):
        quantile.add(1.0)
    assert quantile.value == 1.0
