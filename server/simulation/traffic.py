"""Traffic: when requests arrive, and what each of them asks. Drawn from a seed, or read from a trace.

A trace is a file of requests as JSON, one a line, as `adpc load` writes and replays them:

    {"at_s": 0.25, "deadline_ms": 100, "width": 480, "height": 360, "model": "camvid-adpc-w18", "client": "3"}
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from models.network.configs import Positive, Whole
from models.validation import from_json, value

LONGEST_S = 1e6
"""A trace or a simulation is not longer. Unix seconds are larger."""
Seconds = Annotated[float, Field(ge=0, le=LONGEST_S)]


@value()
class Arrival:
    """One request. What is None is drawn, or the model's own; see `Workload`.

    `at_s`: when its first byte comes. `give_up_s`: seconds after which the client does not want it any more; `hang_up`:
    it then closes the connection, which to a device is the same as a cancel. `priority`: 0, 1 or 2.
    """

    at_s: Seconds
    deadline_ms: Positive | None = None
    width: Whole | None = None
    height: Whole | None = None
    model: str | None = None
    client: str = ""
    give_up_s: Seconds | None = None
    hang_up: bool = False
    priority: Annotated[int, Field(ge=0, le=2)] = 1

    def __post_init__(self) -> None:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together; give both or neither")


def read_trace(path: Path) -> list[Arrival]:
    """The arrivals of a trace, in order. Raises ValueError, which names the line, if one is wrong."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no request; give one JSON object a line, with at_s at least")
    arrivals = []
    for number, line in lines:
        try:
            arrivals.append(_arrival(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _arrival(fields: Any) -> Arrival:
    if isinstance(fields, dict):
        fields = {name: given for name, given in fields.items() if given is not None}
        if isinstance(fields.get("client"), int):
            fields["client"] = str(fields["client"])
    return from_json(Arrival, fields, "a request")


class Process(Protocol):
    """A kind of traffic. `times` gives (seconds, client) in order, for `duration_s` at a mean of `rate` a second."""

    def times(self, rate: float, duration_s: float, random: np.random.Generator) -> Iterator[tuple[float, str]]: ...


@dataclass(frozen=True)
class Gamma:
    """Independent gaps of a gamma distribution. `variation`: their coefficient of variation; 1 is Poisson traffic, and
    more comes in clusters."""

    variation: float = 1.0

    def times(self, rate: float, duration_s: float, random: np.random.Generator) -> Iterator[tuple[float, str]]:
        shape = self.variation**-2
        at_s = 0.0
        while True:
            for gap_s in random.gamma(shape, 1 / (shape * rate), 256).tolist():
                at_s += gap_s
                if at_s >= duration_s:
                    return
                yield at_s, ""


@dataclass(frozen=True)
class Bursty:
    """A Poisson process that a Markov chain switches between calm and burst (MMPP): a share `burst_share` of the time
    it is `peak` times as fast as on the mean. `burst_s`: the mean length of a burst."""

    peak: float = 3.0
    burst_share: float = 0.2
    burst_s: float = 0.5

    def times(self, rate: float, duration_s: float, random: np.random.Generator) -> Iterator[tuple[float, str]]:
        calm = (1 - self.peak * self.burst_share) / (1 - self.burst_share)
        calm_s = self.burst_s * (1 - self.burst_share) / self.burst_share
        bursts = bool(random.random() < self.burst_share)
        begin_s = 0.0
        while begin_s < duration_s:
            end_s = begin_s + random.exponential(self.burst_s if bursts else calm_s)
            count = random.poisson(rate * (self.peak if bursts else calm) * (end_s - begin_s))
            for at_s in np.sort(random.uniform(begin_s, end_s, count)).tolist():
                if at_s < duration_s:
                    yield at_s, ""
            begin_s, bursts = end_s, not bursts


@dataclass(frozen=True)
class Cameras:
    """Cameras of `fps` frames a second, each with its own phase and a little jitter; as many as make the rate. The last
    one is slower, so that the rate is met."""

    fps: float = 10.0
    jitter_s: float = 0.002

    def times(self, rate: float, duration_s: float, random: np.random.Generator) -> Iterator[tuple[float, str]]:
        found: list[tuple[float, str]] = []
        left, camera = rate, 0
        while left > 1e-9:
            fps = min(self.fps, left)
            left, camera = left - fps, camera + 1
            frames = np.arange(random.uniform(0, 1 / fps), duration_s, 1 / fps)
            jittered = frames + random.exponential(self.jitter_s, len(frames))
            found += [(at_s, f"camera {camera}") for at_s in jittered.tolist()]
        yield from sorted(found)


PROCESSES: dict[str, Process] = {
    "poisson": Gamma(),
    "gamma": Gamma(variation=2.0),
    "bursty": Bursty(),
    "cameras": Cameras(),
}
"""The kinds of traffic, by name."""
