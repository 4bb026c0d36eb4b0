"""The workload: requests with what they cost and what their exits are worth, from measured profiles of the models.

**Load 1x** is the rate of arrivals at which all exits of all requests, with the front end's work, take exactly the
device's time: 1 / (mean seconds to the last exit + mean front-end seconds x the speed that they take away).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.gains import Gains, Profile
from server.catalog import ServedModel
from server.scheduling.costs import Shape
from server.simulation.traffic import Arrival, Process


@dataclass(frozen=True)
class FrontEnd:
    """What the front end does for a request, in seconds of one core. It does one thing at a time.

    `head_s`: receive the head, and admit or refuse. `image_s`: receive and decode an image of the model's configured
    size, and hand it over; a larger one takes that long several times, and others come in between. `reply_s`: encode
    the answer and send it. `speed_left`: the share of the device's speed that is left while the front end works; it
    takes one of two cores.
    """

    head_s: float = 0.0004
    image_s: float = 0.0022
    reply_s: float = 0.0014
    speed_left: float = 0.5

    def taken_s(self, request: "SimulatedRequest") -> float:
        """Seconds of the device that it takes away for a request that is answered."""
        return self._taken_s(request.image_parts)

    def usual_s(self) -> float:
        """As `taken_s`, for an image of the configured size."""
        return self._taken_s(1)

    def _taken_s(self, image_parts: int) -> float:
        return (self.head_s + image_parts * self.image_s + self.reply_s) * (1 - self.speed_left)


@dataclass(frozen=True)
class SimulatedModel:
    """A served model with the gains and profiles that were measured of it."""

    served: ServedModel
    gains: Gains

    @cached_property
    def usual_s(self) -> tuple[float, ...]:
        """Median seconds of each stage at the configured size."""
        return tuple(statistics.median(stage) / 1000 for stage in zip(*self._stages_ms, strict=True))

    @cached_property
    def mean_s(self) -> float:
        """Mean seconds to the last exit at the configured size."""
        return statistics.fmean(map(sum, self._stages_ms)) / 1000

    @property
    def _stages_ms(self) -> list[tuple[float, ...]]:
        return [profile.stage_ms for profile in self.gains.profiles]


@dataclass(frozen=True)
class SimulatedRequest:
    """A request, and what only its computation shows: `profile` is that of its image, `stage_s` the seconds of each
    stage, from the same profile.

    `usual_s`: the seconds that each stage usually takes at this size; disciplines know them. `image_parts`: see
    `FrontEnd.image_s`. `give_up_s`: when the client does not want it any more. Times are absolute.
    """

    key: int
    model: SimulatedModel
    arrived_s: float
    deadline_s: float
    height: int
    width: int
    shape: Shape
    profile: Profile
    stage_s: tuple[float, ...]
    usual_s: tuple[float, ...]
    image_parts: int = 1
    client: str = ""
    priority: int = 1
    give_up_s: float = math.inf

    @property
    def exits(self) -> int:
        return len(self.stage_s)

    def utility(self, exit_index: int) -> float:
        """What the answer of an exit is worth; 0 for none."""
        return self.profile.utility[exit_index - 1] if exit_index else 0.0


def rate_1x(model: SimulatedModel, front_end: FrontEnd) -> float:
    """Requests a second at load 1x."""
    return 1 / (model.mean_s + front_end.usual_s())


@dataclass(frozen=True)
class Workload:
    """How requests are made of arrivals: `models` by name, of which the first is the default, and the range of the
    deadlines of arrivals that name none."""

    models: Mapping[str, SimulatedModel]
    deadline_ms: tuple[float, float] = (50.0, 300.0)

    @property
    def default(self) -> SimulatedModel:
        return next(iter(self.models.values()))

    def draw(self, process: Process, rate: float, duration_s: float, seed: int) -> list[SimulatedRequest]:
        """Requests of a kind of traffic. The same seed gives the same requests."""
        random = np.random.default_rng(seed)
        arrivals = [Arrival(at_s, client=client) for at_s, client in process.times(rate, duration_s, random)]
        return self.requests(arrivals, random)

    def requests(self, arrivals: Sequence[Arrival], random: np.random.Generator) -> list[SimulatedRequest]:
        """Requests of these arrivals, each with an image that is drawn. Raises ValueError on an unknown model."""
        deadlines_ms = random.uniform(*self.deadline_ms, len(arrivals)).tolist()
        images = random.integers(0, 2**31, len(arrivals)).tolist()
        return [self._request(key, *each) for key, each in enumerate(zip(arrivals, deadlines_ms, images, strict=True))]

    def _request(self, key: int, arrival: Arrival, deadline_ms: float, image: int) -> SimulatedRequest:
        model = self.models.get(arrival.model, None) if arrival.model else self.default
        if model is None:
            raise ValueError(f"no model is called {arrival.model!r}; there are {', '.join(self.models)}")
        height, width = arrival.height or model.served.config.size[0], arrival.width or model.served.config.size[1]
        dearer = model.served.area_ratio(height, width)
        profile = model.gains.profiles[image % len(model.gains.profiles)]
        return SimulatedRequest(
            key=key,
            model=model,
            arrived_s=arrival.at_s,
            deadline_s=arrival.at_s + (arrival.deadline_ms or deadline_ms) / 1000,
            height=height,
            width=width,
            shape=model.served.input_shape(height, width),
            profile=profile,
            stage_s=tuple(dearer * stage_ms / 1000 for stage_ms in profile.stage_ms),
            usual_s=tuple(dearer * seconds for seconds in model.usual_s),
            image_parts=max(1, round(dearer)),
            client=arrival.client,
            priority=arrival.priority,
            give_up_s=math.inf if arrival.give_up_s is None else arrival.at_s + arrival.give_up_s,
        )
