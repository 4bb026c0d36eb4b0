"""The backlog: what one worker still owes, as the front end sees it, and whether one more request fits. Pure: the
caller passes the time in."""

import math
import sys
from bisect import insort
from dataclasses import dataclass, replace
from typing import NamedTuple

from server.requests.budget import GRACE_S
from server.scheduling.costs import CostModel
from server.scheduling.expected import Expected, Refusal
from server.scheduling.pace import Pace
from server.scheduling.reservation import TrunkReservation
from server.scheduling.scheduler import SLICE_S


class _Work(NamedTuple):
    """A part of the work of a request, for which the worker needs `usual_s` seconds at the usual pace. The worker does
    the parts in the order of these tuples: first exits (rank 0) before further ones (rank 1), see `Scheduler`."""

    rank: int
    deadline_s: float
    key: int
    usual_s: float


class _Owed:
    """A request that was admitted and has not ended, or is about to be.

    `arrived`: its image is with the worker. `work`: what it still requires, `usual_s` seconds at the usual pace from
    its latest exit on. `done_s`: seconds of that which the worker has probably computed. `disturbed`: the worker ran
    other work in between, so it is unknown how long the present stage took. `promised`: it was admitted
    because its required exit was expected in time. `counted_s`: what its admission, at `admitted_s`, counts against its
    client.
    """

    def __init__(self, key: int, expected: Expected, costs: CostModel) -> None:
        self.key = key
        self.expected = expected
        self.model = expected.model
        self.exit = 0
        self.arrived = self.disturbed = self.promised = False
        self.work: tuple[_Work, ...] = ()
        self.usual_s = self.done_s = self.counted_s = self.admitted_s = 0.0
        self.estimate(costs)

    def estimate(self, costs: CostModel) -> None:
        """Estimate the work that is left: until exit 1, and from there to the required exit."""
        expected, required = self.expected, self.expected.required
        ahead_s = costs.usual_s(expected.model, expected.shape, max(required, self.exit), self.exit)
        parts = {}
        if self.exit == 0:
            parts[0] = ahead_s[1]
        if self.exit < required and required > 1:
            parts[1] = ahead_s[-1] - parts.get(0, 0.0)
        self.work = tuple(_Work(rank, expected.deadline_s, self.key, part_s) for rank, part_s in parts.items())
        self.usual_s = sum(parts.values())


@dataclass(frozen=True)
class _Reached:
    """An exit that was reached: what its stage typically takes if it is required, else 0, and what it seems to have
    taken. `disturbed`: see `_Owed`."""

    typical_s: float
    took_s: float
    disturbed: bool


_NEWCOMER = sys.maxsize
"""The key of a request that is not admitted yet: it comes after others of the same deadline."""


