"""Training as stages: what a fastest step looks like, then schedules that fill the time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from models.gpu_day import training_stages


def profile(data: Path, output: Path, deadline: float, line: Callable[[str], None], device: str) -> bool:
    """profile.json with steps a second of every form of a step; whether one of them ran."""
    torch.set_float32_matmul_precision("high")
    return training_stages.profile(data, output, deadline, line, device)["winner"] is not None


def schedules(  # noqa: PLR0917 - a job is given them by name
    data: Path,
    output: Path,
    deadline: float,
    line: Callable[[str], None],
    device: str,
    plans: Sequence[Mapping[str, Any]],
    how: Mapping[str, Any],
) -> bool:
    """`plans`: fields of `training_stages.Plan`; `how`: further arguments of `training_stages.schedules`."""
    torch.set_float32_matmul_precision("high")
    planned = [training_stages.Plan(**{**plan, "hold_out": tuple(plan["hold_out"])}) for plan in plans]
    results = training_stages.schedules(data, output, deadline, line, device, plans=planned, **how)
    return bool(results) and not any("error" in result for result in results)
