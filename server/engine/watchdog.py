"""The watchdog: how long a worker may be silent before it counts as stuck. Pure: its driver calls `tick` regularly."""

from collections import deque
from dataclasses import dataclass, field

from server.engine.messages import Loading

TICK_S = 0.25
"""The worker is asked for a sign of life this often."""
STARTING = Loading("starting", 60.0)
"""The part of the loading until the worker's first message: the interpreter and the libraries start."""


@dataclass
class Watchdog:
    """Watches one worker process, from its start to its end.

    It counts ticks, not seconds: while the front end itself is stopped, for example because the machine sleeps, no time
    passes for it. `load_s`: the longest time that the worker may take until it is ready. `patience`: how many times
    longer than usual a worker that loads may be silent, since the one before it was found stuck.
    """

    LEAST_S = 1.5
    """No worker that is ready counts as stuck after less; a starved machine may take as long to run it at all."""
    LOADING_LEAST_S = 6.0
    """The lowest limit on silence while a worker loads. It gives no sign of life while the system reads a library."""
    FACTOR = 3.0
    """A silence is too long if it exceeds the longest that was seen lately or is expected by this factor."""
    LATEST = 240
    """The silences before so many signs of life count as seen lately: those of a minute at least."""
    OVERDUE = 0.5
    """A sign of life is overdue after this share of the limit on silence."""

    load_s: float
    patience: float = 1.0
    ready: bool = False
    part: Loading = STARTING
    """What the worker does while it loads."""
    _silent: int = field(default=0, init=False)
    _seen: deque[int] = field(default_factory=lambda: deque(maxlen=Watchdog.LATEST), init=False)
    _since_start: int = field(default=0, init=False)
    _since_part: int = field(default=0, init=False)

    def heard(self) -> None:
        """The worker has said something."""
        self._seen.append(self._silent)
        self._silent = 0

    def began(self, part: Loading) -> None:
        """The worker has begun a part of its loading."""
        self.part, self._since_part = part, 0

    def now_ready(self) -> None:
        """The worker is ready. How long it was silent while it loaded tells nothing about its steps."""
        self.ready = True
        self._seen.clear()

    def tick(self) -> None:
        """`TICK_S` have passed."""
        self._silent += 1
        self._since_start += 1
        self._since_part += 1

    @property
    def asks(self) -> bool:
        """Whether it is time to ask for a sign of life. A worker that has not answered yet is not asked again."""
        return self.ready and self._silent == 1

    def overdue(self, step_s: float) -> bool:
        """Whether the worker should have given a sign of life by now, though it may not be stuck. `step_s`: the longest
        time that it is expected to compute without a look at its mailbox; 0 if it looks at it often."""
        return TICK_S * self._silent > self.OVERDUE * self._limit_s(step_s)

    def stuck(self, step_s: float) -> str | None:
        """Why the worker counts as stuck; None if it does not. `step_s`: see `overdue`."""
        silent_s, limit_s = TICK_S * self._silent, self._limit_s(step_s)
        if silent_s > limit_s:
            meanwhile = "" if self.ready else f" while {self.part.doing}"
            return f"has said nothing for {silent_s:.1f} s{meanwhile}; the limit is {limit_s:.1f} s"
        if self.ready:
            return None
        if (part_s := TICK_S * self._since_part) > (limit_s := self.patience * self.part.limit_s):
            return f"has been {self.part.doing} for {part_s:.1f} s; the limit is {limit_s:.1f} s"
        if (load_s := TICK_S * self._since_start) > self.load_s:
            return f"has been loading for {load_s:.1f} s; the limit is {self.load_s:.1f} s (--load-timeout-s)"
        return None

    def _limit_s(self, step_s: float) -> float:
        """The limit on silence."""
        seen_s = TICK_S * max(self._seen, default=0)
        if not self.ready:
            return self.patience * max(self.LOADING_LEAST_S, self.FACTOR * seen_s)
        return max(self.LEAST_S, self.FACTOR * max(seen_s, step_s))
