"""The backlog: what one worker still owes, as the front end sees it, and whether one more request fits. Pure: the
caller passes the time in."""

import math
import sys
from bisect import insort
from dataclasses import dataclass

from server.requests.budget import GRACE_S
from server.scheduling.costs import CostModel, Shape
from server.scheduling.fairness import RecentSeconds
from server.scheduling.scheduler import SLICE_S


@dataclass(frozen=True)
class Expected:
    """What is known of a request by its head.

    `shape`: the network input's height and width; a guess until the image is there. `required`: the first exit that is
    worth an answer. `deadline_s`: when that must be on the host. `priority`: 0, 1 or 2. `client`: who asks.
    `prepare_s`: seconds until the image will have been received and decoded.
    """

    model: str
    shape: Shape
    required: int
    deadline_s: float
    priority: int = 1
    client: str = ""
    prepare_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken: its required exit would be there after `needs_s`, and `left_s` are left. It may be
    tried again after `wait_s`."""

    wait_s: float
    needs_s: float
    left_s: float


@dataclass
class _Owed:
    """A request that was admitted and has not ended, or is about to be. `arrived`: its image is with the worker.
    `work`: what it still requires."""

    key: int
    expected: Expected
    exit: int = 0
    arrived: bool = False
    work: tuple["_Work", ...] = ()

    def estimate(self, costs: CostModel) -> None:
        """Estimate the work that is left, in usual seconds: until exit 1, and from there to the required exit."""
        expected, required = self.expected, self.expected.required
        usual_s = costs.usual_s(expected.model, expected.shape, max(required, self.exit), self.exit)
        parts = {}
        if self.exit == 0:
            parts[0] = usual_s[1]
        if self.exit < required and required > 1:
            parts[1] = usual_s[-1] - parts.get(0, 0.0)
        self.work = tuple((rank, expected.deadline_s, self.key, part_s, self) for rank, part_s in parts.items())


_Work = tuple[int, float, int, float, _Owed]
"""Rank, deadline, key, usual seconds, and whose they are. The worker does the smallest first, see `Scheduler`."""
_NEWCOMER = sys.maxsize
"""The key of a request that is not admitted yet: it comes after others of the same deadline."""


class Backlog:
    """What one worker still owes: the required exits of the requests that were admitted to it and have not ended.

    The worker computes first exits before further ones and earlier deadlines before later ones (see `Scheduler`), so
    the time until a request has its required exit is the work that comes before it and its own, all at a safe pace.

    Clients are treated fairly by trunk reservation, as telephone exchanges do it. A client that lately had more than
    its share of what was admitted must leave room: its request has to be ready within a part of the time that it has,
    and the rest is left to those that had less. That part is what the others will not need, by what they asked for
    lately, with two standard deviations as if they asked at random. It is no less than the client's equal share, nor
    than twice the time of the request alone, so that the device is kept busy.
    """

    HALF_LIFE_S = 3.0
    """How fast it is forgotten what a client asked for and what it had."""
    SHARE_NOISE = 1.1
    """A client has more than its share if it had so many times the mean of all clients."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self._owed: dict[int, _Owed] = {}
        self._work: list[_Work] = []  # in order
        self._since_s: float | None = None  # when the worker began what it computes now; None: it waits
        self._had = RecentSeconds(self.HALF_LIFE_S)
        self._asked = RecentSeconds(self.HALF_LIFE_S)
        self._asked_squares = RecentSeconds(self.HALF_LIFE_S)

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, key: int, expected: Expected, now_s: float) -> None:
        """A request was admitted. Its image may still be on the way."""
        owed = self._owed[key] = _Owed(key, expected)
        self._reckon(owed)
        self._had.add(expected.client, self._alone_s(owed), now_s)

    def update(self, key: int, expected: Expected, now_s: float) -> None:
        """The image is with the worker and tells the true shape, or the deadline has moved. Does nothing if the request
        has ended."""
        if owed := self._owed.get(key):
            owed.expected, owed.arrived = expected, True
            self._reckon(owed)
            self._since_s = now_s if self._since_s is None else self._since_s

    def reached(self, key: int, exit_index: int, now_s: float) -> None:
        """A request has reached an exit, at `now_s`. Does nothing if it has ended."""
        if owed := self._owed.get(key):
            owed.exit = exit_index
            self._reckon(owed)
            self._turn(now_s)

    def remove(self, key: int, now_s: float) -> None:
        """A request has ended, or was given up. Does nothing if it had ended before."""
        if owed := self._owed.pop(key, None):
            self._drop(owed)
            self._turn(now_s)

    def ready_s(self, expected: Expected, now_s: float) -> float:
        """Predicted seconds until the request, if it is admitted now, has its required exit."""
        return self._ready(self._newcomer(expected), now_s)[0]

    def refusal(self, expected: Expected, now_s: float) -> Refusal | None:
        """None: take the request. Otherwise it would be late, would make an admitted one late, or would take the room
        of clients that had less. In either case it counts as asked for.

        A worker that owes nothing, or nothing for longer than a slice, never refuses: the attempt costs nobody, and it
        teaches more than an estimate.
        """
        newcomer = self._newcomer(expected)
        alone_s, left_s = self._alone_s(newcomer), expected.deadline_s - now_s
        room_s = self._room_s(expected.client, left_s, alone_s, now_s)
        asked_s = max(0.0, min(alone_s, left_s))
        self._asked.add(expected.client, asked_s, now_s)
        self._asked_squares.add(expected.client, asked_s**2, now_s)
        if all(owed.expected.deadline_s <= now_s + SLICE_S for owed in self._owed.values()):
            return None
        ready_s, late_s = self._ready(newcomer, now_s)
        if ready_s > room_s:
            return Refusal(ready_s - max(alone_s, room_s), ready_s, left_s)
        return None if late_s is None else Refusal(late_s, ready_s, left_s)

    # --- what comes before, and what comes after ---

    def _newcomer(self, expected: Expected) -> _Owed:
        owed = _Owed(_NEWCOMER, expected)
        owed.estimate(self.costs)
        return owed

    def _ready(self, newcomer: _Owed, now_s: float) -> tuple[float, float | None]:
        """Seconds until the newcomer has its required exit; and those until an admitted request has its own, if the
        newcomer would make it late."""
        margins = {model: self.costs.margin(model) for model in {work[-1].expected.model for work in self._work}}
        running = next((work[-1] for work in self._work if work[-1].arrived), None)
        done_s = wait_s = 0.0
        if self._since_s is not None:
            done_s, wait_s = now_s - self._since_s, SLICE_S
        passed_s = ready_s = delay_s = 0.0
        late_s: float | None = None
        for rank, deadline_s, _, usual_s, owed in sorted([*self._work, *newcomer.work]):
            left_s, seconds = deadline_s - now_s, self._safe_s(owed, usual_s)
            if owed is newcomer:
                ready_s = max(passed_s, wait_s, owed.expected.prepare_s) + seconds
                passed_s += seconds
                delay_s += seconds
                continue
            if owed is running:
                seconds = max(0.0, seconds - done_s)
                running, wait_s = None, 0.0
            passed_s += min(seconds, max(0.0, left_s + GRACE_S))
            before_s = passed_s - delay_s
            ends = owed.work[-1][0] == rank
            if (
                delay_s
                and ends
                and late_s is None
                and before_s <= margins[owed.expected.model] * left_s
                and left_s < passed_s + self.costs.SPARE_S
            ):
                late_s = before_s
        return ready_s + self.costs.SPARE_S, late_s

    def _safe_s(self, owed: _Owed, usual_s: float) -> float:
        return self.costs.slow_down * self.costs.margin(owed.expected.model) * usual_s

    def _alone_s(self, owed: _Owed) -> float:
        """Safe seconds of what a request still requires."""
        return self._safe_s(owed, sum(usual_s for *_, usual_s, _ in owed.work)) + self.costs.SPARE_S

    def _room_s(self, client: str, left_s: float, alone_s: float, now_s: float) -> float:
        """The time within which a request of `client` must be ready, of `left_s` until its deadline."""
        clients = max(1, len(self._asked))
        if self._had.of(client, now_s) <= self.SHARE_NOISE * self._had.total(now_s) / clients:
            return left_s
        work_s, squares_s2 = (
            left_s * (asked.total(now_s) - asked.of(client, now_s)) / asked.mean_age_s
            for asked in (self._asked, self._asked_squares)
        )
        others_s = work_s + 2 * math.sqrt(max(0.0, squares_s2))
        return min(left_s, max(left_s - others_s, left_s / clients, 2 * alone_s))

    # --- bookkeeping ---

    def _reckon(self, owed: _Owed) -> None:
        """Estimate anew what a request requires, and put it in its place."""
        self._drop(owed)
        owed.estimate(self.costs)
        for work in owed.work:
            insort(self._work, work)

    def _drop(self, owed: _Owed) -> None:
        self._work = [work for work in self._work if work[-1] is not owed]

    def _turn(self, now_s: float) -> None:
        """The worker turns to its next work."""
        self._since_s = now_s if any(owed.arrived for owed in self._owed.values()) else None
