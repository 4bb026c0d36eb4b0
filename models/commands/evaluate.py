"""`python -m models evaluate`: score every exit of a model on a data set."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import load_directory
from models.commands.options import add_executor, add_precision, add_threads, add_threshold, with_threshold
from models.commands.tables import cell
from models.directory import read_config, resolve
from models.evaluation.evaluate import MEANS, evaluate
from models.executors.registry import EXECUTORS
from models.executors.selection import build_fastest
from models.network.configs import ModelConfig
from models.network.network import Network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of CamVid, Cityscapes, LSP or MPII"
    )
    parser.add_argument("--split", required=True, help="train or val; CamVid also has test, LSP all, MPII trainval")
    parser.add_argument("--drive", help="only this drive of CamVid (0001TP ...) or city of Cityscapes")
    add_executor(parser)
    add_precision(parser)
    add_threads(parser)
    add_threshold(parser)
    parser.add_argument("--no-masks", action="store_true", help="compute every position at every exit")
    parser.add_argument("--no-flip", action="store_true", help="pose: do not average with the mirrored image")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    config = read_config(directory)
    if args.drive and config.task == "pose":
        raise ValueError("--drive chooses street scenes, and this is a pose model; leave it out")
    config = with_threshold(config, args.threshold)
    if args.no_masks:
        config = without_masks(config)

    def make() -> Network:
        network = load_directory(directory)
        network.config = config
        return network

    model, _ = build_fastest(make, args.device, args.executor, args.threads, args.precision, directory=directory)
    if EXECUTORS[model.executor].own_threads:  # torch's own would spin beside them
        torch.set_num_threads(1)
    result = evaluate(model, args.data, args.split, drive=args.drive, flip=not args.no_flip)
    print(json.dumps(result, allow_nan=False) if args.json else table(result))
    return 0


def without_masks(config: ModelConfig) -> ModelConfig:
    """The configuration with its masks left out at inference. Raises ValueError if it has none."""
    if config.masking is None:
        raise ValueError(f"{config.name} has no masks; leave --no-masks out")
    return replace(config, masking=replace(config.masking, adaptivity="training"))


def table(result: Mapping[str, Any]) -> str:
    """A row for each exit, with its scores in percent and its costs, and a row with the means of the scores."""
    names = [name for name in MEANS if name in result["exits"][0]]
    lines = [
        f"{exit_['exit']:4}{_cells(names, exit_)}  {exit_['gmacs']:6.3f}  {exit_['masked']:6.1%}  {exit_['ms']:7.1f}"
        for exit_ in result["exits"]
    ]
    head = f"exit{''.join(f'  {name:>6}' for name in names)}   GMACs  masked       ms"
    return "\n".join([head, *lines, f"mean{_cells(names, {name: result[MEANS[name]] for name in names})}"])


def _cells(names: Iterable[str], values: Mapping[str, float | None]) -> str:
    return "".join(f"  {cell(values[name]):>{max(len(name), 6)}}" for name in names)
