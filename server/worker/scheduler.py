"""Which exit of which job runs next. Pure: no clock, torch or asyncio; whoever drives it passes the time in.

Everyone's first exit comes first, then what is required beyond it, then whoever must answer earliest; one step at a
time. No further exit is begun that would not be ready by its deadline at the safe estimate of `Costs`.
"""

from dataclasses import dataclass

from server.engine.messages import Stop
from server.requests.budget import GRACE_S, Costs, Shape, TrafficCap


@dataclass
class Task:
    """A job as the scheduler sees it.

    `steps`: the exit that each step completes, or None. `required`: the first exit worth an answer. `min_exit`: neither
    traffic nor quality ends it before. `usual_s`: when it would usually begin. `used_s`: what it has computed so far;
    all other time since it came, it waited.
    """

    key: int
    model: str
    shape: Shape
    steps: tuple[int | None, ...]
    deadline_s: float
    usual_s: float
    required: int
    max_exit: int
    min_exit: int = 1
    next_step: int = 0
    exit: int = 0
    used_s: float = 0.0
    good_enough: bool = False

    @property
    def order(self) -> tuple[int, float, int]:
        rank = 0 if self.exit == 0 else 1 if self.exit < self.required else 2
        return rank, self.deadline_s, self.key


class Scheduler:
    """The open tasks of one device."""

    FRESH_S = 10.0
    """What is known of a model that has not come to any exit for so long is not taken as a reason to refuse: a slow
    minute would be remembered for ever, if everyone were refused after it."""

    NOISE_S = 0.002
    """Below what `Costs.safe_s` spares."""

    def __init__(self, costs: Costs, cap: TrafficCap | None = None) -> None:
        self.costs = costs
        self._cap = cap or TrafficCap()
        self._tasks: dict[int, Task] = {}
        self._reached_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Task, now_s: float) -> float | None:
        """Take a task. Returns None, or refuses it and returns the seconds that it would have to wait for others: until
        its turn, if it would be late then, or until all have what they require, if it would make one of them late."""
        before, after = self._ready_s(), self._ready_s(task)
        ready_s, alone_s = after.pop(task.key), self.costs.typical_s(task.model, task.shape, task.required)
        if alone_s <= task.deadline_s - now_s < ready_s:
            return ready_s - alone_s
        for key, other in self._tasks.items():
            if (
                key in before
                and before[key] <= other.deadline_s - now_s < self.costs.slowness(other.model) * after[key]
            ):
                return max(before.values())
        self._tasks[task.key] = task
        return None

    def _ready_s(self, *more: Task) -> dict[int, float]:
        """Typical seconds until each task that waits for what it requires has it, in the order of `Task.order`."""
        work = []
        for task in (*self._tasks.values(), *more):
            first_s, all_s = (self.costs.typical_s(task.model, task.shape, index) for index in (1, task.required))
            if task.exit == 0:
                work.append(((0, task.deadline_s, task.key), max(0.0, first_s - task.used_s)))
            if task.exit < task.required and task.required > 1:
                work.append(((1, task.deadline_s, task.key), max(0.0, all_s - max(first_s, task.used_s))))
        ready_s, passed_s = {}, 0.0
        for (_, _, key), seconds in sorted(work):
            passed_s += seconds
            ready_s[key] = passed_s
        return ready_s

    def cancel(self, key: int) -> Task | None:
        return self._tasks.pop(key, None)

    def move(self, key: int, deadline_s: float) -> None:
        """A new deadline; nothing if the task has ended."""
        if key in self._tasks:
            self._tasks[key].deadline_s = deadline_s

    def ended(self, now_s: float) -> list[tuple[Task, Stop]]:
        """Remove and return the tasks for which nothing more is to be done, and why."""
        deepest = self._cap.deepest(len(self._tasks))
        found = [(task, stop) for task in self._tasks.values() if (stop := self._stop(task, now_s, deepest))]
        for task, _ in found:
            del self._tasks[task.key]
        return found

    def next(self) -> Task | None:
        """The task whose next step should run; None if there is none. Call `ended` first."""
        return min(self._tasks.values(), key=lambda task: task.order, default=None)

    def ran(self, task: Task, seconds: float, now_s: float, *, good_enough: bool = False) -> None:
        """The next step of `task` has run. `good_enough`: its new exit meets the quality that was asked for."""
        task.used_s += seconds
        if exit_index := task.steps[task.next_step]:
            task.exit = exit_index
            self._reached_s[task.model] = now_s
        task.next_step += 1
        task.good_enough = good_enough

    def _stop(self, task: Task, now_s: float, deepest: int | None) -> Stop | None:
        if task.next_step == len(task.steps):
            return Stop.COMPLETE
        if task.exit >= task.required:
            if task.exit >= task.max_exit:
                return Stop.MAX_EXIT
            at_exit = task.steps[task.next_step - 1] is not None
            if at_exit and task.exit >= task.min_exit:
                if deepest is not None and task.exit >= deepest:
                    return Stop.MAX_EXIT
                if task.good_enough:
                    return Stop.QUALITY
            return None if self._fits(task, now_s) else Stop.DEADLINE
        if now_s > task.deadline_s + GRACE_S or self._hopeless(task, now_s):
            return Stop.DEADLINE if task.exit else Stop.NO_EXIT
        return None

    def _fits(self, task: Task, now_s: float) -> bool:
        """Whether the next exit will be there in time."""
        safe_s = self.costs.safe_s(task.model, task.shape, task.exit + 1)
        return now_s < task.deadline_s and self._begun_s(task, now_s) + safe_s <= task.deadline_s

    def _hopeless(self, task: Task, now_s: float) -> bool:
        """Whether what is required would usually be late."""
        if now_s - self._reached_s.get(task.model, -self.FRESH_S) >= self.FRESH_S:
            return False
        typical_s = self.costs.typical_s(task.model, task.shape, task.required)
        return self._begun_s(task, now_s) + typical_s > task.deadline_s

    def _begun_s(self, task: Task, now_s: float) -> float:
        """When it would have begun had it never waited since. A little more or less than usual does not count, so that
        on an idle device the exit that is reached hangs on the deadline alone, not on noise. More does: what was usual
        once must not cost an answer that there is time for."""
        begun_s = now_s - task.used_s
        return begun_s if begun_s > task.usual_s + self.NOISE_S else min(task.usual_s, begun_s + self.NOISE_S)
