"""python -m models compare: the paper's comparisons, every row trained by one recipe and scored on one set of images.

Holds the command; rows are in compare_rows.py, table and figure in compare_report.py.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory, load_weights
from models.commands.options import add_executor
from models.data import datasets
from models.data.street import Scene
from models.directory import WEIGHTS_FILE, resolve
from models.evaluation import evaluate
from models.executors.processor import processor
from models.executors.selection import build, resolve_device
from models.network.configs import ModelConfig
from models.network.families import config
from models.network.network import Network, build_network
from models.training import tasks
from models.training.comparison import report as compare_report
from models.training.comparison.rows import Row, at_inference, rows
from models.training.comparison.sampling import SampledExecutor, SampledNet, SampledSegmentation
from models.training.recipe import Recipe
from models.training.train import CHECKPOINT, Run, at_least_1, setting, stream, train

RECIPE = Path(__file__).parent / "compare.json"


@dataclass(frozen=True)
class Conditions:
    """What all rows share: how and where they are trained and scored."""

    recipe: Recipe
    data: Path
    output: Path
    device: torch.device
    executor: str
    threads: int

    def train(self, row: Row, *, resume: bool, minutes: float, steps: float, score_every: float) -> None:
        """Train `row` to the recipe's end, for `minutes` or `steps`; from its checkpoint if there is one to resume."""
        directory = self.output / row.name
        directory.mkdir(parents=True, exist_ok=True)
        masked = sum(phase.steps for phase in self.recipe.phases if phase.masks)
        make = partial(SampledNet, steps=masked) if row.sampled else build_network
        run = Run.begin(row.model, self.recipe, self.device, make=make)
        if resume and self.step(row.name):
            run.load(directory)
        if run.step == self.recipe.steps:
            return
        self.recipe.save(directory)
        print(f"{row.name}: training from step {run.step}", file=sys.stderr)
        task = (SampledSegmentation if row.sampled else tasks.Segmentation)(
            row.model, self.recipe, self.data, self.device
        )
        with stream(self.device):
            train(run, task, self.recipe, directory, minutes=minutes, steps=steps, score_every=score_every)

    def step(self, weights: str) -> int:
        """How far the row of that name is trained; 0 if it is not. Raises ValueError if it was by another recipe."""
        directory = self.output / weights
        if not (directory / CHECKPOINT).is_file():
            return 0
        self.recipe.check_same(directory)
        return int(torch.load(directory / CHECKPOINT, mmap=True, weights_only=True)["step"])

    def model(self, row: Row) -> AnytimeModel:
        directory = self.output / row.weights
        if row.sampled:
            sampled = SampledNet(row.model)
            load_weights(sampled, directory / WEIGHTS_FILE)
            return SampledExecutor(sampled, str(self.device))
        return self.built(load_directory(directory), row.model)

    def built(self, network: Network, model: ModelConfig) -> AnytimeModel:
        return build(dressed(network, model), str(self.device), self.executor, self.threads)


def dressed(network: Network, model: ModelConfig) -> Network:
    """The weights of `network` under other masks. Where it has no Lambda, the initial value stands.

    Raises ValueError if more than Lambdas differ.
    """
    other = build_network(model)
    try:
        differing = other.load_state_dict(network.state_dict(), strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights of {network.config.name} do not fit {model.name}: {error}") from error
    names = [name for found in differing for name in found if not other.may_lack(name)]
    if names:
        raise ValueError(f"the weights of {network.config.name} do not fit {model.name}: {names[0]} is one's alone")
    return other.eval()


def select(every: Sequence[Row], names: str | None) -> list[Row]:
    """Rows by their names, separated by commas; a figure's name stands for its rows. Raises ValueError."""
    if names is None:
        return list(every)
    known = {row.name for row in every} | {row.figure for row in every}
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no row is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [row for row in every if row.name in wanted or row.figure in wanted]


def scenes_of(recipe: Recipe, data: Path, split: str | None) -> list[Scene]:
    """The images that score every row: a split, or else what the recipe holds out."""
    return datasets.scenes(data, split) if split else tasks.scenes(recipe, data)[1]


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="CamVid's folder")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="table, figure, a folder for each row"
    )
    parser.add_argument("--config", default="camvid-adpc-w18", help="the full method; the other rows derive from it")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help=f"of every row; default: {RECIPE.name}, for a GPU")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="change a field of the recipe")
    parser.add_argument("--rows", metavar="NAME,..", help="these only; names of rows, or of figures for all their rows")
    parser.add_argument("--resume", action="store_true", help="train on from checkpoints; keep scores of the same step")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, each row")
    parser.add_argument("--steps", type=float, default=math.inf, help="of training, each row")
    parser.add_argument(
        "--score-every", type=at_least_1, default=math.inf, metavar="STEPS", help="default: only at the end"
    )
    parser.add_argument("--no-training", action="store_true", help="only score what is trained")
    parser.add_argument(
        "--weights", metavar="MODEL", help="score this ADP-C model under every row's masks; no training"
    )
    parser.add_argument("--split", help="score on this folder of DIR; default: what the recipe holds out")
    add_executor(parser)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    device = torch.device(resolve_device(args.device))
    torch.set_float32_matmul_precision("high")
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    every = rows(config(args.config))
    chosen = select(every, args.rows)
    recipe = Recipe.load(args.recipe).override(dict(map(setting, args.set)))
    shared = Conditions(recipe, args.data, args.output, device, args.executor, args.threads)
    scenes = scenes_of(recipe, args.data, args.split)
    about = {
        "config": args.config,
        "weights": args.weights,
        "scored_on": args.split or (" ".join(recipe.hold_out) or "val"),
        "images": len(scenes),
        "recipe": recipe.to_json(),
    }
    network = load_directory(resolve(args.weights)) if args.weights else None  # before an old report is touched
    report = compare_report.Report.begin(args.output, about, every, resume=args.resume)
    on = hardware(shared.device)

    def score(row: Row, model: AnytimeModel, step: int | None) -> None:
        print(f"{row.name}: scoring", file=sys.stderr)
        report.add(row, evaluate.segmentation(model, scenes) | {"step": step, "hardware": on})

    if network is not None:
        for row in at_inference(chosen):
            if row.name not in report.found:
                score(row, shared.built(network, row.model), None)
    else:
        for name in dict.fromkeys(row.weights for row in chosen):
            owner = next(row for row in every if row.name == name)
            if not args.no_training:
                shared.train(
                    owner,
                    resume=args.resume,
                    minutes=args.minutes,
                    steps=args.steps,
                    score_every=args.score_every,
                )
            step = shared.step(name)
            for row in chosen:
                if row.weights == name and step and report.found.get(row.name, {}).get("step") != step:
                    score(row, shared.model(row), step)
    report.plot()
    print(json.dumps(report.to_json()) if args.json else report.markdown())
    return 0
