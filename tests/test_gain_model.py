"""What the scheduler expects of further exits; `test_gains.py` tests how gains are measured."""

import pytest

from models.gains import Gains, NextGain, Term
from server.scheduling.gains import GainModel

GAINS = Gains(
    (
        NextGain(0.5, 0.1, 0.1),
        NextGain(0.2, 0.1, 0.2, (Term("active_share", mean=0.4, slope=0.5),)),
        NextGain(-0.01, 0.1, 0.1),
        NextGain(0.05, 0.1, 0.1),
    ),
    (),
    1,
    "val",
    "",
    "",
)


def test_measured_gains_add_up_and_follow_what_the_latest_exit_shows() -> None:
    gains = GainModel({"model": GAINS})
    assert gains.ahead("model", 4, 0, {}) == pytest.approx((0.5, 0.7, 0.7, 0.75))
    assert gains.ahead("model", 4, 1, {}) == pytest.approx((0.2, 0.2, 0.25))
    assert gains.ahead("model", 4, 1, {"active_share": 0.6}) == pytest.approx((0.3, 0.3, 0.35))
    assert gains.ahead("model", 4, 4, {}) == ()


def test_gains_that_were_not_measured_fall_from_exit_to_exit() -> None:
    added = GainModel().ahead("model", 4, 1, {})
    assert added == pytest.approx((0.3, 0.39, 0.417))
