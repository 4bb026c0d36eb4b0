"""Trunk reservation: the room that a client must leave for others while a worker has too much to do. Pure: the caller
passes the time in."""

import math

from server.scheduling.fairness import RecentSeconds


class TrunkReservation:
    """Treats clients fairly by trunk reservation, as telephone exchanges do.

    While demand exceeds capacity (`LOADS`), a client that lately had more than an equal share of what was admitted is
    admitted only if its request, and those that it delays, would be ready within an equal part of the time until their
    deadlines. The other clients use the rest. Three exceptions: what was admitted below capacity does not count; the
    part is at least `KEEP_BUSY` times the time of the request alone, so that the device does not idle; and the rule
    sets in gradually, with the load between the two `LOADS` and with the client's surplus, up to one standard deviation
    of what comes by chance.
    """

    HAD_HALF_LIFE_S = 10.0
    """Half-life, in seconds, of an admitted request in what its client had."""
    ASKED_HALF_LIFE_S = 0.5
    """Half-life, in seconds, of a request in the demand of its client."""
    LOADS = 0.9, 1.1
    """Demand divided by capacity: the seconds of computation that clients ask for in a second. Up to the first value,
    no client must leave room for others. From the second value on, the rule above applies in full."""
    KEEP_BUSY = 1.25
    """A client is always left this many times the time that its request takes alone. With less, only a worker without
    other work could take the request, and the device would idle between two requests."""

    def __init__(self) -> None:
        self._had = RecentSeconds(self.HAD_HALF_LIFE_S)
        self._asked = RecentSeconds(self.ASKED_HALF_LIFE_S)

    def asked(self, client: str, seconds: float, now_s: float) -> None:
        """`client` has asked this worker for `seconds` of computation."""
        self._asked.add(client, seconds, now_s)

    def admitted(self, client: str, seconds: float, now_s: float) -> float:
        """A request of `client` that takes `seconds` alone was admitted. It counts as far as demand exceeds capacity.
        Returns the seconds that count."""
        counted_s = seconds * self.scarcity(now_s)
        self._had.add(client, counted_s, now_s)
        return counted_s

    def withdrawn(self, client: str, counted_s: float, admitted_s: float) -> None:
        """A request that was admitted at `admitted_s` gives up its place. `counted_s`: what `admitted` returned."""
        self._had.add(client, -counted_s, admitted_s)  # then, so that both are forgotten alike

    def room(self, client: str, alone_s: float, left_s: float, now_s: float) -> float:
        """The part of the `left_s` until its deadline within which a request of `client` must be ready. Alone it takes
        `alone_s`, which is no more than `left_s`."""
        clients = max(1, len(self._asked))
        fair_s = self._had.total(now_s) / clients
        if fair_s < 1e-9:  # nothing, or what rounding leaves of what was withdrawn
            return 1.0
        surplus = (self._had.of(client, now_s) - fair_s) / math.sqrt(fair_s * alone_s)
        strictness = min(1.0, max(0.0, surplus)) * self.scarcity(now_s)
        return 1 - strictness * max(0.0, 1 - max(1 / clients, self.KEEP_BUSY * alone_s / left_s))

    def scarcity(self, now_s: float) -> float:
        """0 while the worker can do all that clients ask for, 1 while it surely cannot."""
        free, full = self.LOADS
        load = self._asked.total(now_s) / self._asked.mean_age_s
        return min(1.0, max(0.0, (load - free) / (full - free)))
