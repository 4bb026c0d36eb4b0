"""A request's computation as the front end sees it: what was ordered, the exits that came, and how it ended.

Imports no torch.
"""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.imaging.geometry import Box
from models.network.configs import Extra
from server.catalog import ServedModel
from server.engine.messages import Exited, Layout, Stop
from server.engine.shared_memory import Arena
from server.errors import ServerError
from server.requests.budget import Budget


class Keeper(Protocol):
    """What runs jobs: the engine. `arena` holds their images and maps."""

    arena: Arena

    def finish(self, job: "Job", stop: Stop) -> None:
        """End it for its reader; nothing if it has ended."""

    def move(self, job: "Job", deadline_s: float) -> None:
        """A new deadline; nothing if it has ended."""

    def free(self, job: "Job") -> None:
        """Give back its memory once nobody looks at it any more."""


@dataclass(frozen=True)
class Order:
    """What a job is to compute. `decode_s`: what decoding its image took. `usual_s`: when it would usually begin.
    `required`: the first exit that is worth an answer. `min_exit`: neither traffic nor quality ends the job before.
    `reserve_s`: what is kept back of the budget to encode and send.
    """

    model: ServedModel
    layout: Layout
    budget: Budget
    decode_s: float
    usual_s: float
    required: int = 1
    min_exit: int = 1
    reserve_s: float = 0.0
    quality: float | None = None
    extra: Extra | None = None
    box: Box | None = None


@dataclass
class Job:
    """One request's computation. Use it in a `with` block: leaving it cancels what still runs, and frees the maps."""

    key: int
    order: Order
    offset: int
    engine: Keeper
    submitted_s: float
    deadline_s: float
    exits: list[Exited] = field(default_factory=list)
    macs: int = 0
    stop: Stop | None = None
    error: ServerError | None = None
    stopped_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    with_worker: bool = True
    with_reader: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel(Stop.DISCONNECTED)
        self.with_reader = False
        self.engine.free(self)

    @property
    def latest(self) -> int:
        """The newest exit whose map is on the host; 0: none yet."""
        return self.exits[-1].exit if self.exits else 0

    @property
    def cancelled(self) -> bool:
        return self.stop is Stop.CANCELLED

    async def newer(self, than: int) -> int:
        """Wait for an exit after `than`, or for the end. Returns the newest exit."""
        while self.latest <= than and self.stop is None:
            self.changed.clear()
            await self.changed.wait()
        return self.latest

    async def ended(self) -> Stop:
        """Wait for the end. Raises what kept the job from an answer."""
        while self.stop is None:
            self.changed.clear()
            await self.changed.wait()
        if self.error is not None:
            raise self.error
        return self.stop

    def labels(self, exit_index: int) -> NDArray[np.uint8]:
        """The map of an exit that was reached, uint8 (H, W): a view that is valid inside the `with` block."""
        return self.order.layout.labels(self.engine.arena.view[self.offset :], exit_index)

    def keypoints(self, exit_index: int) -> NDArray[np.float32]:
        """The keypoints of an exit that was reached, float32 (J, 3): a view as well."""
        return self.order.layout.keypoints(self.engine.arena.view[self.offset :], exit_index)

    def extra_map(self, exit_index: int) -> NDArray[np.uint8] | None:
        """The further map of an exit, if one was ordered; a view as well."""
        if not self.order.layout.extra:
            return None
        return self.order.layout.extra_map(self.engine.arena.view[self.offset :], exit_index)

    def cancel(self, stop: Stop = Stop.CANCELLED) -> None:
        """End it now; nothing if it has ended."""
        self.engine.finish(self, stop)

    def move(self, deadline_s: float) -> None:
        """A new deadline, sooner or later; nothing if it has ended."""
        self.engine.move(self, deadline_s)
