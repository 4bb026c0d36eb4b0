"""`python -m models calibrate`: find where a model may stop early and what each exit is worth, and write `quality.json`
and `gains.json` into its directory."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.commands.options import add_executor, add_precision, add_threads, check_writable
from models.directory import GAINS_FILES, QUALITY_FILES, fingerprint, resolve
from models.evaluation.calibrate import calibrate, check
from models.evaluation.gains import measure, report
from models.evaluation.observations import examples, observe
from models.executors.selection import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory; its files are written into it")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of a data set or of images")
    parser.add_argument(
        "--split",
        help="split of the data set to calibrate with; best one that did not train the model. Without it, "
        "DIR is a folder of images without labels, and gains.json is not written",
    )
    parser.add_argument("--check", metavar="SPLIT", help="also judge the calibration by the images of this split")
    parser.add_argument("--splits", type=int, default=100, help="random halves to measure coverage on; default: 100")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random halves")
    add_executor(parser)
    add_precision(parser)
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    if args.splits < 1:
        raise ValueError(f"--splits is {args.splits}; coverage is shown on at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; give 0 or more")
    check_writable(directory)
    model = load(directory, args.device, args.executor, args.threads, args.precision)
    if model.config.exits < 2:
        raise ValueError(f"{model.config.name} has 1 exit; only a model of at least 2 can stop early")
    images = examples(model.config, args.data, args.split)
    others = examples(model.config, args.data, args.check) if args.check else None  # now, since a split may be missing
    observed = observe(model, images)
    source, made_for = args.split or args.data.resolve().name, fingerprint(directory)
    quality, result = calibrate(model, observed, source, made_for, halvings=args.splits, seed=args.seed)
    written = [QUALITY_FILES[model.precision]]
    if others is not None:
        result["checked"] = check(quality, observe(model, others), args.check)
    if args.split:
        gains = measure(model, observed, source, made_for)
        result["gains"] = report(gains)
        written.append(GAINS_FILES[model.precision])
        gains.save(directory)
    quality.save(directory)  # both are saved last, so that a failure keeps the old files
    print(json.dumps(result) if args.json else table(result))
    if not args.json:
        print(f"written to {directory}: {' and '.join(written)}")
    return 0


def table(result: Mapping[str, Any]) -> str:
    """A row for each bound, with means over random halves, and one for each bound that was judged on another split;
    then a row for the gain of each exit."""
    head = "epsilon  held in  coverage  in order   early    kept  changed   saved"
    bounds = [
        _line(bound, f"{bound['held']:4}/{result['splits']:<4}", f"{bound['in_order']:7.1%}")
        for bound in result["bounds"]
    ]
    checked = [_line(bound, f"{bound['split']:>8}", " " * 9) for bound in result.get("checked", [])]
    gains = [_gain(exit_) for exit_ in result.get("gains", [])]
    return "\n".join([head, *bounds, *checked, *gains])


def _line(bound: Mapping[str, Any], held: str, ordered: str) -> str:
    return (
        f"{bound['epsilon']:7}  {held}  {bound['coverage']:7.1%}  {ordered}"
        f"  {bound['early']:6.1%}  {bound['kept']:6.1%}  {bound['changed']:7.2%}  {bound['saved']:6.1%}"
    )


def _gain(exit_: Mapping[str, Any]) -> str:
    predictors = exit_["predictors"]
    helps = f"{' and '.join(predictors)} help to predict it (+- {exit_['error']:.3f})" if predictors else ""
    return (
        f"exit {exit_['exit']} adds {exit_['gain']:.3f} +- {exit_['mean_error']:.3f} of utility; "
        f"{helps or 'nothing helps to predict it'}"
    )
