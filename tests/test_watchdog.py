import pytest

from server.engine.watchdog import TICK_S, Watchdog


def silent_for(dog: Watchdog, ticks: int) -> Watchdog:
    for _ in range(ticks):
        dog.tick()
    return dog


def test_a_worker_that_loads_has_its_own_limit() -> None:
    dog = silent_for(Watchdog(load_s=60.0), 100)
    assert dog.silent_s == 100 * TICK_S
    assert dog.limit_s(step_s=1000.0) == 60.0
    dog.heard()
    dog.ready = True
    assert dog.silent_s == 0.0
    assert dog.limit_s(step_s=0.0) == Watchdog.LEAST_S  # how long it loaded tells nothing about its steps


@pytest.mark.parametrize(
    ("seen_s", "step_s", "limit_s"),
    [(0.0, 0.0, 2.0), (0.5, 0.0, 2.0), (1.0, 0.0, 3.0), (1.0, 0.5, 3.0), (1.0, 2.0, 6.0), (0.0, 1.5, 4.5)],
)
def test_the_limit_follows_the_longest_silence_seen_and_the_longest_step_expected(
    seen_s: float, step_s: float, limit_s: float
) -> None:
    dog = Watchdog(load_s=60.0, ready=True)
    for seconds in (seen_s, 0.0):
        silent_for(dog, round(seconds / TICK_S)).heard()
    assert dog.limit_s(step_s) == limit_s
