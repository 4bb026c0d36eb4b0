"""Recent seconds: the computing time that each client had or asked for lately. Pure: the caller passes the time in."""

import math


class RecentSeconds:
    """A sum of seconds for each client. Half of it is forgotten every `half_life_s`.

    Instead of shrinking every sum as time passes, later seconds weigh more. Sums are divided by the weight when they
    are read, and once in a while for good; clients with next to nothing left are then forgotten.
    """

    LEAST_S = 0.0005
    """A client with less than this is forgotten."""

    def __init__(self, half_life_s: float) -> None:
        self.mean_age_s = half_life_s / math.log(2)
        """What a client gets in every second settles at this many times as much."""
        self._half_life_s = half_life_s
        self._sums: dict[str, float] = {}
        self._total = 0.0
        self._since_s = 0.0

    def __len__(self) -> int:
        """The number of clients that are remembered."""
        return len(self._sums)

    def add(self, client: str, seconds: float, now_s: float) -> None:
        """`client` has had `seconds` more. To take back what was added, add the negative seconds at the same time."""
        if now_s - self._since_s > self._half_life_s:
            self._forget(now_s)
        before = self._sums.get(client, 0.0)
        after = max(0.0, before + seconds * self._weight(now_s))  # what is taken back may have been forgotten
        self._sums[client] = after
        self._total = max(0.0, self._total + after - before)

    def of(self, client: str, now_s: float) -> float:
        """What is left of the seconds of `client`."""
        return self._sums.get(client, 0.0) / self._weight(now_s)

    def total(self, now_s: float) -> float:
        """What is left of the seconds of all clients."""
        return self._total / self._weight(now_s)

    def _weight(self, now_s: float) -> float:
        return math.exp2(min(1000.0, max(-1000.0, (now_s - self._since_s) / self._half_life_s)))

    def _forget(self, now_s: float) -> None:
        weight = self._weight(now_s)
        left = {client: value / weight for client, value in self._sums.items()}
        self._sums = {client: value for client, value in left.items() if value >= self.LEAST_S}
        self._total = sum(self._sums.values())
        self._since_s = now_s
