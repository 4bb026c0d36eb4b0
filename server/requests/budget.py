"""The budget B(x, t) of a request: how long it may take and how deep it may go. Pure: no clock, torch or asyncio.

x is the request, t the moment. `policies.py` holds the sources of limits.
"""

import math
from dataclasses import dataclass

GRACE_S = 0.004
"""A required exit is still sent if it is this late, because the alternative is a 504."""
LONE_GRACE_S = 0.006
"""The same if no other request of the server is open when the deadline comes."""


@dataclass(frozen=True)
class Asked:
    """The request x of the budget B(x, t): the properties that its budget depends on.

    `model`, `exits`: the served model's name and how many exits it has. `client`: who asks. `deadline_s`: seconds from
    the arrival that the client grants; `timeout_s`: those of its header. `max_exit`: the last exit that it wants.
    `pixels`: those of its image, None until it is there. None stands for what the client does not say.
    """

    model: str
    exits: int
    client: str = ""
    deadline_s: float | None = None
    timeout_s: float | None = None
    max_exit: int | None = None
    pixels: int | None = None


@dataclass(frozen=True)
class Traffic:
    """The moment t of the budget B(x, t): the state of the server that a budget depends on.

    `open_requests`: admitted requests that have not ended. `busy`: the share of the latest seconds in which the devices
    computed. `unix_s`: seconds since 1970, for the time of day.
    """

    open_requests: int
    busy: float
    unix_s: float


@dataclass(frozen=True)
class Limit:
    """One limit, and where it comes from: at most `seconds` from the arrival, no exit beyond `max_exit`; None is no
    limit. `why` is for people."""

    name: str
    why: str
    seconds: float | None = None
    max_exit: int | None = None


@dataclass(frozen=True)
class Budget:
    """What one request may spend. The smallest limit wins.

    `of_request`: limits that last as long as the request. `of_moment`: those of the traffic, which hold for now.
    """

    of_request: tuple[Limit, ...]
    of_moment: tuple[Limit, ...] = ()

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.of_request + self.of_moment

    @property
    def seconds(self) -> float:
        """Seconds from the arrival to the deadline; infinite without a limit."""
        return min((limit.seconds for limit in self.limits if limit.seconds is not None), default=math.inf)

    @property
    def max_exit(self) -> int | None:
        """The deepest exit as long as the traffic stays as it is; None: any."""
        return deepest(self.limits)

    @property
    def lasting(self) -> Limit | None:
        """The limit that says the deepest exit whatever the traffic; None: any exit may be computed."""
        capped = [limit for limit in self.of_request if limit.max_exit is not None]
        return min(capped, key=lambda limit: limit.max_exit or 0, default=None)


@dataclass(frozen=True)
class Forecast:
    """What a request would get now. `predicted_s`: seconds from the whole image to the answer, by exit; empty while no
    worker is ready."""

    budget: Budget
    predicted_s: dict[int, float]


def deepest(limits: tuple[Limit, ...]) -> int | None:
    """The deepest exit that all limits allow; None: any."""
    return min((limit.max_exit for limit in limits if limit.max_exit is not None), default=None)
