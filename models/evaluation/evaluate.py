"""Scores every exit of a model on a data set, through the executor that would serve it, and what the exit costs."""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models.anytime import AnytimeModel, Exit, State, exits_of
from models.data import datasets
from models.data.people import Person
from models.data.scenes import VOID, Scene
from models.evaluation import scores
from models.evaluation.scores import percent
from models.imaging.geometry import BOX_MARGIN, Box, person_square
from models.imaging.postprocess import keypoints
from models.network.configs import GIGA

MEANS = {"miou": "mean", "pck": "mean", "pckh": "mean_pckh", "pckh_by_joint": "mean_pckh_by_joint"}
"""Every score of an exit, and the name of its mean over the exits. A new score is named here and computed below."""


class ExitCosts:
    """What every exit cost, and how much of the next stage it left out, over all images."""

    def __init__(self, exits: int) -> None:
        self.macs: list[list[float]] = [[] for _ in range(exits)]
        self.inactive_share: list[list[float]] = [[] for _ in range(exits)]
        self.ms: list[list[float]] = [[] for _ in range(exits)]

    def watch(self, model: AnytimeModel, states: Sequence[State]) -> Iterator[list[Exit]]:
        """Runs `states` together to the end; yields their exits, one after the other, and records their costs. After a
        final exit it yields that one again for each of the exits that are left."""
        elapsed_s, began_s = 0.0, time.perf_counter()
        for exit_index in exits_of(model, states):
            elapsed_s += time.perf_counter() - began_s
            found = [state.latest() for state in states]
            masks = model.config.masks_after(exit_index)
            self.macs[exit_index - 1] += [exit_.macs for exit_ in found]
            self.inactive_share[exit_index - 1] += [(1 - exit_.active_share) * masks for exit_ in found]
            self.ms[exit_index - 1].append(1000 * elapsed_s / len(states))
            yield found
            began_s = time.perf_counter()

    def by_exit(self) -> list[dict[str, Any]]:
        """For each exit `gmacs` from the image to it and `masked`, the share of positions that it left inactive for the
        next stage (both means), and `ms` from the image to it (the median, for one image)."""
        return [
            {
                "exit": index + 1,
                "gmacs": round(statistics.fmean(self.macs[index]) / GIGA, 4),
                "masked": round(statistics.fmean(self.inactive_share[index]), 4),
                "ms": round(statistics.median(self.ms[index]), 2),
            }
            for index in range(len(self.macs))
        ]


def evaluate(
    model: AnytimeModel, directory: Path, split: str, *, drive: str | None = None, flip: bool = True
) -> dict[str, Any]:
    """Costs and scores of each exit on a split of the data set in `directory`, and the scores' means.

    `drive`: only the scenes of this drive. `flip`: see `pose`. Raises ValueError if no scene is of that drive, or if
    the model has other outputs than the data set, and the errors of the data set's reader.
    """
    if model.config.task == "pose":
        result = pose(model, datasets.people(directory, split), flip=flip)
    else:
        scenes = [scene for scene in datasets.scenes(directory, split) if drive in (None, scene.drive)]
        if not scenes:
            raise ValueError(f"no image of {split} in {directory} is of drive {drive}")
        result = segmentation(model, scenes)
    return result | {
        "model": model.config.name,
        "split": split,
        "executor": model.executor,
        "device": model.device,
        "precision": model.precision,
    }


