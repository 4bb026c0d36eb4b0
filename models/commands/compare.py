"""`python -m models compare`: the paper's comparisons, every row trained by one recipe and scored on one set of
images."""

import argparse
import json
import math
from pathlib import Path

import torch

from models.checkpoint import load_directory
from models.commands.interrupt import Interrupt
from models.commands.options import add_executor, add_threads, at_least_1, check_installed
from models.directory import resolve
from models.executors.machine import usable
from models.executors.selection import resolve_device
from models.network.families import config
from models.training import comparison
from models.training.comparison.report import ComparisonReport
from models.training.comparison.runner import Runner, TrainingLimits, hardware, scored_scenes, with_masks_of
from models.training.comparison.variants import at_inference, select, variants
from models.training.recipe import Recipe, setting

RECIPE = Path(comparison.__file__).parent / "recipe-gpu.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="CamVid's folder")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="table, figure, a folder for each row"
    )
    parser.add_argument("--config", default="camvid-adpc-w18", help="the full method; the other rows derive from it")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help=f"trains every row; default: {RECIPE.name}, for a GPU"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="change a field of the recipe")
    parser.add_argument("--rows", metavar="NAME,..", help="only these rows; the name of a figure means all its rows")
    parser.add_argument("--resume", action="store_true", help="go on from checkpoints; keep scores of the same step")
    parser.add_argument("--minutes", type=float, default=math.inf, help="train each row at most this long")
    parser.add_argument("--steps", type=float, default=math.inf, help="train each row at most so many steps more")
    parser.add_argument(
        "--score-every", type=at_least_1, default=math.inf, metavar="STEPS", help="default: only at the end"
    )
    parser.add_argument("--no-training", action="store_true", help="only score rows that have been trained")
    parser.add_argument(
        "--weights", metavar="MODEL", help="score this ADP-C model under every row's masks; no training"
    )
    parser.add_argument("--split", help="score on this folder of DIR; default: what the recipe holds out")
    add_executor(parser)
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    check_installed("matplotlib")
    device = torch.device(resolve_device(args.device))
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(args.threads or usable())
    every = variants(config(args.config))
    chosen = select(every, args.rows)
    recipe = Recipe.load(args.recipe).override(dict(map(setting, args.set)))
    scenes = scored_scenes(recipe, args.data, args.split)
    runner = Runner(recipe, args.data, args.output, device, args.executor, args.threads, scenes, hardware(device))
    about = {
        "config": args.config,
        "weights": args.weights,
        "scored_on": args.split or (" ".join(recipe.hold_out) or "val"),
        "images": len(scenes),
        "recipe": recipe.to_json(),
    }
    network = None
    if args.weights:  # before an old report is touched
        network = load_directory(resolve(args.weights))
        with_masks_of(network, config(args.config))
        if not at_inference(chosen):
            raise ValueError(
                f"--rows {args.rows} has no row that differs from {args.config} in its masks alone, and --weights "
                "scores no others; choose rows such as adpc, window or criteria"
            )
    report = ComparisonReport.begin(args.output, about, every, resume=args.resume)
    if network is not None:
        runner.score_weights(network, chosen, report)
    else:
        with Interrupt() as interrupt:
            limits = TrainingLimits(args.resume, args.minutes, args.steps, args.score_every)
            training = None if args.no_training else limits
            runner.train_and_score(chosen, every, report, training, lambda: interrupt.asked)
        if interrupt.asked:
            raise KeyboardInterrupt("stopped; --resume goes on")
    report.plot()
    print(json.dumps(report.to_json()) if args.json else report.markdown())
    return 0
