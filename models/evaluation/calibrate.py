"""Calibrates the quality stop: finds where a model may stop early, and shows on images kept aside that the promise
holds.

`models/quality.py` says what is promised, and how the thresholds follow.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.anytime import AnytimeModel
from models.data import datasets
from models.data.files import images_in
from models.evaluation.evaluate import ExitCosts
from models.imaging.geometry import Box
from models.imaging.images import read_image
from models.network.configs import ModelConfig
from models.quality import KEPT, MOVED, Quality, breakable, threshold, uncertainty

EPSILONS = (0.02, 0.05, 0.10)
"""The bounds that are reported; the calibration itself serves every bound."""

BoxedImage = tuple[NDArray[np.uint8], Box | None]
"""An image, uint8 (H, W, 3), and the person's box, for pose."""


@dataclass(frozen=True)
class Observations:
    """What a model does on every image at every exit. All fields are float64 (images, exits).

    `uncertainty`: see `quality.uncertainty`. `changed`: the share of pixels (joints, for pose) whose answer differs
    from the last exit's, so 0 at the last exit. `macs`: multiply-adds from the image to the exit.
    """

    uncertainty: NDArray[np.float64]
    changed: NDArray[np.float64]
    macs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.uncertainty)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> "Observations":
        return Observations(self.uncertainty[images], self.changed[images], self.macs[images])

    def threshold(self, epsilon: float) -> float:
        """The uncertainty below which an exit may stop; see `quality.threshold`."""
        return threshold(self.uncertainty[:, :-1], self.changed[:, :-1], epsilon)


def calibrate(
    model: AnytimeModel, directory: Path, split: str | None, fingerprint: str, *, halvings: int, seed: int
) -> tuple[Quality, dict[str, Any]]:
    """Calibrates `model` on the images of a split, or of the folder itself if `split` is None. Returns the calibration
    and a report, as JSON, of how often it keeps its bounds and what it saves.

    `fingerprint`: see `quality.fingerprint`. `halvings`, `seed`: see `cross_validate`. Raises ValueError if the model
    has one exit or there are too few images.
    """
    if model.config.exits < 2:
        raise ValueError(f"{model.config.name} has 1 exit; only a model of at least 2 can stop early")
    images = observe(model, boxed_images(model.config, directory, split))
    if len(images) < 2:
        raise ValueError(f"{len(images)} image cannot be halved to show coverage; give 22 or more of {directory}")
    source = split or directory.resolve().name
    quality = Quality.fit(images.uncertainty[:, :-1], images.changed[:, :-1], source, fingerprint, model.precision)
    if not breakable(len(images)):
        raise ValueError(f"{len(images)} images are too few to promise anything; give 22 or more of {directory}")
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


def check(model: AnytimeModel, quality: Quality, directory: Path, split: str) -> list[dict[str, Any]]:
    """Judges a calibration on the images of another split, for each of `EPSILONS`; see `judge`."""
    images = observe(model, boxed_images(model.config, directory, split))
    return [
        {"epsilon": epsilon, "split": split} | judge(images, quality.threshold(epsilon), epsilon)
        for epsilon in EPSILONS
    ]


def observe(model: AnytimeModel, images: Iterable[BoxedImage]) -> Observations:
    """Runs every image through all exits and observes each."""
    observed: list[list[tuple[float, float, float]]] = []
    costs = ExitCosts(model.config.exits)
    for image, box in images:
        state = model.begin(image, box)
        side_px = state.frame.scale * model.config.size[0]
        found = [
            (uncertainty(exit_, model.config.task, state.frame), model.render(state).array, exit_.macs)
            for (exit_,) in costs.watch(model, [state])
        ]
        last = found[-1][1]
        observed.append([(value, difference(answer, last, side_px), macs) for value, answer, macs in found])
    return Observations(*np.moveaxis(np.array(observed, np.float64), 2, 0))


def difference(answer: NDArray[Any], last: NDArray[Any], side_px: float) -> float:
    """The share of pixels with another label, or of joints that are more than MOVED of the crop's side apart.

    `answer` and `last` are both uint8 (H, W), or both float32 (J, 3): x, y, score. `side_px`: the crop's side.
    """
    if answer.dtype == np.uint8:
        return float((answer != last).mean())
    return float((np.hypot(*(answer - last)[:, :2].T) > MOVED * side_px).mean())


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


def boxed_images(config: ModelConfig, directory: Path, split: str | None) -> Iterator[BoxedImage]:
    """Yields the images of a data set's split, each with the person's box for pose. If `split` is None, yields the
    images of a folder, read as the server reads them. Shows a progress bar."""
    if split is None:
        for path in tqdm(images_in(directory), unit=" images"):
            yield read_image(path), None
    elif config.task == "pose":
        for person in tqdm(datasets.people(directory, split), unit=" people"):
            yield person.image(), person.box
    else:
        for scene in tqdm(datasets.scenes(directory, split), unit=" images"):
            yield scene.image(), None
