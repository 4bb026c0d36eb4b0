"""The backlog: what one worker still owes, as the front end sees it, and whether one more request fits. Pure: the
caller passes the time in."""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.scheduling.costs import CostModel, Shape

SLICE_S = 0.015
"""The worker looks for more urgent work after this time, so a newcomer waits no longer for what may come after it."""


@dataclass(frozen=True)
class Expected:
    """What is known of a request by its head.

    `shape`: the network input's height and width; a guess until the image is there. `required`: the first exit that is
    worth an answer. `deadline_s`: when that must be on the host. `priority`: 0, 1 or 2. `client`: who asks.
    """

    model: str
    shape: Shape
    required: int
    deadline_s: float
    priority: int = 1
    client: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken: it needs `needs_s` until its required exit and has `left_s`. The same request would
    be taken after `wait_s`, if no others came meanwhile."""

    wait_s: float
    needs_s: float
    left_s: float


@dataclass
class _Owed:
    """An admitted request that has not ended."""

    key: int
    expected: Expected
    exit: int = 0
    used_s: float = 0.0

    @property
    def order(self) -> tuple[float, int]:
        return self.expected.deadline_s, self.key


@dataclass
class Backlog:
    """What one worker still owes: the required exits of the requests that were admitted to it and have not ended.

    The worker computes first exits before further ones and earlier deadlines before later ones (see `Scheduler`), so
    the time until a request has its required exit is the work that comes before it and its own.
    """

    costs: CostModel
    _owed: dict[int, _Owed] = field(default_factory=dict, init=False)
    _since_s: float | None = field(default=None, init=False)

    def add(self, key: int, expected: Expected) -> None:
        """A request was admitted. Its image may still be on the way."""
        self._owed[key] = _Owed(key, expected)

    def update(self, key: int, expected: Expected, now_s: float) -> None:
        """The image is there and tells the true shape, or the deadline has moved. Does nothing if the request has
        ended."""
        if owed := self._owed.get(key):
            owed.expected = expected
            if self._since_s is None:
                self._since_s = now_s

    def reached(self, key: int, exit_index: int, used_s: float, now_s: float) -> None:
        """A request has reached an exit after `used_s` seconds of computation. Does nothing if it has ended."""
        if owed := self._owed.get(key):
            owed.exit, owed.used_s = exit_index, used_s
            self._since_s = now_s

    def remove(self, key: int, now_s: float) -> None:
        """A request has ended, or was given up. Does nothing if it had ended before."""
        if self._owed.pop(key, None):
            self._since_s = now_s if self._owed else None

    def __len__(self) -> int:
        return len(self._owed)

    def ready_s(self, expected: Expected, now_s: float) -> float:
        """Predicted seconds until the request, if it is admitted now, has its required exit."""
        newcomer = _Owed(-1, expected)
        return dict(self._ready(now_s, newcomer)).get(-1, 0.0)

    def refusal(self, expected: Expected, now_s: float) -> Refusal | None:
        """None: take the request. Otherwise it would be late because of others, or would make an admitted one late.

        A worker that owes nothing never refuses: the attempt teaches more than an estimate.
        """
        if not self._owed:
            return None
        before = dict(self._ready(now_s))
        left_s, alone_s = expected.deadline_s - now_s, self._needs_s(_Owed(-1, expected))
        for key, ready_s in self._ready(now_s, _Owed(-1, expected)):
            if key == -1:
                if alone_s <= left_s < ready_s:
                    return Refusal(ready_s - left_s, ready_s, left_s)
            else:
                spare_s = self._owed[key].expected.deadline_s - now_s
                if before[key] <= spare_s < ready_s:
                    return Refusal(max(before.values()), alone_s, left_s)
        return None

    def _ready(self, now_s: float, *more: _Owed) -> Iterable[tuple[int, float]]:
        """The key of each request that lacks its required exit, and the seconds until it has it; in order."""
        first: list[tuple[float, int, float]] = []
        beyond: list[tuple[float, int, float]] = []
        for owed in (*self._owed.values(), *more):
            expected, (deadline_s, key) = owed.expected, owed.order
            if owed.exit == 0:
                insort(first, (deadline_s, key, self._until_s(owed, 1)))
            if owed.exit < expected.required and expected.required > 1:
                needs_s = self._needs_s(owed) - (self._until_s(owed, 1) if owed.exit == 0 else 0.0)
                insort(beyond, (deadline_s, key, needs_s))
        passed_s = 0.0
        for _, key, seconds in first:
            passed_s += seconds
            required = more[0].expected.required if key == -1 else self._owed[key].expected.required
            if required == 1:
                yield key, passed_s
        for _, key, seconds in beyond:
            passed_s += seconds
            yield key, passed_s

    def _needs_s(self, owed: _Owed) -> float:
        return self._until_s(owed, owed.expected.required)

    def _until_s(self, owed: _Owed, exit_index: int) -> float:
        """Safe seconds from the latest exit of a request to `exit_index`."""
        expected = owed.expected
        typical_s = self.costs.typical_s(expected.model, expected.shape, exit_index, owed.exit)
        return self.costs.margin(expected.model) * typical_s
