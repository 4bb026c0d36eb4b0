"""`python -m models train`: train a configuration on a data set."""

import argparse
import math
from pathlib import Path

import torch

from models.commands.interrupt import Interrupt
from models.commands.options import at_least_1, check_installed
from models.directory import ZOO
from models.executors.selection import resolve_device
from models.network.families import config
from models.training import losses, tasks
from models.training.plot import plot_history
from models.training.recipe import FILE, Recipe, setting
from models.training.train import CHECKPOINT, Run, Speed, stream, train

PLOT = "training.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a named configuration; an unknown name lists them")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument("--recipe", type=Path, help=f"default: {FILE} of the shipped model of that name")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="change a field of the recipe, e.g. phases.0.steps=1000",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; --resume goes on")
    parser.add_argument(
        "--stop-after", type=float, default=math.inf, metavar="STEPS", help="stop after so many steps; --resume goes on"
    )
    parser.add_argument("--score-every", type=at_least_1, default=1000, metavar="STEPS")
    parser.add_argument(
        "--mixed",
        action=argparse.BooleanOptionalAction,
        help="multiply in bfloat16; default: on a GPU, and on a CPU with AVX-512 BF16",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="use torch.compile, which takes minutes first and makes steps a tenth faster",
    )


def main(args: argparse.Namespace) -> int:
    """The first Ctrl-C ends the run after the current step, saves it and raises KeyboardInterrupt; a second one raises
    it at once."""
    check_installed("matplotlib")
    torch.set_float32_matmul_precision("high")
    device = torch.device(resolve_device(args.device))
    model = config(args.config)
    recipe = Recipe.load(args.recipe or ZOO / args.config / FILE).override(dict(map(setting, args.set)))
    if args.resume:
        recipe.check_same(args.output)
    elif (args.output / CHECKPOINT).exists():
        raise ValueError(f"{args.output} holds a run; --resume goes on with it, or choose another --output")
    run = Run.begin(model, recipe, device, speed=Speed.of(device, compiled=args.compile))
    if args.resume:
        run.load(args.output)
    task = tasks.load(model, recipe, args.data, device)
    if args.compile and isinstance(task, tasks.Segmentation):
        task.compare = losses.segmentation  # the kernels' own cannot be compiled
    args.output.mkdir(parents=True, exist_ok=True)
    recipe.save(args.output)
    epochs = recipe.images_before(recipe.steps) / task.examples
    print(
        f"{model.name}: {task.examples} examples, {epochs:.0f} epochs in {recipe.steps} steps on {device}", flush=True
    )
    with stream(device), Interrupt() as interrupt:
        train(
            run,
            task,
            recipe,
            args.output,
            minutes=args.minutes,
            steps=args.stop_after,
            score_every=args.score_every,
            mixed=args.mixed,
            compiled=args.compile,
            stopping=lambda: interrupt.asked,
        )
    if run.history:
        plot_history(run.history, args.output / PLOT)
    if interrupt.asked and run.step < recipe.steps:
        raise KeyboardInterrupt(f"stopped at step {run.step} of {recipe.steps}; --resume goes on")
    return 0
