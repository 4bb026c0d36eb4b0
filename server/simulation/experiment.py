"""The experiment: every discipline on the same requests, at several loads and seeds, with intervals by block
bootstrap."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.requests.policies import Policies
from server.simulation.baselines import Edf, Fifo, FifoCancelled, FixedExit, LeastAttained, StabilityScore
from server.simulation.bound import bound
from server.simulation.device import Discipline, RequestOutcome, simulate
from server.simulation.served import Served
from server.simulation.traffic import Arrival, Process
from server.simulation.workload import FrontEnd, SimulatedRequest, Workload, rate_1x

Floats = NDArray[np.float64]
T = TypeVar("T")

BLOCK_S = 2.0
"""The bootstrap draws blocks of so many seconds of arrivals: requests that are close in time share a queue."""
RESAMPLES = 1000
SHARE = 0.95
"""The share of the distribution that an interval covers."""

OURS, BOUND = "this server", "bound"
BASELINES: dict[str, Callable[[], Discipline]] = {
    "FIFO to completion": Fifo,
    "FIFO, cancelled at the deadline": FifoCancelled,
    "EDF to completion": Edf,
    "least attained + EDF": LeastAttained,
    "EdgeServing": StabilityScore,
}


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that covers it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class DisciplineResult:
    """What one discipline achieves at one load.

    `utility`: mean over all requests, 0 for those without an answer in time. `without`: the share of those. `exits`:
    the share of the requests that were answered with each exit, from 0. `lead`: by how much this server's utility is
    larger, with the interval of the difference on the same requests. `late_s`: by how much the last byte is after the
    deadline, the 99.9th percentile of the answers.
    """

    discipline: str
    utility: Estimate
    without: Estimate
    lead: Estimate
    exits: tuple[float, ...] = ()
    late_s: float = 0.0


@dataclass(frozen=True)
class LoadResult:
    """What all disciplines achieve at one load, this server first and the bound last. `rate`: requests a second."""

    load: float
    rate: float
    requests: int
    disciplines: tuple[DisciplineResult, ...]


@dataclass(frozen=True)
class Experiment:
    """What is simulated. `traffic`: a kind of traffic, or the arrivals of a trace, which are replayed as they are.
    `policies`: what limits the budgets of this server's requests. `progress` is told what is simulated next.
    """

    workload: Workload
    front_end: FrontEnd
    traffic: Process | Sequence[Arrival]
    policies: Policies = field(default_factory=Policies)
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    seeds: int = 10
    duration_s: float = 20.0
    progress: Callable[[str], None] = field(default=lambda _: None)

    def run(self) -> Iterator[LoadResult]:
        """The results of each load, one after the other. The same experiment gives the same results. Raises ValueError
        if no request arrives."""
        saturated = rate_1x(self.workload.default, self.front_end)
        if isinstance(self.traffic, Sequence):
            span_s = max(arrival.at_s for arrival in self.traffic)
            rate = len(self.traffic) / span_s if span_s else saturated
            yield self._compare(rate / saturated, rate)
            return
        for load in self.loads:
            yield self._compare(load, load * saturated)

    def _compare(self, load: float, rate: float) -> LoadResult:
        runs = [self._requests(rate, seed) for seed in range(self.seeds)]
        if not all(runs):
            raise ValueError(f"no request arrives within {self.duration_s:g} s at load {load:g}; give a longer time")
        blocks = Blocks([request for run in runs for request in run], [len(run) for run in runs])
        disciplines: dict[str, Callable[[], Discipline]] = {OURS: self._served, **BASELINES}
        found = {name: self._outcomes(name, load, runs, make) for name, make in disciplines.items()}
        found |= self._fixed(load, runs)
        bounds = np.array([bound(run, self.front_end) for run in self._told(BOUND, load, runs)])
        ours = _utility(found[OURS])
        results = [self._result(name, outcomes, ours, blocks) for name, outcomes in found.items()]
        requests = sum(map(len, runs))
        # The bound is one number for each seed, so its interval has the seeds as blocks.
        sizes = np.array([len(run) for run in runs])
        per_seed = np.array([each.sum() for each in np.split(ours, np.cumsum(sizes)[:-1])])
        nothing = Estimate(0.0, 0.0, 0.0)
        results.append(DisciplineResult(BOUND, resampled(bounds, sizes), nothing, resampled(per_seed - bounds, sizes)))
        return LoadResult(load, rate, requests, tuple(results))

    def _requests(self, rate: float, seed: int) -> list[SimulatedRequest]:
        if isinstance(self.traffic, Sequence):
            return self.workload.requests(self.traffic, np.random.default_rng(seed))
        return self.workload.draw(self.traffic, rate, self.duration_s, seed)

    def _served(self) -> Discipline:
        return Served(self.workload.models, self.policies, self.front_end.image_s)

    def _outcomes(
        self, name: str, load: float, runs: Sequence[Sequence[SimulatedRequest]], make: Callable[[], Discipline]
    ) -> list[RequestOutcome]:
        told = self._told(name, load, runs)
        return [outcome for run in told for outcome in simulate(run, make(), self.front_end)]

    def _told(self, name: str, load: float, runs: Sequence[T]) -> Iterator[T]:
        """Each run, after `progress` was told of it."""
        for number, run in enumerate(runs, 1):
            self.progress(f"load {load:g}: {name}, seed {number} of {len(runs)}")
            yield run

    def _fixed(self, load: float, runs: Sequence[Sequence[SimulatedRequest]]) -> dict[str, list[RequestOutcome]]:
        """EDF with drop, and of all fixed exits the best one in hindsight."""
        last = max(request.exits for run in runs for request in run)
        found = {
            index: self._outcomes(f"fixed exit {index}", load, runs, lambda index=index: FixedExit(index))  # type: ignore[misc]
            for index in range(1, last + 1)
        }
        best = max(found, key=lambda index: _utility(found[index]).mean())
        return {"EDF with drop": found[last], f"best fixed exit ({best})": found[best]}

    def _result(self, name: str, outcomes: list[RequestOutcome], ours: Floats, blocks: "Blocks") -> DisciplineResult:
        utility = _utility(outcomes)
        exits = np.bincount([outcome.exit for outcome in outcomes], minlength=outcomes[0].request.exits + 1)
        late_s = [outcome.end_s - outcome.request.deadline_s for outcome in outcomes if outcome.exit]
        return DisciplineResult(
            name,
            utility=blocks.estimate(utility),
            without=blocks.estimate(np.array([float(not outcome.in_time) for outcome in outcomes])),
            lead=blocks.estimate(ours - utility),
            exits=tuple((exits / len(outcomes)).tolist()),
            late_s=float(np.quantile(late_s, 0.999)) if late_s else 0.0,
        )


class Blocks:
    """Which requests of several runs belong together: those that arrive within `BLOCK_S` in the same run."""

    def __init__(self, requests: Sequence[SimulatedRequest], runs: Sequence[int]) -> None:
        run = np.repeat(np.arange(len(runs)), runs)
        block = np.array([int(request.arrived_s / BLOCK_S) for request in requests])
        _, self._block = np.unique(np.stack([run, block]), axis=1, return_inverse=True)
        self._sizes = np.bincount(self._block)

    def estimate(self, values: Floats) -> Estimate:
        """The mean of one value for each request."""
        return resampled(np.asarray(np.bincount(self._block, values), np.float64), self._sizes)


def resampled(sums: Floats, sizes: NDArray[np.int64]) -> Estimate:
    """The mean of values that are summed by block, and its interval by the percentile bootstrap over blocks."""
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, ((1 - SHARE) / 2, (1 + SHARE) / 2))
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high))


def _utility(outcomes: Sequence[RequestOutcome]) -> Floats:
    return np.array([outcome.utility for outcome in outcomes])
