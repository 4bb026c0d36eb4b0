"""`python -m models gpu-day`: check, measure or train on a GPU that is available for minutes only."""

import argparse
import math
import platform
import shlex
import sys
from pathlib import Path

from models.gpu_day.plan import PARTS, Training, stages_of
from models.gpu_day.stages import Report, run

MINUTES = {"check": 4.0, "train": 8.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, required=True, help="check and measure, or train")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the results")
    parser.add_argument("--data", type=Path, metavar="CAMVID", help="folder of CamVid; --part train needs it")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"time limit; default: {', '.join(f'{m:g} for {p}' for p, m in MINUTES.items())}",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run with tiny networks")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="run only these stages")
    train = parser.add_argument_group("train")
    train.add_argument("--name", default="camvid-adpc-w18", help="the model to train")
    train.add_argument("--holdout", metavar="DRIVE", help="first train without this drive, for example 0001TP")
    train.add_argument("--init", metavar="MODEL", help="start from this model's weights; default: random weights")
    train.add_argument(
        "--distillation", type=float, default=0.0, metavar="W", help="weight of distillation from exit 4"
    )


def main(args: argparse.Namespace) -> int:
    """Returns status 1 if a stage that ran did not succeed.

    Raises ValueError if the time is not finite and above 0, if the output folder has files, if a stage is unknown, or
    if training has no data.
    """
    minutes = MINUTES[args.part] if args.minutes is None else args.minutes
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes is {minutes:g}; give a finite number above 0")
    training = Training(args.name, args.holdout or "", args.init or "", args.distillation)
    stages = stages_of(args.part, minutes, training, args.stages)
    if args.part == "train" and args.data is None:
        raise ValueError("training needs images; give --data the folder of CamVid")
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"{args.output} has files already; give --output a new folder")
    about = {"command": shlex.join(sys.argv), "python": platform.python_version(), "device": args.device}
    report = Report(args.output, about)
    arguments = {
        "data": str(args.data.resolve()) if args.data else None,
        "output": str(args.output.resolve()),
        "device": args.device,
    }
    environment = {"TRITON_INTERPRET": "1"} if args.device == "cpu" else {}
    try:
        succeeded = run(stages, report, minutes, arguments, environment)
    finally:
        report.close()
    return 0 if succeeded else 1
