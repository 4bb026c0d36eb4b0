"""Training as two stages: one finds the fastest form of a step, the other trains schedules that fill the time.

`python -m models.gpu_day.training profile|schedule` runs one alone. It needs PyTorch with CUDA, Triton and pydantic.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.gpu_day.profile import profile as profile_forms
from models.gpu_day.schedules import schedules as train_plans
from models.gpu_day.sizing import SchedulePlan
from models.gpu_day.stages import pack
from models.gpu_day.variants import VARIANTS


def profile(data: Path, output: Path, deadline: float, line: Callable[[str], None], device: str) -> bool:
    """profile.json with steps a second of every form of a step; whether one of them ran."""
    torch.set_float32_matmul_precision("high")
    return profile_forms(data, output, deadline, line, device)["winner"] is not None


def schedules(  # noqa: PLR0917 - a job is given them by name
    data: Path,
    output: Path,
    deadline: float,
    line: Callable[[str], None],
    device: str,
    plans: Sequence[Mapping[str, Any]],
    how: Mapping[str, Any],
) -> bool:
    """Trains `plans`, each given by the fields of `SchedulePlan`. `how`: the model's `name`, the `init` of plans
    without one, and `distillation`."""
    torch.set_float32_matmul_precision("high")
    usual = {"init": how.get("init")}
    planned = [SchedulePlan.from_json({**usual, **plan}) for plan in plans]
    rest = {key: value for key, value in how.items() if key != "init"}
    results = train_plans(data, output, deadline, line, device, plans=planned, **rest)
    return bool(results) and not any("error" in result for result in results)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.gpu_day.training", description=__doc__, allow_abbrev=False)
    parser.add_argument("stage", choices=("profile", "schedule"))
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder, or a file of people's crops")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for a tar file of each plan, and a JSON file"
    )
    parser.add_argument("--seconds", type=float, required=True, help="time limit of the stage")
    parser.add_argument("--name", default="camvid-adpc-w18", help="the model to train")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plan", type=_plan, action="append", default=[], metavar="JSON", help="fields of a plan")
    parser.add_argument("--distillation", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=len(VARIANTS), help="profile only so many variants")
    parser.add_argument(
        "--benchmark", action=argparse.BooleanOptionalAction, default=True, help="let cuDNN try algorithms"
    )
    args = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    deadline = time.monotonic() + args.seconds
    variants = [replace(variant, benchmark=args.benchmark) for variant in VARIANTS[: args.rows]]
    where = args.data, args.output, deadline, _line, args.device
    if args.stage == "profile":
        return int(profile_forms(*where, name=args.name, variants=variants)["winner"] is None)
    plans = args.plan or [SchedulePlan("all", args.seconds)]
    form = None if args.device == "cpu" else variants[0]
    results = train_plans(*where, plans=plans, name=args.name, distillation=args.distillation, variant=form)
    pack(args.output)
    return int(any("error" in result for result in results))


def _line(text: str) -> None:
    print(text, flush=True)


def _plan(text: str) -> SchedulePlan:
    try:
        return SchedulePlan.from_json(json.loads(text))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no plan: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
