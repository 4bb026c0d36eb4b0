"""python -m models calibrate: find where a model may stop early, and show on images kept aside that this holds.

Imports executors and readers, no training loop. What is promised, and how, stands in `models/quality.py`.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.anytime import AnytimeModel
from models.commands.options import add_executor
from models.data import datasets
from models.data.files import images_in
from models.directory import QUALITY_FILE, resolve
from models.evaluation.evaluate import Tally
from models.executors.selection import load
from models.imaging.geometry import Box
from models.imaging.images import read_image
from models.network.configs import ModelConfig
from models.quality import KEPT, MOVED, Quality, breakable, fingerprint, threshold, uncertainty

EPSILONS = (0.02, 0.05, 0.10)
"""Bounds that are reported; the calibration is of all."""

Picture = tuple[NDArray[np.uint8], Box | None]
"""An image, uint8 (H, W, 3), and the person's box, for pose."""


@dataclass(frozen=True)
class Observed:
    """What calibration goes by, of every image. All are float64 (images, exits).

    `doubts`: see `quality.doubt`. `changed`: the share of pixels (joints) that changed until the last exit, 0 there.
    `macs`: multiply-adds from the image to the exit.
    """

    doubts: NDArray[np.float64]
    changed: NDArray[np.float64]
    macs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.doubts)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> "Observed":
        return Observed(self.doubts[images], self.changed[images], self.macs[images])

    def threshold(self, epsilon: float) -> float:
        """See `quality.threshold`."""
        return threshold(self.doubts[:, :-1], self.changed[:, :-1], epsilon)


def observe(model: AnytimeModel, pictures: Iterable[Picture]) -> Observed:
    """Run every picture through all exits."""
    rows: list[list[tuple[float, float, float]]] = []
    tally = Tally(model.config.exits)
    for image, box in pictures:
        state = model.begin(image, box)
        side_px = state.frame.scale * model.config.size[0]
        found = [
            (uncertainty(exit_, model.config.task, state.frame), model.render(state).array, exit_.macs)
            for (exit_,) in tally.watch(model, [state])
        ]
        last = found[-1][1]
        rows.append([(unsure, difference(answer, last, side_px), macs) for unsure, answer, macs in found])
    return Observed(*np.moveaxis(np.array(rows, np.float64), 2, 0))


def difference(answer: NDArray[Any], last: NDArray[Any], side_px: float) -> float:
    """The share of pixels with another label; of joints that are further than MOVED of the crop's side away.

    Both are uint8 (H, W), or both float32 (J, 3): x, y, score.
    """
    if answer.dtype == np.uint8:
        return float((answer != last).mean())
    return float((np.hypot(*(answer - last)[:, :2].T) > MOVED * side_px).mean())


def judge(images: Observed, below: float, epsilon: float) -> dict[str, float]:
    """What stopping at a doubt `below` does to `images`.

    `coverage`: share of images whose answer is within epsilon. `early`: share that stopped before the last exit;
    `kept`: share of those within epsilon (1 if there are none). `changed`: mean share of pixels. `saved`: of the GMACs.
    """
    last = images.doubts.shape[1] - 1
    stops = images.doubts < below
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


def cross_validate(images: Observed, epsilon: float, splits: int, seed: int = 0) -> dict[str, float]:
    """Means of `judge` over random halves, one calibrating and the other judged; `held`: in how many of them at least a
    share KEPT of the judged images was within epsilon. `in_order`: the lower coverage of the two halves in their order,
    each judged by the other: what is left of it when neighbours of one clip stay together."""
    half = len(images) // 2
    random = np.random.default_rng(seed)
    judged = []
    for _ in range(splits):
        order = random.permutation(len(images))
        judged.append(judge(images[order[half:]], images[order[:half]].threshold(epsilon), epsilon))
    first, second = images[:half], images[half:]
    return {
        "held": sum(row["coverage"] >= KEPT for row in judged),
        **{name: float(np.mean([row[name] for row in judged])) for name in judged[0]},
        "in_order": min(
            judge(one, other.threshold(epsilon), epsilon)["coverage"]
            for one, other in ((first, second), (second, first))
        ),
    }


def pictures(config: ModelConfig, directory: Path, split: str | None) -> Iterator[Picture]:
    """Images of a data set's split, and the boxes of people; without a split, the images of a folder. With a progress
    bar."""
    if split is None:
        for path in tqdm(images_in(directory), unit=" images"):
            yield read_image(path), None  # as the server reads it
    elif config.task == "pose":
        for person in tqdm(datasets.people(directory, split), unit=" people"):
            yield person.image(), person.box
    else:
        for scene in tqdm(datasets.scenes(directory, split), unit=" images"):
            yield scene.image(), None


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{row['epsilon']:7}  {row['held']:4}/{result['splits']:<4}  {row['coverage']:7.1%}  {row['in_order']:7.1%}"
        f"  {row['early']:6.1%}  {row['kept']:6.1%}  {row['changed']:7.2%}  {row['saved']:6.1%}"
        for row in result["bounds"]
    ]
    lines = ["epsilon  held in  coverage  in order   early    kept  changed   saved", *lines]
    for row in result.get("checked", []):
        lines.append(
            f"{row['epsilon']:7}  {row['split']:>8}  {row['coverage']:7.1%}           "
            f"  {row['early']:6.1%}  {row['kept']:6.1%}  {row['changed']:7.2%}  {row['saved']:6.1%}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory; quality.json is written into it")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a data set's folder, or one of images")
    parser.add_argument("--split", help="images of a data set to calibrate with, best such as did not train the model")
    parser.add_argument("--check", metavar="SPLIT", help="also judge the calibration by the images of this split")
    parser.add_argument("--splits", type=int, default=100, help="random halves to show coverage on (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the random halves")
    add_executor(parser)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    if args.splits < 1:
        raise ValueError(f"--splits is {args.splits}; coverage is shown on at least 1")
    model = load(directory, args.device, args.executor, args.threads)
    if model.config.exits < 2:
        raise ValueError(f"{model.config.name} has 1 exit; only a model of at least 2 can stop early")
    images = observe(model, pictures(model.config, args.data, args.split))
    if len(images) < 2:
        raise ValueError(f"{len(images)} image has no two halves to show coverage on; give 22 or more of {args.data}")
    quality = Quality.fit(
        images.doubts[:, :-1], images.changed[:, :-1], args.split or args.data.resolve().name, fingerprint(directory)
    )
    if not breakable(len(images)):
        raise ValueError(f"{len(images)} images are too few to promise anything; give 22 or more of {args.data}")
    result: dict[str, Any] = {
        "model": model.config.name,
        "source": quality.source,
        "images": len(images),
        "breakable": breakable(len(images)),
        "splits": args.splits,
        "seed": args.seed,
        "bounds": [
            {"epsilon": epsilon, "threshold": quality.threshold(epsilon)}
            | cross_validate(images, epsilon, args.splits, args.seed)
            for epsilon in EPSILONS
        ],
        "executor": model.executor,
        "device": model.device,
    }
    if args.check:
        others = observe(model, pictures(model.config, args.data, args.check))
        result["checked"] = [
            {"epsilon": epsilon, "split": args.check} | judge(others, quality.threshold(epsilon), epsilon)
            for epsilon in EPSILONS
        ]
    quality.save(directory)  # last: what fails before leaves the old one
    print(json.dumps(result) if args.json else table(result))
    if not args.json:
        print(f"written to {directory / QUALITY_FILE}")
    return 0
