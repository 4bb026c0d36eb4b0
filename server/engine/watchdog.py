"""The watchdog: how long a worker may be silent before it counts as stuck. Pure: its driver calls `tick` regularly."""

from dataclasses import dataclass, field

TICK_S = 0.25
"""The worker is asked for a sign of life this often."""


@dataclass
class Watchdog:
    """Watches one worker process, from its start to its end.

    It counts ticks, not seconds: while the front end itself is stopped, for example because the machine sleeps, no time
    passes for it. `load_s`: the longest time that the worker may take until it is ready.
    """

    LEAST_S = 2.0
    """No worker that is ready counts as stuck after less; a starved machine may take as long to run it at all."""
    FACTOR = 3.0
    """A silence is too long if it exceeds the longest that was seen or is expected by this factor."""

    load_s: float
    ready: bool = False
    _silent: int = field(default=0, init=False)
    _longest: int = field(default=0, init=False)

    def heard(self) -> None:
        """The worker has said something."""
        if self.ready:
            self._longest = max(self._longest, self._silent)
        self._silent = 0

    def tick(self) -> None:
        """`TICK_S` have passed."""
        self._silent += 1

    @property
    def asks(self) -> bool:
        """Whether it is time to ask for a sign of life. A worker that has not answered yet is not asked again."""
        return self.ready and self._silent == 1

    @property
    def silent_s(self) -> float:
        """Seconds since the worker was heard."""
        return TICK_S * self._silent

    def limit_s(self, step_s: float) -> float:
        """The longest silence that is in order. `step_s`: the longest time that the worker is expected to compute
        without a look at its mailbox; 0 if it looks at it often."""
        if not self.ready:
            return self.load_s
        return max(self.LEAST_S, self.FACTOR * max(TICK_S * self._longest, step_s))
