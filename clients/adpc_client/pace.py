"""The deadline of a frame, and the time of the next try after a lost connection. Pure: callers pass the time."""

import math

from adpc_client.frames import ArrivedFrame

UNKNOWN_S = 1.0
"""The deadline of a frame while nobody knows when the next one will come."""
MARGIN = 1.25
"""A first exit may take this many times as long as the one before it."""
FIRST_EXIT_S = 0.05
"""How long the first exit of the first frame is expected to take."""
LONGEST_S = 10.0
"""A first exit is not expected to take longer than that."""

_ROUNDING = 1e-6
"""A frame counts as on time if it is early by at most this share of a period."""


class FrameDeadline:
    """The deadline of a frame: the moment of the next frame, or of a later one if the first exit needs longer.

    The first exit is expected to take as long as the last time. If none came by the deadline, it is expected to take
    twice as long as that.
    """

    def __init__(self) -> None:
        self._first_exit_s = FIRST_EXIT_S

    def left_s(self, frame: ArrivedFrame, now_s: float) -> float:
        """The seconds from `now_s` to the deadline of `frame`."""
        if frame.period_s is None or frame.period_s <= 0:
            return UNKNOWN_S
        periods = max(1, math.ceil((now_s + self._first_exit_s - frame.came_s) / frame.period_s - _ROUNDING))
        left_s = frame.came_s + periods * frame.period_s - now_s
        return left_s if left_s > _ROUNDING else left_s + frame.period_s

    def first_exit_came(self, took_s: float) -> None:
        """The first exit came `took_s` after the frame was sent."""
        self._first_exit_s = min(MARGIN * took_s, LONGEST_S)

    def no_exit_came(self, deadline_s: float) -> None:
        self._first_exit_s = min(2 * deadline_s, LONGEST_S)


class Backoff:
    """When to try again after a failed connection: at once, then after delays that double."""

    FIRST_S, LONGEST_S = 0.125, 2.0

    def __init__(self) -> None:
        self._delay_s = 0.0
        self._next_s = 0.0

    def over(self, now_s: float) -> bool:
        """Whether the next try is due."""
        return now_s >= self._next_s

    def failed(self, now_s: float) -> None:
        self._delay_s = min(max(2 * self._delay_s, self.FIRST_S), self.LONGEST_S)
        self._next_s = now_s + self._delay_s

    def succeeded(self) -> None:
        self._delay_s = self._next_s = 0.0