class Backlog:
    """What one worker still owes: the required exits of the requests that were admitted to it and have not ended.

    The worker computes first exits before further ones and earlier deadlines before later ones, at least if they would
    be late otherwise (see `Scheduler`). So the time until a request has its required exit is the work that comes before
    it and its own, at the pace that such work has lately (see `Pace`). Meanwhile the images of admitted requests are
    decoded, whatever their deadlines. The time that this costs the worker is added, but no more than the work takes,
    because the worker goes on beside it.

    While demand exceeds capacity, clients that had much must leave room for others, see `TrunkReservation`.
    """

    def __init__(self, costs: CostModel, pace: Pace | None = None, preparing_s: dict[int, float] | None = None) -> None:
        """`pace`: the pace of all workers on devices of the same name.

        `preparing_s`: by key, `Expected.delays_s` of the admitted requests whose images are not decoded yet. All
        backlogs of a server write to the same one, because the images of all requests are decoded on the same cores.
        """
        self.costs = costs
        self._pace = pace or Pace()
        self._preparing_s = {} if preparing_s is None else preparing_s
        self._owed: dict[int, _Owed] = {}
        self._work: list[_Work] = []  # in order
        self._batch: list[_Reached] = []  # of the exits of one step, those that were told
        self._counted_until_s = 0.0
        self._reservation = TrunkReservation()

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, key: int, expected: Expected, now_s: float) -> None:
        """A request was admitted. Its image may still be on the way."""
        owed = self._owed[key] = _Owed(key, expected, self.costs)
        self._preparing_s[key] = expected.delays_s
        self._reestimate(owed)
        owed.promised = self._alone_s(owed) <= expected.deadline_s - now_s
        owed.admitted_s = now_s
        owed.counted_s = self._reservation.admitted(expected.client, self._alone_s(owed), now_s)

    def update(self, key: int, expected: Expected, now_s: float) -> None:
        """The image is with the worker and tells the true shape. Does nothing if the request has ended."""
        if owed := self._owed.get(key):
            before = self._count_done(now_s)
            owed.expected, owed.arrived = expected, True
            self._preparing_s.pop(key, None)
            self._reestimate(owed)
            if self._running() is not before:
                owed.disturbed = True
                if before:
                    before.disturbed = True

    def move_deadline(self, key: int, deadline_s: float, now_s: float) -> None:
        """The required exit is due sooner or later than it was. Does nothing if the request has ended."""
        if owed := self._owed.get(key):
            self._count_done(now_s)
            owed.promised = owed.promised and deadline_s >= owed.expected.deadline_s  # nothing sooner was promised
            owed.expected = replace(owed.expected, deadline_s=deadline_s)
            self._reestimate(owed)

    def reached(self, key: int, exit_index: int, now_s: float, batch_left: int = 0) -> None:
        """A request has reached an exit, at `now_s`. `batch_left`: how many jobs of its batch have not told theirs
        yet."""
        if owed := self._owed.get(key):
            running = self._count_done(now_s)
            if running and running is not owed:  # under a light load, further exits may come before first ones
                running.done_s, running.disturbed, owed.disturbed = 0.0, True, True
            required_s, owed.exit = owed.usual_s, exit_index
            self._reestimate(owed)
            typical_s = self._loaded_slow_down * (required_s - owed.usual_s)
            self._batch.append(_Reached(typical_s, owed.done_s, owed.disturbed))
            owed.done_s, owed.disturbed = 0.0, False
            if owed.promised and not owed.work:
                owed.promised = False
                self._pace.promised(kept=now_s <= owed.expected.deadline_s)
        if not batch_left:
            self._learn_pace(now_s)

    def remove(self, key: int, now_s: float) -> None:
        """A request has ended, or was given up. Does nothing if it had ended before."""
        if owed := self._owed.get(key):
            self._count_done(now_s)
            left_s = owed.expected.deadline_s - now_s
            if owed.promised and owed.arrived and max(0.0, self._own_s(owed) - owed.done_s) > left_s:
                self._pace.promised(kept=False)
            self._drop(owed)
            self._preparing_s.pop(key, None)
            del self._owed[key]

    def withdraw(self, key: int, now_s: float) -> None:
        """A request gives up its place before its job has begun: its admission does not count against its client."""
        if owed := self._owed.get(key):
            self._reservation.withdrawn(owed.expected.client, owed.counted_s, owed.admitted_s)
            self.remove(key, now_s)

    def ready_s(self, expected: Expected, now_s: float) -> float:
        """Predicted seconds until the request, if it is admitted now, has its required exit."""
        return self._ready(_Owed(_NEWCOMER, expected, self.costs), now_s)[0]

    def ask(self, expected: Expected, now_s: float, workers: int = 1) -> None:
        """Count a request as asked for, if it is not hopeless even alone. The caller does so once for each request, as
        soon as it was refused or its image is there: a head whose image never comes asks for nothing.

        `workers`: how many workers are asked. Each of them counts an equal part, since one will compute the request.
        """
        newcomer = _Owed(_NEWCOMER, expected, self.costs)
        if self._alone_s(newcomer) <= expected.deadline_s - now_s:
            self._reservation.asked(expected.client, self._own_s(newcomer) / workers, now_s)

    def refusal(self, expected: Expected, now_s: float) -> Refusal | None:
        """None: take the request. Otherwise it would be late, would make an admitted one late, or would take the room
        of clients that had less.

        An idle worker never refuses: the attempt delays no other, and it teaches more than an estimate. Nor does a
        worker that owes no required exit, unless the request would be late even alone. Requests that end within a slice
        do not count.
        """
        newcomer, left_s = _Owed(_NEWCOMER, expected, self.costs), expected.deadline_s - now_s
        alone_s = self._alone_s(newcomer)
        room = self._reservation.room(expected.client, alone_s, left_s, now_s) if alone_s <= left_s else 1.0
        others = [owed for owed in self._owed.values() if owed.expected.deadline_s > now_s + SLICE_S]
        if not others or (self._own_s(newcomer) <= left_s and not any(owed.work for owed in others)):
            return None
        ready_s, late_s = self._ready(newcomer, now_s, room)
        if alone_s > left_s:
            return Refusal(max(owed.expected.deadline_s for owed in others) - now_s, ready_s, left_s)
        if ready_s > room * left_s:
            return Refusal(ready_s - room * left_s, ready_s, left_s)
        return None if late_s is None else Refusal(late_s, ready_s, left_s)

    def lost(self) -> None:
        """The worker has ended. The promises that it breaks by this teach the pace nothing."""
        for owed in self._owed.values():
            owed.promised = False
        self._pace.forgive()

    # --- what comes before, and what comes after ---

    def _ready(self, newcomer: _Owed, now_s: float, room: float = 1.0) -> tuple[float, float | None]:
        """Seconds until the newcomer has its required exit. If it would delay an admitted one beyond the part `room` of
        its time, also the seconds until that one has its own; else None."""
        running = self._count_done(now_s)
        wait_s = SLICE_S if any(owed.arrived for owed in self._owed.values()) else 0.0
        slow_down, noise_s = self.costs.slow_down, self._pace.noise_s(now_s)
        factor = (self._loaded_slow_down if self._work else slow_down) * self._pace.factor(now_s)
        images_s = sum(self._preparing_s.values())
        passed_s = ready_s = delay_s = 0.0
        late_s: float | None = None
        in_order = self._work.copy()
        for work in newcomer.work:
            insort(in_order, work)
        for stages, work in enumerate(in_order, 1):
            owed = self._owed.get(work.key, newcomer)
            seconds = factor * work.usual_s
            if owed is newcomer:
                ready_s = max(passed_s, wait_s, owed.expected.prepare_s) + seconds
                ready_s += min(images_s, passed_s + seconds) + noise_s * math.sqrt(stages)
                passed_s += seconds
                delay_s += seconds
                continue
            if owed.done_s and work is owed.work[0]:
                seconds = seconds - owed.done_s if seconds > owed.done_s else 0.0
            if owed is running:
                wait_s = 0.0
            left_s = work.deadline_s - now_s
            until_s = left_s + GRACE_S
            if until_s > 0:
                passed_s += seconds if seconds < until_s else until_s
            if delay_s and late_s is None and work is owed.work[-1]:
                hopeless = slow_down * owed.usual_s - owed.done_s > left_s  # no room would help it
                ends_s = passed_s + min(images_s, passed_s) + noise_s * math.sqrt(stages)
                if ends_s > room * left_s and not hopeless:
                    late_s = passed_s - delay_s
        return ready_s, late_s

    @property
    def _loaded_slow_down(self) -> float:
        """The slow-down that is expected while other required work waits: at least 1. The cost model may have measured
        a smaller one while the worker had the cores to itself."""
        return max(1.0, self.costs.slow_down)

    def _own_s(self, owed: _Owed) -> float:
        """Typical seconds of what a request still requires."""
        return self.costs.slow_down * owed.usual_s

    def _alone_s(self, owed: _Owed) -> float:
        """Safe seconds of what a request still requires."""
        return self.costs.margin(owed.model) * self._own_s(owed) + self.costs.SPARE_S

    # --- bookkeeping ---

    def _reestimate(self, owed: _Owed) -> None:
        """Estimate again what a request still requires, and insert that into the ordered work of the worker."""
        self._drop(owed)
        owed.estimate(self.costs)
        for work in owed.work:
            insort(self._work, work)

    def _drop(self, owed: _Owed) -> None:
        self._work = [work for work in self._work if work.key != owed.key]

    def _running(self) -> _Owed | None:
        """The request on whose required exit the worker presumably computes: of those whose images it has, the most
        urgent one."""
        return next((owed for work in self._work if (owed := self._owed[work.key]).arrived), None)

    def _learn_pace(self, now_s: float) -> None:
        """Learn from the exits of one batch. Their times are added up, because the first exit seems to have taken the
        time of the whole batch, and the others seem to have taken none."""
        batch, self._batch = self._batch, []
        # The time of a request that had the worker to itself says nothing about the pace under load.
        if (self._work or len(batch) > 1 or self._reservation.scarcity(now_s)) and not any(
            each.disturbed for each in batch
        ):
            typical_s, took_s = sum(each.typical_s for each in batch), sum(each.took_s for each in batch)
            self._pace.add(typical_s, took_s, now_s, len(batch))

    def _count_done(self, now_s: float) -> _Owed | None:
        """Count what the worker has computed meanwhile, and return for whom."""
        running = self._running()
        if running:
            running.done_s += max(0.0, now_s - self._counted_until_s)
        self._counted_until_s = max(self._counted_until_s, now_s)
        return running
