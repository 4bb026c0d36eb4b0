"""Turns: how connections share the event loop. Each connection has an allowance of steps that are done at once. Steps
beyond it wait here for their turn; all turns together take a fifth of the loop's time."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

RATE, BURST = 400.0, 100.0
"""The steps (requests or frames) that a connection may take in a second, and at once, before it waits for turns."""
ADDRESS_RATE, ADDRESS_BURST = 1000.0, 200.0
"""The same for all connections of an address together."""
LARGE_BYTES = 64 * 1024
"""After this many bytes from one connection, other connections are read before it is read again."""
STEP_BYTES = 256 * 1024
"""This many bytes count as one step."""
TEXT_BYTES = 1024
"""This many bytes of text count as one step, because JSON takes longer to parse."""
FRESH = 20.0
"""A connection that has used fewer steps than this recently is not held back by the allowance of its address."""


class Allowance:
    """A bucket of tokens: `rate` a second, at most `burst`."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._then_s = 0.0

    @property
    def used(self) -> float:
        """The tokens that are missing."""
        return self._burst - self._tokens

    def take(self, now_s: float) -> bool:
        """Take a token. Returns False if there is none."""
        self._fill(now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def spend(self, tokens: float, now_s: float) -> bool:
        """Take several tokens for an expensive step. The balance may fall below zero by up to `burst`. Returns False if
        it is below zero."""
        self._fill(now_s)
        self._tokens = max(-self._burst, self._tokens - tokens)
        return self._tokens >= 0

    def _fill(self, now_s: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now_s - self._then_s) * self._rate)
        self._then_s = now_s


class Turns:
    """The queue of steps that wait for a turn, first come, first served. A step may queue itself again.

    A round of turns ends after `WORK_S` seconds or `STEPS` steps. The tasks that its steps start run in the next
    `ITERATIONS` iterations of the event loop. The pause after a round is `REST_SHARE` times as long as the round and
    these iterations, so that turns take at most 1 / (1 + `REST_SHARE`) of the loop's time.
    """

    WORK_S = 0.002
    STEPS = 2
    REST_SHARE = 4.0
    MIN_REST_S = 0.008
    ITERATIONS = 3

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._resting = False

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, step: Callable[[], None]) -> None:
        """Call `step` when its turn comes."""
        self._waiting.append(step)
        if not self._resting:
            self._rest(self._clock())

    def run(self) -> None:
        """Run one round of turns."""
        began_s = self._clock()
        try:
            for _ in range(min(self.STEPS, len(self._waiting))):
                self._waiting.popleft()()
                if self._clock() >= began_s + self.WORK_S:
                    break
        finally:
            self._resting = bool(self._waiting)
            if self._resting:
                self._iterate(began_s, self.ITERATIONS)

    def _iterate(self, began_s: float, left: int) -> None:
        """Let the event loop run `left` more iterations, with the tasks that the round started, and then pause."""
        if left:
            asyncio.get_running_loop().call_soon(self._iterate, began_s, left - 1)
        else:
            self._rest(began_s)

    def _rest(self, began_s: float) -> None:
        self._resting = True
        rest_s = max(self.MIN_REST_S, self.REST_SHARE * (self._clock() - began_s))
        asyncio.get_running_loop().call_later(rest_s, self.run)
