"""The outcomes of requests, timed by the clock of the load generator."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from adpc_client.load.plan import PlannedRequest
from adpc_client.load.transport import LoadReply


@dataclass(frozen=True)
class Outcome:
    """The outcome of `request`. All times, also those of `reply`, are in seconds from the start of the run.

    `held_s`: how long a frame waited for its camera's earlier one; its deadline went on meanwhile. `lag_s`: how late
    the generator was to send it beyond that. `sent`: False if it was due and not sent: `reply.stop` says why.
    """

    request: PlannedRequest
    reply: LoadReply
    held_s: float = 0.0
    lag_s: float = 0.0
    sent: bool = True

    @property
    def exit(self) -> int:
        """The exit returned, however late; 0 for none."""
        return max((received.exit for received in self.reply.exits), default=0)

    def exit_in_time(self, grace_ms: float) -> int:
        """The exit that had come by the deadline and the grace; 0 for none."""
        until_s = self.request.at_s + (self.request.deadline_ms + grace_ms) / 1000
        return max((received.exit for received in self.reply.exits if received.at_s <= until_s), default=0)

    @property
    def late_ms(self) -> float:
        """From the deadline to the last byte about the request; negative if that came before."""
        return 1000 * (self.reply.ended_s - self.request.at_s) - self.request.deadline_ms

    @property
    def given_up(self) -> bool:
        """Whether the generator gave it up, as planned, before it was answered."""
        return self.request.give_up_s is not None and self.reply.stop in ("cancelled", "hung_up")

    def as_offered(self) -> PlannedRequest:
        """The request as it reached the server: a frame that was held comes later, with less time left."""
        request = self.request
        return replace(request, at_s=request.at_s + self.held_s, deadline_ms=request.deadline_ms - 1000 * self.held_s)


@dataclass(frozen=True)
class LoadMeasurement:
    """Outcomes of a run. `seconds`: from its start to the last answer. `cpu_s`: CPU seconds of the load generator."""

    outcomes: Sequence[Outcome] = field(repr=False)  # asyncio represents what it returns
    seconds: float
    cpu_s: float
