"""How long a worker may be silent, or load, before it counts as stuck."""

import pytest

from server.engine.messages import Loading
from server.engine.watchdog import TICK_S, Watchdog


def silent_for(dog: Watchdog, seconds: float) -> Watchdog:
    for _ in range(round(seconds / TICK_S)):
        dog.tick()
    return dog


@pytest.mark.parametrize(
    ("seen_s", "step_s", "limit_s"),
    [(0.0, 0.0, 1.5), (0.5, 0.0, 1.5), (1.0, 0.0, 3.0), (1.0, 0.5, 3.0), (1.0, 2.0, 6.0), (0.0, 1.5, 4.5)],
)
def test_the_limit_follows_the_longest_silence_seen_and_the_longest_step_expected(
    seen_s: float, step_s: float, limit_s: float
) -> None:
    dog = Watchdog(load_s=60.0)
    silent_for(dog, 5.0).heard()
    dog.now_ready()  # how long it was silent while it loaded tells nothing about its steps
    for seconds in (seen_s, 0.0):
        silent_for(dog, seconds).heard()
    assert not silent_for(dog, limit_s / 2).overdue(step_s)
    assert silent_for(dog, TICK_S).overdue(step_s)
    assert silent_for(dog, limit_s / 2 - TICK_S).stuck(step_s) is None
    expected = f"has said nothing for {limit_s + TICK_S:.1f} s; the limit is {limit_s:.1f} s"
    assert silent_for(dog, TICK_S).stuck(step_s) == expected


def test_a_long_silence_is_forgotten() -> None:
    """A step that prepared a new size may have taken 18 seconds; a worker that hangs later is found sooner."""
    dog = Watchdog(load_s=60.0)
    dog.now_ready()
    silent_for(dog, 18.0).heard()
    for _ in range(Watchdog.LATEST):
        assert silent_for(dog, Watchdog.LEAST_S + TICK_S).stuck(step_s=0.0) is None
        dog.heard()
    assert silent_for(dog, 5.25).stuck(step_s=0.0) is None
    assert silent_for(dog, TICK_S).stuck(step_s=0.0) is not None


@pytest.mark.parametrize(
    ("patience", "seen_s", "limit_s"), [(1.0, 0.0, 6.0), (1.0, 2.0, 6.0), (1.0, 3.0, 9.0), (2.0, 0.0, 12.0)]
)
def test_a_worker_that_gives_no_sign_of_life_while_it_loads_is_stuck(
    patience: float, seen_s: float, limit_s: float
) -> None:
    dog = Watchdog(load_s=900.0, patience=patience)
    silent_for(dog, seen_s).heard()
    dog.began(Loading("reading m", 100.0))
    assert silent_for(dog, limit_s).stuck(step_s=0.0) is None and not dog.asks
    expected = f"has said nothing for {limit_s + TICK_S:.1f} s while reading m; the limit is {limit_s:.1f} s"
    assert silent_for(dog, TICK_S).stuck(step_s=0.0) == expected


def alive_for(dog: Watchdog, seconds: float) -> Watchdog:
    for _ in range(round(seconds)):
        silent_for(dog, 1.0).heard()
    return dog


def test_a_worker_that_is_alive_but_stays_in_one_part_is_stuck() -> None:
    dog = alive_for(Watchdog(load_s=900.0, patience=2.0), 100)
    dog.began(Loading("warming up m", 30.0))
    assert alive_for(dog, 60).stuck(step_s=0.0) is None
    assert silent_for(dog, TICK_S).stuck(step_s=0.0) == "has been warming up m for 60.2 s; the limit is 60.0 s"


def test_a_worker_that_goes_on_and_on_is_stuck_in_the_end() -> None:
    dog = Watchdog(load_s=90.0)
    for _ in range(3):
        dog.began(Loading("warming up m", 60.0))
        assert alive_for(dog, 30).stuck(step_s=0.0) is None
    expected = "has been loading for 90.2 s; the limit is 90.0 s (--load-timeout-s)"
    assert silent_for(dog, TICK_S).stuck(step_s=0.0) == expected
    dog.heard()
    dog.now_ready()
    assert dog.stuck(step_s=0.0) is None
