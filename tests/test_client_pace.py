"""Deadlines of frames and the waits of a lost connection: both are pure, and told the time."""

import pytest
from adpc_client.frames import ArrivedFrame
from adpc_client.pace import FIRST_EXIT_S, LONGEST_S, UNKNOWN_S, Backoff, FrameDeadline


def frame(period_s: float | None = 0.1, came_s: float = 5.0) -> ArrivedFrame:
    return ArrivedFrame(0, b"", came_s, period_s=period_s)


@pytest.mark.parametrize(
    ("now_s", "left_s"),
    [
        (5.0, 0.1),  # sent as it came: until the next frame
        (5.03, 0.07),  # sent late: what is left of that
        (5.06, 0.14),  # too late for a first exit of 50 ms: until the frame after the next
        (5.35, 0.05),  # taken after several frames: until the next one from now
        (5.4, 0.1),
    ],
)
def test_the_deadline_is_the_next_frame_that_a_first_exit_can_reach(now_s, left_s):
    assert pytest.approx(0.05) == FIRST_EXIT_S
    assert FrameDeadline().left_s(frame(), now_s) == pytest.approx(left_s)


@pytest.mark.parametrize("period_s", [None, 0.0])
def test_without_a_known_pace_there_is_time(period_s):
    assert FrameDeadline().left_s(frame(period_s), 5.0) == UNKNOWN_S


def test_a_slow_first_exit_gets_more_frames_and_a_fast_one_gives_them_back():
    deadline = FrameDeadline()
    deadline.first_exit_came(0.09)  # and a quarter more is allowed for
    assert deadline.left_s(frame(), 5.0) == pytest.approx(0.2)
    deadline.first_exit_came(0.07)
    assert deadline.left_s(frame(), 5.0) == pytest.approx(0.1)


def test_without_any_exit_the_deadline_grows_until_there_is_one():
    deadline, seen = FrameDeadline(), []
    for _ in range(4):
        seen.append(deadline.left_s(frame(), 5.0))
        deadline.no_exit_came(seen[-1])
    assert seen == pytest.approx([0.1, 0.2, 0.4, 0.8])
    deadline.no_exit_came(1e9)
    assert deadline.left_s(frame(), 5.0) == pytest.approx(LONGEST_S)


def test_a_lost_connection_is_tried_again_ever_later():
    backoff, now_s, tries = Backoff(), 0.0, []
    while len(tries) < 7:
        if backoff.over(now_s):
            tries.append(now_s)
            backoff.failed(now_s)
        now_s += 0.125
    assert tries == [0.0, 0.125, 0.375, 0.875, 1.875, 3.875, 5.875]
    backoff.succeeded()
    assert backoff.over(now_s)
    backoff.failed(now_s)
    assert backoff.over(now_s + 0.125)
