"""`python -m models pckh`: PCKh of a file of predictions against MPII's ground truth."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.commands.tables import cell
from models.data.mpii import read_truth
from models.evaluation.pckh import rates, read_predictions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, metavar="PRED", help=".mat with `preds`, .npy or .json: (N, 16, 2)")
    parser.add_argument("--annotations", type=Path, required=True, metavar="MAT", help="MPII's gt_valid.mat")
    parser.add_argument(
        "--within",
        type=float,
        nargs="+",
        default=[0.5, 0.1],
        metavar="SHARE",
        help="how far off a joint may be, as a share of the head's size; default: 0.5 0.1 (HRNet's Mean@0.1 uses 0.11)",
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def main(args: argparse.Namespace) -> int:
    points, truth = read_predictions(args.predictions), read_truth(args.annotations)
    found = [rates(points, truth, share) for share in args.within]
    print(json.dumps({"people": len(points), "pckh": found}, allow_nan=False) if args.json else table(found))
    return 0


def table(found: Sequence[Mapping[str, float | None]]) -> str:
    """A line for each share. `mean` weighs every labelled joint equally, `mean_by_joint` every kind of joint."""
    lines = [list(found[0]), *([cell(value) for value in values.values()] for values in found)]
    return "\n".join(
        "  ".join(f"{text:>{len(name)}}" for text, name in zip(line, found[0], strict=True)) for line in lines
    )
