"""The reserve: what it is learnt from, and how much of a budget it takes."""

import math

import pytest

from server.requests.reserve import AnswerReserve

SEND_S = AnswerReserve.SEND_S


def test_answers_beside_others_do_not_lengthen_the_reserve_of_one_that_is_alone() -> None:
    reserve = AnswerReserve()
    guessed_s = reserve.seconds("image/png", 100, alone=True)
    assert guessed_s == reserve.seconds("image/png", 100, alone=False) == SEND_S + 100 * AnswerReserve.ENCODE_S_PER_PX
    reserve.learn(0.002, "image/png", 100, alone=True)
    assert reserve.seconds("image/png", 100, alone=False) == pytest.approx(SEND_S + 0.002)
    reserve.learn(0.02, "image/png", 100, alone=False)
    assert reserve.seconds("image/png", 100, alone=True) == pytest.approx(SEND_S + 0.002)
    assert reserve.seconds("image/png", 100, alone=False) == pytest.approx(SEND_S + 0.02)


def test_encodings_and_sizes_are_learnt_apart() -> None:
    reserve = AnswerReserve()
    reserve.learn(0.02, "image/png", 100, alone=True)
    assert reserve.seconds("image/png", 127, alone=True) == pytest.approx(SEND_S + 0.02)
    assert reserve.seconds("image/png", 128, alone=True) < SEND_S + 0.02
    assert reserve.seconds("rle", 100, alone=True) < SEND_S + 0.02


def test_at_most_half_of_a_budget_is_kept() -> None:
    assert AnswerReserve.kept_s(0.06, 0.05) == 0.025
    assert AnswerReserve.kept_s(0.06, 0.2) == AnswerReserve.kept_s(0.06, math.inf) == 0.06
