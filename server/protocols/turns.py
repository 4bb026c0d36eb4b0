"""Turns: how connections share the event loop. Each may do a little at once. The work of those that send more waits
here, and gets a fifth of the loop's time, in fair turns."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

RATE, BURST = 250.0, 100.0
"""The steps (requests or frames) that a connection may take in a second, and at once, before it waits for turns."""
ADDRESS_RATE, ADDRESS_BURST = 1000.0, 500.0
"""The same for all connections of an address together."""
FRESH = 20.0
"""A connection that has used fewer steps of its own lately does not wait because of others of its address."""


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
        self._tokens = min(self._burst, self._tokens + (now_s - self._then_s) * self._rate)
        self._then_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Turns:
    """Those who wait for a turn, first come, first served. A step that is called may put itself in the queue again."""

    WORK_S = 0.002
    """A round of turns ends after this time, or after `STEPS`: what a step starts may take longer than itself."""
    STEPS = 4
    REST_S = 0.008
    """The time between two rounds, which belongs to everybody else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._round: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, step: Callable[[], None]) -> None:
        """Call `step` when its turn comes."""
        self._waiting.append(step)
        if self._round is None:
            self._round = asyncio.get_running_loop().call_later(self.REST_S, self.run)

    def run(self) -> None:
        """One round."""
        until_s = self._clock() + self.WORK_S
        try:
            for _ in range(min(self.STEPS, len(self._waiting))):
                self._waiting.popleft()()
                if self._clock() >= until_s:
                    break
        finally:
            again = bool(self._waiting)
            self._round = asyncio.get_running_loop().call_later(self.REST_S, self.run) if again else None
