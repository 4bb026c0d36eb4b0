"""Many simulated replicas behind a balancer, which chooses one for each request by what it sees of them.

A replica runs on only when it is looked at, up to the time of the request, so that a thousand of them cost no more than
their requests.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.requests.policies import Policies
from server.simulation.device import RequestOutcome, SimulatedServer
from server.simulation.served import Served
from server.simulation.traffic import PROCESSES
from server.simulation.workload import FrontEnd, SimulatedRequest, Workload, rate_1x


class SimulatedReplica:
    """One server of the fleet."""

    def __init__(self, workload: Workload, front_end: FrontEnd) -> None:
        self.discipline = Served(workload.models, Policies(), front_end.image_s)
        self.server = SimulatedServer(self.discipline, front_end)

    def take(self, request: SimulatedRequest) -> None:
        self.server.expect(request)
        self.server.run(request.arrived_s)

    def open_requests(self, request: SimulatedRequest) -> float:
        """The number of requests that are open when this one arrives."""
        self.server.run(request.arrived_s)
        return len(self.discipline.open_jobs)

    def due_before(self, request: SimulatedRequest) -> float:
        """Seconds that the replica may still compute for requests that are due before this one."""
        self.server.run(request.arrived_s)
        due = (job for job in self.discipline.open_jobs if job.request.deadline_s <= request.deadline_s)
        return sum(job.usual_s(job.request.exits) for job in due)


TOLD_EVERY = 1000
"""After so many requests, `Fleet.progress` is told of them."""
Look = Callable[[SimulatedReplica, SimulatedRequest], float]
"""What a balancer compares; less is better."""

ROUTINGS: dict[str, tuple[int, Look]] = {
    "random": (1, SimulatedReplica.open_requests),
    "fewest open of two": (2, SimulatedReplica.open_requests),
    "least due before of two": (2, SimulatedReplica.due_before),
    "least due before of four": (4, SimulatedReplica.due_before),
}
"""The number of replicas that are drawn for each request, and what one of them is chosen by."""


@dataclass(frozen=True)
class FleetResult:
    """What one routing achieves at one load.

    `goodput`: answers in time, a second and replica. `without`: the share of requests without one. `utility`: mean over
    all requests. `exits`: the share of the requests that were answered with each exit, from 0.
    """

    load: float
    routing: str
    requests: int
    goodput: float
    without: float
    utility: float
    exits: tuple[float, ...]


@dataclass(frozen=True)
class Fleet:
    """Replicas that serve the same models, and one stream of Poisson arrivals that is routed among them.

    `progress` is told what is simulated, and how many of its requests have been routed.
    """

    workload: Workload
    front_end: FrontEnd
    replicas: int
    duration_s: float
    seed: int = 0
    progress: Callable[[str], None] = field(default=lambda _: None)

    def run(self, loads: Sequence[float]) -> Iterator[FleetResult]:
        """Each routing on the same requests. The same fleet gives the same results. Raises ValueError if no request
        arrives."""
        for load in loads:
            requests = self._requests(load)
            if not requests:
                raise ValueError(f"no request arrives within {self.duration_s:g} s; give a longer time")
            for routing, (choices, look) in ROUTINGS.items():
                yield self._result(load, routing, self.route(requests, choices, look, f"load {load:g}: {routing}"))

    def route(
        self, requests: Sequence[SimulatedRequest], choices: int, look: Look, title: str = ""
    ) -> list[RequestOutcome]:
        """How each request ends, in the order of `requests`. `title`: what `progress` is told of them."""
        replicas = [SimulatedReplica(self.workload, self.front_end) for _ in range(self.replicas)]
        drawn = np.random.default_rng(self.seed).integers(0, self.replicas, (len(requests), choices))
        took = []
        for number, (request, candidates) in enumerate(zip(requests, drawn.tolist(), strict=True)):
            if number % TOLD_EVERY == 0:
                self.progress(f"{title}, {number:,} of {len(requests):,} requests")
            chosen = min((replicas[index] for index in candidates), key=lambda replica: look(replica, request))
            chosen.take(request)
            took.append(chosen)
        for replica in replicas:
            replica.server.run()
        return [chosen.server.outcomes[request.key] for request, chosen in zip(requests, took, strict=True)]

    def _requests(self, load: float) -> list[SimulatedRequest]:
        rate = load * self.replicas * rate_1x(self.workload.default, self.front_end)
        return self.workload.draw(PROCESSES["poisson"], rate, self.duration_s, self.seed)

    def _result(self, load: float, routing: str, outcomes: Sequence[RequestOutcome]) -> FleetResult:
        utility = np.array([outcome.utility for outcome in outcomes])
        in_time = np.array([outcome.in_time for outcome in outcomes])
        exits = np.bincount([outcome.exit for outcome in outcomes], minlength=outcomes[0].request.exits + 1)
        return FleetResult(
            load=load,
            routing=routing,
            requests=len(outcomes),
            goodput=float(in_time.sum()) / self.duration_s / self.replicas,
            without=float((~in_time).mean()),
            utility=float(utility.mean()),
            exits=tuple((exits / len(outcomes)).tolist()),
        )
