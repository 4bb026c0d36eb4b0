"""One request's computation, as the front end sees it."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.catalog import ServedModel
from server.engine.messages import Exited, JobSpec, Stop
from server.engine.place import Place
from server.errors import ServerError


@dataclass
class Job:
    """A job's specification, the exits that came, and how it ended. The engine writes it; the request's task reads it.

    `block`: the job's shared memory. The engine frees it once the worker and the reader have both let go.
    `stop`: why the job ended for its reader, None while it runs; `stopped_s`: when.
    `error`: what kept the job from an answer, or None.
    `macs`: multiply-adds so far, those of exits that came after the answer included.
    `computed`: the latest exit, also if it came after the end. `active_share`: what the stage after it computes.
    """

    spec: JobSpec
    model: ServedModel
    place: Place
    block: memoryview
    submitted_s: float
    exits: list[Exited] = field(default_factory=list)
    macs: int = 0
    computed: int = 0
    active_share: float = 1.0
    stop: Stop | None = None
    error: ServerError | None = None
    stopped_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    with_worker: bool = True
    with_reader: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def latest(self) -> int:
        """The newest exit whose map is on the host; 0: none yet."""
        return self.exits[-1].exit if self.exits else 0

    @property
    def required_s(self) -> float:
        """The seconds that the required exit typically takes here; 0 while nothing is known."""
        expected = self.place.expected
        return self.place.device.costs.typical_s(expected.model, expected.shape, expected.required)

    @property
    def answerable_s(self) -> float:
        """When encoding could have begun. If the deadline ended the job: its compute deadline, or the time of its exit
        if that came later, even if the timer fired late. Otherwise: when the job ended."""
        if self.stop is not Stop.DEADLINE:
            return self.stopped_s
        return min(self.stopped_s, max(self.exits[-1].finished_s, self.place.expected.deadline_s))

    @property
    def cancelled(self) -> bool:
        return self.stop is Stop.CANCELLED

    @property
    def final(self) -> bool:
        """Whether no exit after the newest one will differ."""
        return bool(self.exits) and (self.exits[-1].final or self.latest == self.model.config.exits)

    def changed_since(self, exit_index: int) -> bool:
        """Whether an exit after that one has another map."""
        return any(done.changed for done in self.exits if done.exit > exit_index)

    async def newer(self, than: int) -> int:
        """Wait for an exit after `than`, or for the end. Returns the newest exit."""
        while self.latest <= than and self.stop is None:
            self.changed.clear()
            await self.changed.wait()
        return self.latest

    async def ended(self) -> Stop:
        """Wait until the job has ended, and return why it ended. If it ended with an error, the first call raises the
        error."""
        while self.stop is None:
            self.changed.clear()
            await self.changed.wait()
        try:
            if self.error is not None:
                raise self.error
        finally:
            self.error = None  # it refers to the frames of the request, and these to the job, see server/garbage.py
        return self.stop

    def labels(self, exit_index: int) -> NDArray[np.uint8]:
        """The label map of an exit that was reached: uint8 (H, W), a view that is valid until the reader lets go."""
        return self.spec.layout.labels(self.block, exit_index)

    def keypoints(self, exit_index: int) -> NDArray[np.float32]:
        """The keypoints of an exit that was reached: float32 (J, 3), a view like `labels`."""
        return self.spec.layout.keypoints(self.block, exit_index)

    def extra_map(self, exit_index: int) -> NDArray[np.uint8] | None:
        """The further map of an exit that was reached: uint8 (H, W), a view like `labels`; None without one."""
        return self.spec.layout.extra_map(self.block, exit_index) if self.spec.layout.extra else None
