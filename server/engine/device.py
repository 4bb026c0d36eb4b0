"""A device that computes, as the front end sees it: its worker, what the worker owes, and what exits cost there."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.executors.registry import EXECUTORS, PREPARED_SIZES, REFERENCE
from server.catalog import Catalog
from server.engine.messages import Chosen, ModelFacts, Ready
from server.metrics import Metrics
from server.scheduling.backlog import Backlog
from server.scheduling.costs import CostModel, Shape
from server.scheduling.expected import Expected
from server.scheduling.fairness import RecentSeconds
from server.scheduling.pace import Pace

logger = logging.getLogger("anytime.device")

BUSY_HALF_LIFE_S = 2.0
"""Half-life, in seconds, of past computation in how busy the device is."""

PREPARE_S = 20.0
"""An executor may take this long to prepare for a size, see `ExecutorKind.prepares`."""


@dataclass(frozen=True)
class LearntCost:
    """What the exits of a model cost on a device at one shape: cumulative seconds, typical ones and safe ones."""

    device: str
    shape: Shape
    typical_s: tuple[float, ...]
    safe_s: tuple[float, ...]


class Device:
    """One of the devices that the settings name.

    `name`: as the settings name it. `label`: as metrics and readiness name it; a device that is named several times has
    a numbered label for each of its workers. `costs`, `pace`: learnt from the exits of all workers on devices of that
    name, as long as none of these devices breaks. `preparing_s`: see `Backlog`.
    """

    def __init__(
        self,
        name: str,
        label: str,
        costs: CostModel,
        catalog: Catalog,
        metrics: Metrics,
        *,
        pace: Pace | None = None,
        preparing_s: dict[int, float] | None = None,
    ) -> None:
        self.name = name
        self.label = label
        self._pace = pace or Pace()
        self._preparing_s = {} if preparing_s is None else preparing_s
        self.ready: Ready | None = None
        """The worker's readiness; None while there is no worker that can serve."""
        self.facts: dict[str, ModelFacts] = {}
        """The facts about each model, from the latest worker that was ready; the next worker need not find them out."""
        self.costs = costs
        self.backlog = Backlog(self.costs, self._pace, self._preparing_s)
        """What the worker owes; another object for each worker."""
        self._catalog = catalog
        self._metrics = metrics
        self._computed = RecentSeconds(BUSY_HALF_LIFE_S)
        self._latest: dict[str, list[Shape]] = {}
        """Of each model the `PREPARED_SIZES` shapes whose exits the worker reached last, the latest at the end."""
        self._numbered = label != name
        metrics.worker_up.labels(label).set(0)

    def now_ready(self, ready: Ready) -> None:
        """The worker can serve."""
        self.ready = ready
        self.inherit(ready.models)
        if not self._numbered and self.label != ready.device:  # `auto` or `cuda`, which is now known
            self._metrics.worker_up.remove(self.label)
            self.label = ready.device
        self._metrics.worker_up.labels(self.label).set(1)

    def inherit(self, facts: dict[str, ModelFacts]) -> None:
        """Take over what is known of the models."""
        self.facts = dict(facts)
        for name, found in facts.items():
            model = self._catalog.get(name)
            shape = model.input_shape(*model.config.size)
            if not self.costs.typical_s(name, shape, 1):
                self.costs.restore(found.costs)

    def broken(self, reason: str) -> None:
        """The device has failed, for `reason`. The next worker runs the reference executor instead of every executor
        that may have caused the failure, and measures the costs anew."""
        logger.error("%s failed: %s", self.label, reason)
        self.costs, self._pace = CostModel(), Pace()
        self.facts = {
            name: facts
            if facts.chosen.executor == REFERENCE
            else replace(facts, chosen=Chosen(REFERENCE, f"{facts.chosen.executor} broke the device: {reason}"))
            for name, facts in self.facts.items()
        }

    def lost(self) -> None:
        """The worker is gone, and so is all that it owed."""
        self.ready = None
        self.backlog.lost()
        self.backlog = Backlog(self.costs, self._pace, self._preparing_s)
        self._latest.clear()
        self._metrics.worker_up.labels(self.label).set(0)

    def reached(self, expected: Expected, exit_index: int, stage_s: float, active_share: float, now_s: float) -> float:
        """Learn what an exit has cost; see `CostModel.observe`."""
        self._computed.add(self.label, stage_s, now_s)
        others = [shape for shape in self._latest.get(expected.model, ()) if shape != expected.shape]
        self._latest[expected.model] = [*others, expected.shape][-PREPARED_SIZES:]
        return self.costs.observe(expected.model, expected.shape, exit_index, stage_s, active_share)

    def cut(self, expected: Expected, exit_index: int, stage_s: float, active_share: float) -> None:
        """Learn from a stage that was left unfinished; see `CostModel.observe_cut`."""
        self.costs.observe_cut(expected.model, expected.shape, exit_index, stage_s, active_share)

    def busy(self, now_s: float) -> float:
        """The share of the latest seconds in which it computed exits, 0..1."""
        return min(1.0, self._computed.total(now_s) / self._computed.mean_age_s)

    def step_s(self, expected: Expected, exit_index: int) -> float:
        """The longest time that the worker is expected to compute on a request, on its way to exit `exit_index`,
        without a look at its mailbox."""
        facts = self.facts[expected.model]
        kind = EXECUTORS[facts.chosen.executor]
        if kind.slices:
            return 0.0
        if kind.prepares and expected.shape not in self._latest.get(expected.model, ()):
            return PREPARE_S
        return facts.max_batch * self.costs.stage_s(expected.model, expected.shape, exit_index)

    def learnt(self, name: str) -> list[LearntCost]:
        """What the exits of a model cost at each shape that was seen."""
        exits = range(1, self._catalog.get(name).config.exits + 1)
        shapes = dict.fromkeys(cost.shape for cost in self.costs.snapshot() if cost.model == name)
        return [
            LearntCost(
                self.name if self._numbered else self.label,
                shape,
                tuple(self.costs.typical_s(name, shape, exit_index) for exit_index in exits),
                tuple(self.costs.safe_s(name, shape, exit_index) for exit_index in exits),
            )
            for shape in shapes
        ]

    def to_json(self, *, answers: bool) -> dict[str, Any]:
        """The device's part of `GET /health/ready`. `answers`: whether its worker can serve and gives signs of life."""
        executor = self.ready.executor if self.ready else None
        return {"device": self.label, "ready": answers, "executor": executor, "open": len(self.backlog)}


def labelled(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name with its label: `cpu, cpu` -> `cpu:0, cpu:1`; a name that comes once is its own label."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        number = seen.setdefault(name, 0)
        seen[name] += 1
        found.append((name, f"{name}:{number}" if names.count(name) > 1 else name))
    return found
