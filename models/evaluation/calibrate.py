"""Calibrates the quality stop: finds the thresholds at which a model may stop early, and checks the promise on held-out
images.

`models/quality.py` says what is promised, and how the thresholds follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.anytime import AnytimeModel
from models.evaluation.observations import ObservedImage
from models.quality import KEPT, Quality, breakable, threshold

EPSILONS = (0.02, 0.05, 0.10)
"""The bounds that are reported; the calibration itself serves every bound."""


@dataclass(frozen=True)
class Observations:
    """What the quality stop needs of every image at every exit: fields of `ObservedExit`, float64 (images, exits)."""

    uncertainty: NDArray[np.float64]
    changed: NDArray[np.float64]
    macs: NDArray[np.float64]

    @classmethod
    def of(cls, images: Sequence[ObservedImage]) -> "Observations":
        values = [[(exit_.uncertainty, exit_.changed, exit_.macs) for exit_ in image] for image in images]
        return cls(*np.moveaxis(np.array(values, np.float64), 2, 0))

    def __len__(self) -> int:
        return len(self.uncertainty)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> "Observations":
        return Observations(self.uncertainty[images], self.changed[images], self.macs[images])

    def threshold(self, epsilon: float) -> float:
        """The uncertainty below which an exit may stop; see `quality.threshold`."""
        return threshold(self.uncertainty[:, :-1], self.changed[:, :-1], epsilon)


def calibrate(
    model: AnytimeModel,
    observed: Sequence[ObservedImage],
    source: str,
    fingerprint: str,
    *,
    halvings: int,
    seed: int,
) -> tuple[Quality, dict[str, Any]]:
    """Calibrates `model` on images of `source`. Returns the calibration and a report, as JSON, of how often it keeps
    its bounds and what it saves.

    `source`, `fingerprint`: see `Quality`. `halvings`, `seed`: see `cross_validate`. Raises ValueError if there are too
    few images.
    """
    if not breakable(len(observed)):
        raise ValueError(f"{len(observed)} images are too few to promise anything; give 22 or more of {source}")
    images = Observations.of(observed)
    quality = Quality.fit(images.uncertainty[:, :-1], images.changed[:, :-1], source, fingerprint, model.precision)
    return quality, {
        "model": model.config.name,
        "source": quality.source,
        "images": len(images),
        "breakable": breakable(len(images)),
        "splits": halvings,
        "seed": seed,
        "bounds": [
            {"epsilon": epsilon, "threshold": quality.threshold(epsilon)}
            | cross_validate(images, epsilon, halvings, seed)
            for epsilon in EPSILONS
        ],
        "executor": model.executor,
        "device": model.device,
        "precision": model.precision,
    }


def check(quality: Quality, observed: Sequence[ObservedImage], split: str) -> list[dict[str, Any]]:
    """Judges a calibration on the images of another split, for each of `EPSILONS`; see `judge`."""
    images = Observations.of(observed)
    return [
        {"epsilon": epsilon, "split": split} | judge(images, quality.threshold(epsilon), epsilon)
        for epsilon in EPSILONS
    ]


def judge(images: Observations, below: float, epsilon: float) -> dict[str, float]:
    """Stops every image at its first exit whose uncertainty is below `below`, and returns shares:

    `coverage`: of the images, those whose answer is within epsilon. `early`: of the images, those that stopped before
    the last exit. `kept`: of the early ones, those within epsilon (1 if there are none). `changed`: mean over the
    images of the pixels that would still change. `saved`: multiply-adds that stopping saves.
    """
    last = images.uncertainty.shape[1] - 1
    stops = images.uncertainty < below
    stops[:, last] = True
    at = np.arange(len(images)), stops.argmax(1)
    changed, early = images.changed[at], at[1] < last
    within = changed <= epsilon
    return {
        "coverage": float(within.mean()),
        "early": float(early.mean()),
        "kept": float(within[early].mean()) if early.any() else 1.0,
        "changed": float(changed.mean()),
        "saved": float(1 - images.macs[at].sum() / images.macs[:, last].sum()),
    }


def cross_validate(images: Observations, epsilon: float, halvings: int, seed: int = 0) -> dict[str, float]:
    """Halves the images at random, calibrates on one half, judges the other, and returns means over `halvings`.

    `held`: the number of halvings in which at least a share KEPT of the judged images was within epsilon. `in_order`:
    the images are halved once in their own order, each half is calibrated on the other, and the lower coverage is
    given. It shows how well a calibration does on other clips, since neighbours of one clip stay in one half.
    """
    half = len(images) // 2
    random = np.random.default_rng(seed)
    judged = []
    for _ in range(halvings):
        order = random.permutation(len(images))
        judged.append(judge(images[order[half:]], images[order[:half]].threshold(epsilon), epsilon))
    first, second = images[:half], images[half:]
    return {
        "held": sum(result["coverage"] >= KEPT for result in judged),
        **{name: float(np.mean([result[name] for result in judged])) for name in judged[0]},
        "in_order": min(
            judge(one, other.threshold(epsilon), epsilon)["coverage"]
            for one, other in ((first, second), (second, first))
        ),
    }
