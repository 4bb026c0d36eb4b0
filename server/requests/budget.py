"""The budget B(x, t) of a request. Pure: no clock, torch or asyncio.

All times are in seconds; deadlines are absolute, on the monotonic clock.
"""

from dataclasses import dataclass, replace

GRACE_S = 0.004
"""A required exit may be this late and is still sent, since the alternative is a 504."""


@dataclass(frozen=True)
class Budget:
    """What one request may spend. Every source of limits can only lower it, so the smallest limit wins."""

    arrived_s: float
    deadline_s: float
    max_exit: int

    def capped(self, seconds: float | None = None, max_exit: int | None = None) -> "Budget":
        """This budget with at most `seconds` from arrival and no exit beyond `max_exit`; None is no limit."""
        return replace(
            self,
            deadline_s=self.deadline_s if seconds is None else min(self.deadline_s, self.arrived_s + seconds),
            max_exit=self.max_exit if max_exit is None else min(self.max_exit, max_exit),
        )


@dataclass(frozen=True)
class TrafficCap:
    """Limits the exit by the number of open jobs. `levels`: pairs of (open jobs, deepest exit), in any order."""

    levels: tuple[tuple[int, int], ...] = ()

    def deepest(self, open_jobs: int) -> int | None:
        """The deepest exit to begin while `open_jobs` jobs are open; None: any."""
        return min((exit_index for jobs, exit_index in self.levels if open_jobs >= jobs), default=None)
