"""What a model does on images, exit by exit: what its calibrations learn from."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.anytime import AnytimeModel, Exit, exits_of
from models.data import datasets
from models.data.files import images_in
from models.data.people import Person
from models.data.scenes import VOID, Scene
from models.evaluation import scores
from models.imaging.geometry import Box
from models.imaging.images import read_image
from models.network.configs import ModelConfig
from models.quality import MOVED, uncertainty

Item = TypeVar("Item")
Answer = NDArray[Any]
"""Labels, uint8 (H, W), or keypoints, float32 (J, 3): x, y, score."""
BoxedImage = tuple[NDArray[np.uint8], Box | None]
"""An image, uint8 (H, W, 3), and the person's box, for pose."""
LabelledImage = tuple[BoxedImage, Callable[[Answer], float]]
"""An image, and what an answer for it is worth by its labels: 0..1, or nan if they allow no score."""


@dataclass(frozen=True)
class ObservedExit:
    """What one exit showed on one image.

    `uncertainty`: see `quality.uncertainty`. `changed`: the share of the answer that differs from the last exit's, 0 at
    the last exit. `change`: the share that differs from the exit's before, 0 at exit 1. `active_share`: of its mask.
    `macs`: multiply-adds from the image to the exit. `seconds`: from the exit before, or from the image, until the
    answer was on the host. `utility`: what the answer is worth, see `LabelledImage`.
    """

    uncertainty: float
    changed: float
    change: float
    active_share: float
    macs: int
    seconds: float
    utility: float


ObservedImage = tuple[ObservedExit, ...]
"""Every exit of one image."""


def observe(model: AnytimeModel, images: Iterable[LabelledImage]) -> list[ObservedImage]:
    """Runs every image through all exits and observes each."""
    return [_observe(model, *image) for image in images]


def _observe(model: AnytimeModel, boxed: BoxedImage, utility: Callable[[Answer], float]) -> ObservedImage:
    began_s = time.perf_counter()
    state = model.begin(*boxed)
    exits: list[tuple[Answer, float, Exit, float]] = []
    for _ in exits_of(model, [state]):
        answer, found = model.render(state).array, state.latest()
        seconds = time.perf_counter() - began_s
        exits.append((answer, uncertainty(found, model.config.task, state.frame), found, seconds))
        began_s = time.perf_counter()
    answers, side_px = [answer for answer, *_ in exits], state.frame.scale * model.config.size[0]
    return tuple(
        ObservedExit(
            uncertainty=unsure,
            changed=difference(answer, answers[-1], side_px),
            change=difference(answer, before, side_px),
            active_share=found.active_share,
            macs=found.macs,
            seconds=seconds,
            utility=utility(answer),
        )
        for (answer, unsure, found, seconds), before in zip(exits, [answers[0], *answers[:-1]], strict=True)
    )


def difference(answer: Answer, other: Answer, side_px: float) -> float:
    """The share of pixels with another label, or of joints that are more than MOVED of the crop's side apart.

    `side_px`: the crop's side, in pixels of the image.
    """
    if answer.dtype == np.uint8:
        return float((answer != other).mean())
    return float((np.hypot(*(answer - other)[:, :2].T) > MOVED * side_px).mean())


def miou(answer: Answer, labels: NDArray[np.uint8], classes: int) -> float:
    """The utility of a label map, uint8 (H, W): the mean IoU over the classes that are labelled in the image.

    A class that is found and not labelled counts only through the pixels that others miss. As an IoU of its own, of 0,
    a single stray pixel of it would lower the score by 1 / classes.
    """
    matrix = scores.confusion(torch.from_numpy(answer), torch.from_numpy(labels), classes, VOID)
    return float(scores.iou(matrix)[matrix.sum(1) > 0].mean())


def pck(answer: Answer, person: Person, joints: int) -> float:
    """The utility of keypoints, float32 (J, 3), without flip test, as the server finds them: PCK@0.2 of this person."""
    labelled = torch.from_numpy(person.joints_for(joints))[None]
    return float(scores.pck(torch.from_numpy(answer[None, :, :2]), labelled, person.skeleton).nanmean())


def examples(config: ModelConfig, directory: Path, split: str | None) -> Iterator[LabelledImage]:
    """The images of a data set's split, each with the person's box for pose. If `split` is None, the images of a
    folder, which have no labels, read as the server reads them. They are read one by one, behind a progress bar; the
    folder is looked into at once, and the errors of the data set's reader are raised then."""
    if split is None:
        return (_unlabelled(path) for path in _shown(images_in(directory), " images"))
    if config.task == "pose":
        return (_person(person, config.outputs) for person in _shown(datasets.people(directory, split), " people"))
    return (_scene(scene, config.outputs) for scene in _shown(datasets.scenes(directory, split), " images"))


def _shown(items: Sequence[Item], unit: str) -> Iterator[Item]:
    yield from tqdm(items, unit=unit)


def _unlabelled(path: Path) -> LabelledImage:
    return (read_image(path), None), lambda _: math.nan


def _person(person: Person, joints: int) -> LabelledImage:
    return (person.image(), person.box), lambda answer: pck(answer, person, joints)


def _scene(scene: Scene, classes: int) -> LabelledImage:
    image, labels = scene.example(classes)
    return (image, None), lambda answer: miou(answer, labels, classes)