def segmentation(model: AnytimeModel, scenes: Sequence[Scene]) -> dict[str, Any]:
    """mIoU and the IoU of each class, in percent, of each exit's maps at the images' size. They come from one confusion
    matrix over all images; the IoU is None for a class that is neither labelled nor found."""
    costs = ExitCosts(model.config.exits)
    classes = model.config.outputs
    matrices = torch.zeros(model.config.exits, classes, classes, dtype=torch.float64)
    for scene in tqdm(scenes, unit=" images"):
        image, label_map = scene.example(classes)
        state, labels = model.begin(image), torch.from_numpy(label_map)
        for matrix, _ in zip(matrices, costs.watch(model, [state]), strict=True):
            answer = torch.from_numpy(model.render(state).array)
            matrix.add_(scores.confusion(answer, labels, classes, VOID))
    exits = costs.by_exit()
    for exit_, matrix in zip(exits, matrices, strict=True):
        by_class = scores.iou(matrix)
        exit_["miou"] = percent(by_class.nanmean())
        exit_["classes"] = dict(zip(model.config.names, map(percent, by_class), strict=True))
    return _with_means(exits)


def pose(model: AnytimeModel, people: Sequence[Person], flip: bool = True) -> dict[str, Any]:
    """PCK@0.2 and PCKh@0.5 in percent of each exit, None where no joint can be scored.

    `flip`: heatmaps are averaged with those of the mirrored image. Where the data set states no head sizes (LSP), the
    head's size is the distance between its two ends, if both are labelled.
    """
    costs = ExitCosts(model.config.exits)
    right: list[list[Tensor]] = [[] for _ in range(model.config.exits)]
    right_by_head: list[list[Tensor]] = [[] for _ in range(model.config.exits)]
    for person in tqdm(people, unit=" people"):
        image = person.image()
        joints = torch.from_numpy(person.joints_for(model.config.outputs))[None]
        states = [model.begin(image, person.box)]
        if flip:
            states.append(model.begin(*mirrored(image, person.box)))
        skeleton = person.skeleton
        head_px = scores.head_size(joints, skeleton) if person.head_px is None else torch.tensor([person.head_px])
        for by_torso, by_head, found in zip(right, right_by_head, costs.watch(model, states), strict=True):
            heatmaps = found[0].scores
            if flip:
                heatmaps = (heatmaps + unmirrored(found[1].scores, model.config.flip_pairs)) / 2
            points = torch.from_numpy(keypoints(heatmaps, states[0].frame)[None, :, :2])
            by_torso.append(scores.pck(points, joints, skeleton))
            by_head.append(scores.pckh(points, joints, head_px, skeleton))
    exits = costs.by_exit()
    for exit_, by_torso, by_head in zip(exits, right, right_by_head, strict=True):
        exit_["pck"] = percent(torch.cat(by_torso).nanmean())
        exit_["pckh"], exit_["pckh_by_joint"] = map(percent, scores.means(torch.cat(by_head)))
    return _with_means(exits)


def mirrored(image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.uint8], Box]:
    """The mirrored image, uint8 (H, W, 3), and the box whose crop of it mirrors the crop of `box` to the pixel."""
    height, width = image.shape[:2]
    left, top, length = person_square(height, width, box)
    side, margin = length / BOX_MARGIN, (length - length / BOX_MARGIN) / 2
    return np.ascontiguousarray(image[:, ::-1]), (width - left - length + margin, top + margin, side, side)


def unmirrored(heatmaps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Turns heatmaps (J, h, w) of a mirrored crop back into those of the crop, with the joints of each pair exchanged.

    A position p is centred on pixel 4p of the crop, whose mirror image lies between two positions. Moving everything by
    one position to the right comes closest, as in HRNet's code (Sun et al., 2019).
    """
    order = torch.arange(len(heatmaps))
    for a, b in pairs:
        order[a], order[b] = b, a
    turned = heatmaps.flip(-1)[order.to(heatmaps.device)]
    return torch.cat([turned[:, :, :1], turned[:, :, :-1]], 2)


def mean_of(exits: Sequence[dict[str, Any]], score: str) -> float | None:
    """The mean of a score over the exits; None if an exit has none."""
    values = [exit_[score] for exit_ in exits]
    return None if None in values else round(statistics.fmean(values), 2)


def _with_means(exits: list[dict[str, Any]]) -> dict[str, Any]:
    return {"exits": exits} | {mean: mean_of(exits, score) for score, mean in MEANS.items() if score in exits[0]}
