"""python -m models evaluate: score every exit of a model on a data set, through the executor that would serve it.

Imports executors and readers, no training loop.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models.anytime import AnytimeModel, Exit, State, exits_of
from models.checkpoint import load_directory
from models.commands.options import add_executor, add_threshold, with_threshold
from models.data import datasets
from models.data.people import Person
from models.data.street import VOID, Scene
from models.directory import resolve
from models.evaluation import scores
from models.evaluation.scores import percent
from models.executors.registry import EXECUTORS
from models.executors.selection import build
from models.imaging.geometry import BOX_MARGIN, Box, person_square
from models.imaging.postprocess import keypoints
from models.network.configs import GIGA

POSE_MEANS = {"mean": "pck", "mean_pckh": "pckh", "mean_pckh_by_joint": "pckh_by_joint"}
"""What is averaged over the exits."""


class Tally:
    """What every exit cost and settled, over all images."""

    def __init__(self, exits: int) -> None:
        self.macs: list[list[float]] = [[] for _ in range(exits)]
        self.masked: list[list[float]] = [[] for _ in range(exits)]
        self.ms: list[list[float]] = [[] for _ in range(exits)]

    def watch(self, model: AnytimeModel, states: Sequence[State]) -> Iterator[list[Exit]]:
        """Run `states` together to the end; yields their exits, one by one, and adds up their costs."""
        elapsed_s, began_s = 0.0, time.perf_counter()
        for exit_index in exits_of(model, states):
            elapsed_s += time.perf_counter() - began_s
            found = [state.latest() for state in states]
            masks = model.config.masks_after(exit_index)
            self.macs[exit_index - 1] += [exit_.macs for exit_ in found]
            self.masked[exit_index - 1] += [(1 - exit_.active_share) * masks for exit_ in found]
            self.ms[exit_index - 1].append(1000 * elapsed_s / len(states))
            yield found
            began_s = time.perf_counter()

    def rows(self) -> list[dict[str, Any]]:
        """Of each exit: `gmacs` up to it and `masked`, the share of positions that it settled for the next (means),
        and `ms` up to it (median, for one image)."""
        return [
            {
                "exit": index + 1,
                "gmacs": round(statistics.fmean(self.macs[index]) / GIGA, 4),
                "masked": round(statistics.fmean(self.masked[index]), 4),
                "ms": round(statistics.median(self.ms[index]), 2),
            }
            for index in range(len(self.macs))
        ]


def segmentation(model: AnytimeModel, scenes: Sequence[Scene]) -> dict[str, Any]:
    """mIoU in percent of each exit's map at the images' size, from one confusion matrix over all images; None for a
    class that is neither labelled nor found."""
    tally = Tally(model.config.exits)
    classes = model.config.outputs
    matrices = torch.zeros(model.config.exits, classes, classes, dtype=torch.float64)
    for scene in tqdm(scenes, unit=" images"):
        state = model.begin(scene.image())
        labels = torch.from_numpy(scene.labels_for(classes))
        for (found,) in tally.watch(model, [state]):
            labelled = torch.from_numpy(model.render(state).array)
            matrices[found.index - 1] += scores.confusion(labelled, labels, classes, VOID)
    rows = tally.rows()
    for row, matrix in zip(rows, matrices, strict=True):
        by_class = scores.iou(matrix)
        row["miou"] = percent(by_class.nanmean())
        row["classes"] = dict(zip(model.config.names, map(percent, by_class), strict=True))
    return {"exits": rows, "mean": mean_of(rows, "miou")}


def pose(model: AnytimeModel, people: Sequence[Person], flip: bool = True) -> dict[str, Any]:
    """PCK@0.2 and PCKh@0.5 in percent of each exit, None where no joint can be scored. `flip`: heatmaps are averaged
    with those of the mirrored image.

    Where the data set has no head boxes (LSP), the head's size is the distance from upper neck to head top, if both
    are labelled.
    """
    tally = Tally(model.config.exits)
    right: list[list[Tensor]] = [[] for _ in range(model.config.exits)]
    right_by_head: list[list[Tensor]] = [[] for _ in range(model.config.exits)]
    for person in tqdm(people, unit=" people"):
        image = person.image()
        states = [model.begin(image, person.box)]
        if flip:
            states.append(model.begin(*mirrored(image, person.box)))
        joints = torch.from_numpy(person.joints)[None]
        head = scores.head_size(joints) if person.head_px is None else torch.tensor([person.head_px])
        for found in tally.watch(model, states):
            heatmaps = found[0].scores
            if flip:
                heatmaps = (heatmaps + unmirrored(found[1].scores, model.config.flip_pairs)) / 2
            points = torch.from_numpy(keypoints(heatmaps, states[0].frame)[None, :, :2])
            right[found[0].index - 1].append(scores.correct(points, joints))
            right_by_head[found[0].index - 1].append(scores.correct_by_head(points, joints, head))
    rows = tally.rows()
    for row, by_torso, by_head in zip(rows, right, right_by_head, strict=True):
        row["pck"] = percent(torch.cat(by_torso).nanmean())
        row["pckh"], row["pckh_by_joint"] = map(percent, scores.means(torch.cat(by_head)))
    return {"exits": rows} | {name: mean_of(rows, score) for name, score in POSE_MEANS.items()}


def mirrored(image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.uint8], Box]:
    """The image from right to left, and the box whose crop is the mirror image of this box's, to the pixel."""
    height, width = image.shape[:2]
    left, top, length = person_square(height, width, box)
    side, margin = length / BOX_MARGIN, (length - length / BOX_MARGIN) / 2
    return np.ascontiguousarray(image[:, ::-1]), (width - left - length + margin, top + margin, side, side)


