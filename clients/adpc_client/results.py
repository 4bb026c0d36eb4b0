"""The server's answers as frozen values; their numpy arrays are read-only."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["segmentation", "pose"]
Stop = Literal["complete", "quality", "deadline", "cancelled", "max_exit"]


def _no_palette() -> NDArray[np.uint8]:
    return np.zeros((0, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class Labels:
    """The names and colours of a model's classes or joints.

    `names` has one entry for each class number or joint. `palette`, uint8 (C, 3), is the RGB colour of each name.
    `skeleton` holds the pairs of joints that a limb connects; it is empty for segmentation.
    """

    names: tuple[str, ...] = ()
    palette: NDArray[np.uint8] = field(default_factory=_no_palette)
    skeleton: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Timing:
    """The server's time in milliseconds, part by part. `compute_ms` has one entry for each exit."""

    decode_ms: float
    queue_ms: float
    compute_ms: tuple[float, ...]
    encode_ms: float


@dataclass(frozen=True, eq=False)
class Exit:
    """The answer of one exit.

    `exit` is its number, counted from 1, and `exits` the number of exits that the model has. `final` tells that no
    better answer will come. `elapsed_ms` counts from the moment when the server saw the request. `unsure`, 0..1, is the
    share of the image that the next exit would still compute. `size` is (height, width).
    `mask`, uint8 (H, W), holds class numbers; it is None for pose. `keypoints`, float32 (J, 3), holds x and y in pixels
    of the image and a score for each joint; it is None for segmentation. `extra`, uint8 (H, W), is the second map if
    the request named one.
    """

    exit: int
    exits: int
    final: bool
    elapsed_ms: float
    unsure: float
    size: tuple[int, int]
    mask: NDArray[np.uint8] | None
    keypoints: NDArray[np.float32] | None
    extra: NDArray[np.uint8] | None
    labels: Labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class number in `mask`, or of each joint for pose."""
        return self.labels.names

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The RGB colour of each class, uint8 (C, 3)."""
        return self.labels.palette


@dataclass(frozen=True, eq=False)
class Prediction(Exit):
    """The answer of `predict`: the deepest exit that the deadline allowed. `stop` tells why no deeper exit came."""

    id: str
    model: str
    task: Task
    stop: Stop
    deadline_ms: float | None
    timing: Timing


@dataclass(frozen=True)
class End:
    """How a stream ended.

    `exit` is the latest exit that the server finished, 0 if none. `skipped` holds the exits that the server did not
    send, because a newer one was ready before the connection could take them.
    """

    exit: int
    stop: Stop
    elapsed_ms: float
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExitCost:
    """The cost of an exit, counted from the image: `gmacs` in 2^30 multiply-adds, `seconds` as measured by the server.

    Each is None if the server does not know it.
    """

    exit: int
    gmacs: float | None
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Model:
    """A model that the server offers."""

    name: str
    task: Task
    exits: tuple[ExitCost, ...]
    labels: Labels
    licence: str
