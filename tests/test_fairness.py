import pytest

from server.scheduling.fairness import RecentSeconds


def test_half_is_forgotten_every_half_life() -> None:
    recent = RecentSeconds(2.0)
    recent.add("a", 1.0, 100.0)
    recent.add("b", 0.4, 101.0)
    assert (recent.of("a", 102.0), recent.of("b", 103.0)) == pytest.approx((0.5, 0.2))
    assert recent.of("nobody", 102.0) == 0
    assert recent.total(103.0) == pytest.approx(0.2 + 2**-1.5)


def test_what_comes_in_every_second_settles() -> None:
    recent = RecentSeconds(5.0)
    for tenth in range(1000):
        recent.add("a", 0.03, 0.1 * tenth)
    assert recent.of("a", 100.0) == pytest.approx(0.3 * recent.mean_age_s, rel=0.01)


def test_clients_with_next_to_nothing_left_are_forgotten() -> None:
    recent = RecentSeconds(1.0)
    recent.add("once", 0.02, 0.0)
    for second in range(10):
        recent.add("again", 0.02, float(second))
    assert len(recent) == 1
    recent.add("again", 0.02, 1e6)  # far later: no overflow
    assert recent.total(1e6) == recent.of("again", 1e6) == pytest.approx(0.02)


def test_what_is_taken_back_leaves_nothing_and_never_less() -> None:
    recent = RecentSeconds(1.0)
    recent.add("a", 0.3, 0.0)
    recent.add("b", 0.1, 0.7)
    recent.add("a", -0.3, 0.0)
    assert (recent.of("a", 0.9), recent.total(0.9)) == pytest.approx((0.0, recent.of("b", 0.9)))
    recent.add("b", -0.1, 0.9)  # more than is left
    assert (recent.of("b", 0.9), recent.total(0.9)) == (0.0, pytest.approx(0.0))
    assert recent.total(0.9) >= 0