def unmirrored(heatmaps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Heatmaps (J, h, w) of a mirrored crop as those of the crop: turned back, left and right joints exchanged.

    Position p of 4-pixel stride is centred on pixel 4p, whose mirror image is not on the grid; moving by one position
    comes closest (Sun et al., 2019).
    """
    order = torch.arange(len(heatmaps))
    for a, b in pairs:
        order[a], order[b] = b, a
    turned = heatmaps.flip(-1)[order.to(heatmaps.device)]
    return torch.cat([turned[:, :, :1], turned[:, :, :-1]], 2)


def mean_of(rows: Sequence[dict[str, Any]], score: str) -> float | None:
    """None if an exit has none."""
    values = [row[score] for row in rows]
    return None if None in values else round(statistics.fmean(values), 2)


def table(result: dict[str, Any]) -> str:
    """Scores in percent and costs of every exit, and the scores' means."""
    means = {"mean": "miou"} if "miou" in result["exits"][0] else POSE_MEANS
    names = means.values()
    lines = [
        f"{row['exit']:4}{cells(names, row)}  {row['gmacs']:6.3f}  {row['masked']:6.1%}  {row['ms']:7.1f}"
        for row in result["exits"]
    ]
    head = f"exit{''.join(f'  {name:>6}' for name in names)}   GMACs  masked       ms"
    return "\n".join([head, *lines, f"mean{cells(names, {means[name]: result[name] for name in means})}"])


def cells(names: Iterable[str], row: Mapping[str, float | None]) -> str:
    return "".join(f"  {scores.shown(row[name]):>{max(len(name), 6)}}" for name in names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of CamVid, Cityscapes, LSP or MPII"
    )
    parser.add_argument("--split", required=True, help="train, val; test of CamVid, all of LSP, trainval of MPII")
    parser.add_argument("--drive", help="only this drive of CamVid (0001TP ...) or city of Cityscapes")
    add_executor(parser)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's")
    add_threshold(parser)
    parser.add_argument("--no-masks", action="store_true", help="compute every position at every exit")
    parser.add_argument("--no-flip", action="store_true", help="pose: do not average with the mirrored image")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    network = load_directory(resolve(args.model))
    if args.drive and network.config.task == "pose":
        raise ValueError("--drive chooses street scenes, and this is a pose model; leave it out")
    config = with_threshold(network.config, args.threshold)
    if args.no_masks:
        if config.masking is None:
            raise ValueError(f"{config.name} has no masks; leave --no-masks out")
        config = replace(config, masking=replace(config.masking, adaptivity="training"))
    network.config = config
    model = build(network, args.device, args.executor, args.threads)
    if EXECUTORS[model.executor].own_threads:  # torch's would spin beside them after each scoring
        torch.set_num_threads(1)
    if network.config.task == "pose":
        result = pose(model, datasets.people(args.data, args.split), flip=not args.no_flip)
    else:
        scenes = [scene for scene in datasets.scenes(args.data, args.split) if args.drive in (None, scene.drive)]
        if not scenes:
            raise ValueError(f"no image of {args.split} in {args.data} is of drive {args.drive}")
        result = segmentation(model, scenes)
    result |= {"model": network.config.name, "split": args.split, "executor": model.executor, "device": model.device}
    print(json.dumps(result, allow_nan=False) if args.json else table(result))
    return 0
