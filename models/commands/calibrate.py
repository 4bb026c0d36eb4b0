"""`python -m models calibrate`: find where a model may stop early, and write `quality.json` into its directory."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.commands.options import add_executor, add_precision
from models.directory import QUALITY_FILES, fingerprint, resolve
from models.evaluation.calibrate import calibrate, check
from models.executors.selection import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory; quality.json is written into it")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of a data set or of images")
    parser.add_argument(
        "--split", help="split of the data set to calibrate with; best one that did not train the model"
    )
    parser.add_argument("--check", metavar="SPLIT", help="also judge the calibration by the images of this split")
    parser.add_argument("--splits", type=int, default=100, help="random halves to measure coverage on; default: 100")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random halves")
    add_executor(parser)
    add_precision(parser)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    if args.splits < 1:
        raise ValueError(f"--splits is {args.splits}; coverage is shown on at least 1")
    model = load(directory, args.device, args.executor, args.threads, args.precision)
    quality, result = calibrate(
        model, args.data, args.split, fingerprint(directory), halvings=args.splits, seed=args.seed
    )
    if args.check:
        result["checked"] = check(model, quality, args.data, args.check)
    quality.save(directory)  # last, so that a failure keeps the old file
    print(json.dumps(result) if args.json else table(result))
    if not args.json:
        print(f"written to {directory / QUALITY_FILES[model.precision]}")
    return 0


def table(result: Mapping[str, Any]) -> str:
    """A row for each bound, with means over random halves, and one for each bound that was judged on another split."""
    head = "epsilon  held in  coverage  in order   early    kept  changed   saved"
    bounds = [
        _line(bound, f"{bound['held']:4}/{result['splits']:<4}", f"{bound['in_order']:7.1%}")
        for bound in result["bounds"]
    ]
    checked = [_line(bound, f"{bound['split']:>8}", " " * 9) for bound in result.get("checked", [])]
    return "\n".join([head, *bounds, *checked])


def _line(bound: Mapping[str, Any], held: str, ordered: str) -> str:
    return (
        f"{bound['epsilon']:7}  {held}  {bound['coverage']:7.1%}  {ordered}"
        f"  {bound['early']:6.1%}  {bound['kept']:6.1%}  {bound['changed']:7.2%}  {bound['saved']:6.1%}"
    )
