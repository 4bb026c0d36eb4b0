"""The quality stop decides whether an exit's answer is as good as the last exit's. Its calibration is `quality.json` in
a model directory, or `quality-int8.json` for the model in eight bits. `python -m models calibrate` writes both.

A request names a bound epsilon: the share of the pixels (of the joints, for pose) that may still change until the last
exit. No labels are needed; see "consistency" in Jazbec et al., *Fast yet Safe: Early-Exiting with Risk Control*,
NeurIPS 2024. The promise, for each epsilon: with probability >= `CONFIDENCE` over the images that calibrated it, a
share >= `KEPT` of all answers to further images drawn like them keeps the bound. Nothing is promised for images of
another kind.

A request stops at an exit if its `uncertainty` is below a threshold, which is the same at every exit. A calibration
image breaks a threshold if any of its exits is below the threshold and yet changes by more than epsilon. Later exits
count too, so the promise holds for every `min_exit`. The calibration takes the largest threshold that Learn-then-Test
(Angelopoulos et al., 2021; fixed sequence from below, binomial p-value) does not reject. Fewer images break it than
conformal risk control (Angelopoulos et al., 2022) would allow, so the promise holds on average over calibrations as
well. The threshold is lowered further until the promise also holds among the calibration images that it stops.
Otherwise, where no early exit can keep epsilon, one image in twenty would still stop early and break it.

No threshold lies above the largest uncertainty of the calibration images, not even for epsilon = 0.999: no bound below
1 holds for every image, and an image that is more uncertain than all of them is not drawn like them.
"""

import json
import math
from bisect import bisect_right
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.anytime import Exit
from models.directory import QUALITY_FILES, read_derived
from models.imaging.geometry import STRIDE, Frame
from models.network.confidence import confidence
from models.network.configs import Share, Task
from models.quantisation import Precision
from models.validation import value
from models.writing import write_text

KEPT = 0.9
CONFIDENCE = 0.9
GRID = 10_000
"""Bounds and thresholds are rounded to 1 / GRID, to the safe side."""
SAMPLED = 1 << 14
"""Positions that are enough for the mean over a large image, so that it takes less than a few milliseconds."""
MOVED = 0.05
"""A joint has changed if it moved by more than this share of the side of the person's crop."""


def uncertainty(found: Exit, task: Task, frame: Frame) -> float:
    """How uncertain an exit is of its answer as a whole, 0..1.

    For segmentation, it is the mean of 1 - confidence over the image; every second position of every second row is
    enough for a mean, and of large images every third or fewer. For pose, it is the mean over the joints of 1 - the
    height of their peak, their confidence.
    """
    if task == "pose":
        return 1 - float(found.scores.flatten(1).amax(1).float().clamp(0, 1).mean())
    height, width = -(-frame.height // STRIDE), -(-frame.width // STRIDE)
    by = max(2, math.isqrt(height * width // SAMPLED))
    return 1 - float(confidence(found.scores[None, :, :height:by, :width:by].float(), task).mean())


def breakable(images: int) -> int:
    """How many of `images` calibration images may break a threshold; 0 below 22 images.

    It is the largest k with P(X < k) <= 1 - CONFIDENCE, where X ~ Binomial(images, 1 - KEPT) is how many would break it
    if exactly a share 1 - KEPT of all images did.
    """
    share, tail = 1 - KEPT, 0.0
    for count in range(images):
        ways = math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
        tail += math.exp(ways + count * math.log(share) + (images - count) * math.log1p(-share))
        if tail > 1 - CONFIDENCE:
            return count
    return 0


def threshold(uncertainty: NDArray[np.float64], changed: NDArray[np.float64], epsilon: float) -> float:
    """The uncertainty below which an exit may stop, for one bound; 0 if none may.

    `uncertainty`, `changed`: float64 (images, exits - 1), without the last exit: the uncertainty of each exit, and the
    share of its answer that changes until the last.
    """
    broken_at = np.where(changed > epsilon, uncertainty, np.inf).min(1)
    # No threshold lies above the largest uncertainty that was seen, even if no image broke the bound.
    broken_at = np.minimum(np.sort(broken_at), uncertainty.max())
    stopped_at = uncertainty.min(1)
    for count in range(breakable(len(uncertainty)), 0, -1):
        candidate = broken_at[count - 1]
        if count <= (1 - KEPT) * (1 + np.count_nonzero(stopped_at < candidate)):
            return float(candidate)
    return 0.0


@value()
class Quality:
    """The calibration of one model.

    `steps`: pairs (epsilon, threshold), both ascending; a threshold is valid from its epsilon up to the next pair's.
    `images`: how many images calibrated it. `source`: the split or folder that they are from. `fingerprint`: of the
    model that was calibrated; see `models.directory.fingerprint`. `precision`: that in which it was calibrated.
    """

    steps: tuple[tuple[Share, Share], ...]
    images: int
    source: str
    fingerprint: str
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if list(self.steps) != sorted(self.steps):
            raise ValueError("steps are out of order; sort them by their bounds")

    def threshold(self, epsilon: float) -> float:
        """The uncertainty below which an exit keeps the bound `epsilon`, 0..1; 0 if none does."""
        index = bisect_right(self.steps, (epsilon, math.inf))
        return self.steps[index - 1][1] if index else 0.0

    @classmethod
    def fit(
        cls,
        uncertainty: NDArray[np.float64],
        changed: NDArray[np.float64],
        source: str,
        fingerprint: str,
        precision: Precision = "fp32",
    ) -> "Quality":
        """The thresholds of every epsilon, rounded to the safe side; for the arrays see the function `threshold`."""
        steps: list[tuple[float, float]] = []
        for epsilon in np.unique(np.ceil(changed * GRID)) / GRID:
            below = math.floor(threshold(uncertainty, changed, epsilon) * GRID) / GRID
            if below > (steps[-1][1] if steps else 0):
                steps.append((float(epsilon), below))
        return cls(tuple(steps), len(uncertainty), source, fingerprint, precision)

    def stops(self, uncertainty: float, epsilon: float) -> bool:
        """Whether an exit of such `uncertainty` is good enough: at most a share `epsilon` would still change."""
        return uncertainty < self.threshold(epsilon)

    @classmethod
    def load(cls, directory: Path, precision: Precision = "fp32") -> "Quality":
        """Raises FileNotFoundError if the model is not calibrated in `precision`, and ValueError if the file is broken
        or was made for other weights, another configuration or another precision."""
        path = directory / QUALITY_FILES[precision]
        remedy = f"calibrate it anew (python -m models calibrate {directory}) or delete the file"
        found = read_derived(cls, path, "a calibration", remedy)
        if QUALITY_FILES[found.precision] != path.name:
            raise ValueError(f"{path} was made for {found.precision}, but its name says {precision}; {remedy}")
        return found

    def save(self, directory: Path) -> None:
        """Writes the file of its precision, a step a line."""
        steps = ",\n  ".join(json.dumps(step) for step in self.steps)
        head = {
            "source": self.source,
            "images": self.images,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
        }
        text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "steps": [\n  {steps}\n ]\n}}\n'
        write_text(directory / QUALITY_FILES[self.precision], text)
