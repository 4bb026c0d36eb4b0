"""What the server answers, as frozen values around read-only numpy arrays. Imports nothing of this package."""

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
    """What the numbers in a map mean.

    `names`: of the classes, or of the joints. `palette`: uint8 (C, 3), RGB of each name.
    `skeleton`: pairs of joints that a limb joins; empty for segmentation.
    """

    names: tuple[str, ...] = ()
    palette: NDArray[np.uint8] = field(default_factory=_no_palette)
    skeleton: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Where the time went, in milliseconds; `compute_ms` has one entry for each exit."""

    decode_ms: float
    queue_ms: float
    compute_ms: tuple[float, ...]
    encode_ms: float


@dataclass(frozen=True, eq=False)
class Exit:
    """The answer of one exit.

    `exit`: its number, from 1, of `exits`. `final`: no better one will come. `elapsed_ms`: since the server saw the
    request. `unsure`: share of the image (0..1) that the next exit would still look at. `size`: (height, width).
    `mask`: uint8 (H, W) class numbers, or None for pose. `keypoints`: float32 (J, 3) of x, y in pixels of the image
    and a score, or None for segmentation. `extra`: uint8 (H, W), the further map that was asked for, or None.
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
        """Names of the classes in `mask` (of the joints, for pose)."""
        return self.labels.names

    @property
    def palette(self) -> NDArray[np.uint8]:
        """RGB of each class, uint8 (C, 3)."""
        return self.labels.palette


@dataclass(frozen=True, eq=False)
class Prediction(Exit):
    """The one answer of `predict`: the deepest exit that the deadline allowed, and why it stopped there."""

    id: str
    model: str
    task: Task
    stop: Stop
    deadline_ms: float | None
    timing: Timing


@dataclass(frozen=True)
class End:
    """How a stream ended. `exit`: the latest finished, 0 for none. `skipped`: exits that a slow reader missed."""

    exit: int
    stop: Stop
    elapsed_ms: float
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExitCost:
    """What an exit costs from the image on: `gmacs` (2^30 multiply-adds), `seconds` as measured, None if unknown."""

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
