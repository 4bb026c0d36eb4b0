"""`python -m models quantise`: find the scales of a model in eight bits, write `int8.json`, and report what is lost."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.anytime import AnytimeModel
from models.checkpoint import load_directory
from models.commands.options import add_threads, check_writable
from models.commands.tables import cell
from models.directory import SCALES_FILE, fingerprint, resolve
from models.evaluation.quantise import examples, quantise
from models.evaluation.ranges import PERCENTILE
from models.executors.registry import EXECUTORS
from models.executors.selection import build
from models.network.adpc import AdpcNet
from models.quantisation import Scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a data set's folder, or one of images")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"{SCALES_FILE} is written there; default: the model's"
    )
    parser.add_argument("--images", type=int, default=100, metavar="N", help="images to find ranges on (default: 100)")
    parser.add_argument("--split", default="train", help="split of a data set to find ranges on (default: train)")
    parser.add_argument("--check", default="val", metavar="SPLIT", help="split to compare precisions on (default: val)")
    parser.add_argument("--compare", type=int, metavar="N", help="images to compare precisions on; default: all")
    parser.add_argument(
        "--percentile",
        type=float,
        default=PERCENTILE,
        metavar="P",
        help=f"share of a feature's values that is not saturated, in percent; 100: all (default: {PERCENTILE})",
    )
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    for name, least in (("images", 1), ("compare", 1)):
        given = getattr(args, name)
        if given is not None and given < least:
            raise ValueError(f"--{name} is {given}; give at least {least}")
    if not 0 < args.percentile <= 100:
        raise ValueError(f"--percentile is {args.percentile:g}; give more than 0 and at most 100")
    if args.output is not None and not args.output.is_dir():
        raise FileNotFoundError(f"there is no folder {args.output}; make it first")
    output = args.output or directory
    check_writable(output)
    network = load_directory(directory)
    if not isinstance(network, AdpcNet):
        family = network.config.family
        raise ValueError(f"{network.config.name} is of family {family}; only family adpc is quantised")  # noqa: TRY004

    def make(scales: Scales | None) -> AnytimeModel:
        model = build(load_directory(directory), "cpu", threads=args.threads, scales=scales)
        if EXECUTORS[model.executor].own_threads:  # torch's would spin beside them after each scoring
            torch.set_num_threads(1)
        return model

    found = examples(network.config, args.data, (args.split, args.check), args.images, args.compare)
    scales = quantise(network, found, make, fingerprint=fingerprint(directory), percentile=args.percentile)
    scales.save(output)
    print(json.dumps(scales.report) if args.json else table(scales))
    if not args.json:
        print(f"written to {output / SCALES_FILE}")
    return 0


def table(scales: Scales) -> str:
    """The scores of every exit in both precisions, how often their answers agree, and active shares."""
    report = scales.report
    rows = report["exits"]
    name = "pck" if "pck_fp32" in rows[0] else "miou"
    agreement = "shift" if "shift" in rows[0] else "equal"
    head = f"exit  {name} fp32    int8    lost    {agreement}  active fp32    int8"
    lines = [_line(row, name, agreement) for row in rows]
    kept = ", ".join(report["float_groups"]) or "none"
    return "\n".join(
        [
            f"scales from {report['images']} images of {scales.source}; compared on {report['compared_images']} images "
            f"of {report['compared_on']}",
            head,
            *lines,
            f"layers in float32: {kept}",
        ]
    )


def _line(row: Mapping[str, Any], name: str, agreement: str) -> str:
    scores = f"{cell(row[f'{name}_fp32']):>{len(name) + 5}}  {cell(row[f'{name}_int8']):>6}  {cell(row['lost']):>6}"
    shares = f"{row[agreement]:>7.2%}  {row['active_fp32']:>11.1%}  {row['active_int8']:>6.1%}"
    return f"{row['exit']:4}  {scores}  {shares}"
