"""What crosses between the front end and a worker process: commands, events, and where a job's maps lie.

Values only, pickled over a pipe; images and maps go through shared memory (`memory.py`). Imports no torch.
Times are `time.monotonic()`, which is one clock for all processes of a machine.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.imaging.geometry import Box
from models.network.configs import Extra


class Stop(enum.StrEnum):
    """Why a request ended. The first five are answers, and on the wire; the metrics count by all."""

    COMPLETE = "complete"
    QUALITY = "quality"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    MAX_EXIT = "max_exit"
    NO_EXIT = "no_exit"
    DISCONNECTED = "disconnected"
    REJECTED = "rejected"
    INVALID = "invalid"
    ERROR = "error"


@dataclass(frozen=True)
class Layout:
    """Where a job's image and maps lie in its block of shared memory: the image, then a slot for every exit.

    An exit's slot is written once and never again, so who reads it needs no lock. `joints`: 0 for label maps.
    """

    height: int
    width: int
    exits: int
    joints: int = 0
    extra: bool = False

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def image_bytes(self) -> int:
        return _aligned(self.pixels * 3)

    @property
    def map_bytes(self) -> int:
        return _aligned(self.joints * 12 if self.joints else self.pixels)

    @property
    def extra_bytes(self) -> int:
        return _aligned(self.pixels) if self.extra else 0

    @property
    def total_bytes(self) -> int:
        return self.image_bytes + self.exits * (self.map_bytes + self.extra_bytes)

    def image(self, block: memoryview) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB."""
        flat = np.frombuffer(block, np.uint8, self.pixels * 3)
        return flat.reshape(self.height, self.width, 3)

    def labels(self, block: memoryview, exit_index: int) -> NDArray[np.uint8]:
        """uint8 (H, W)."""
        return self._pixels(block, self._slot(exit_index))

    def keypoints(self, block: memoryview, exit_index: int) -> NDArray[np.float32]:
        """float32 (J, 3)."""
        flat = np.frombuffer(block, np.float32, self.joints * 3, self._slot(exit_index))
        return flat.reshape(self.joints, 3)

    def extra_map(self, block: memoryview, exit_index: int) -> NDArray[np.uint8]:
        """uint8 (H, W)."""
        return self._pixels(block, self._slot(exit_index) + self.map_bytes)

    def _slot(self, exit_index: int) -> int:
        return self.image_bytes + (exit_index - 1) * (self.map_bytes + self.extra_bytes)

    def _pixels(self, block: memoryview, start: int) -> NDArray[np.uint8]:
        return np.frombuffer(block, np.uint8, self.pixels, start).reshape(self.height, self.width)


def _aligned(size: int) -> int:
    """Up to a multiple of 64, a cache line."""
    return -(-size // 64) * 64


@dataclass(frozen=True)
class Plan:
    """The first message to a worker: what to load, and where the shared memory is.

    `models`: directories by name. `known`: cumulative seconds of the exits at the configured size, by name,
    as the worker before measured them, so that this one is ready sooner. `decided`: the executor that it ran, and why.
    """

    models: dict[str, str]
    device: str
    executor: str
    threads: int
    known: dict[str, tuple[float, ...]]
    decided: dict[str, tuple[str, str]]
    traffic_cap: tuple[tuple[int, int], ...]
    arena_fd: int
    arena_bytes: int
    log_level: str


@dataclass(frozen=True)
class Submit:
    """Start a job. `required`: the first exit that is worth an answer. `min_exit`: neither traffic nor quality ends
    the job before. `deadline_s`: when maps must be on the host. `usual_s`: when a job that came as this one did would
    usually begin.

    `quality`: the share of pixels that may still change (see `models/quality.py`), or None. `extra`: the further map.
    """

    key: int
    model: str
    offset: int
    layout: Layout
    deadline_s: float
    usual_s: float
    required: int
    max_exit: int
    min_exit: int = 1
    quality: float | None = None
    extra: Extra | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Cancel:
    key: int


@dataclass(frozen=True)
class Move:
    """A new deadline for a running job."""

    key: int
    deadline_s: float


Command = Submit | Cancel | Move


@dataclass(frozen=True)
class ModelFacts:
    """What a worker knows of a loaded model. `macs`, `seconds`: cumulative at every exit, at the configured size.

    `macs` are of the dense network; `seconds` were measured while warming up, under masks. `calibrated`: `quality`
    may be asked for. `executor` runs it, for this `reason`, empty where there was no choice.
    """

    macs: tuple[float, ...]
    seconds: tuple[float, ...]
    calibrated: bool
    executor: str
    reason: str = ""


@dataclass(frozen=True)
class Ready:
    """Every exit of every model has run at least once."""

    device: str
    executor: str
    models: dict[str, ModelFacts]


@dataclass(frozen=True)
class Exited:
    """An exit's map lies in its slot. `stage_s`: what the device spent since the exit before, rendering included."""

    key: int
    exit: int
    unsure: float
    macs: int
    stage_s: float
    started_s: float
    finished_s: float


@dataclass(frozen=True)
class Ended:
    """The worker has let go of a job and of its memory; the last event about it.

    `stop` is what ended it there. `wait_s`: the predicted wait of a job that was rejected. `error`: a sentence.
    """

    key: int
    stop: Stop
    wait_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Beat:
    """Sent now and then while computing: the worker lives."""


@dataclass(frozen=True)
class Unloadable:
    """The models could not be loaded; starting again would not help."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """The device failed, and with it whatever else this worker would run: its last event."""

    reason: str


Event = Ready | Exited | Ended | Beat | Unloadable | Broken
