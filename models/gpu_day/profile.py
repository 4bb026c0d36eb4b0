"""Finds the fastest form of a training step by measuring each."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from models.directory import ZOO
from models.gpu_day.variants import (
    TIMED,
    VARIANTS,
    Clock,
    Line,
    Variant,
    device_name,
    forget,
    phase_of,
    prepare,
    rounded,
    timed_steps,
    variant_of,
    wait,
    write,
)
from models.network.configs import ModelConfig
from models.network.families import config
from models.training import tasks
from models.training.graph import WARM_UP, Update
from models.training.recipe import FILE, Recipe
from models.training.train import Run, stream

PROFILE = "profile.json"
ROW_S = 12.0
"""The time that is assumed for a row until one has been measured."""
SHOWN_KERNELS = 15


def profile(
    data: Path,
    output: Path,
    deadline: float,
    line: Line,
    device: str = "cuda",
    *,
    name: str = "camvid-adpc-w18",
    variants: Sequence[Variant] = VARIANTS,
    clock: Clock = time.monotonic,
    timed: int = TIMED,
    model: ModelConfig | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Measures the steps a second of every variant that there is time for, and writes a line for each. `PROFILE` is
    written after each, with the name of the fastest; at the end its kernels are added. If a variant fails, the others
    are measured all the same.

    `deadline`: a time of `clock`. A row is begun if it would end by then when it takes as long as the slowest so far.
    """
    where = torch.device(device)
    model, base = model or config(name), recipe or Recipe.load(ZOO / name / FILE)
    full = base.phases[-1]
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"device": device_name(where), "torch": torch.__version__, "rows": rows, "winner": None}
    started = clock()
    task = tasks.load(model, replace(base, phases=(full,)), data, where)
    line(f"profile: {task.examples} examples on {report['device']} after {clock() - started:.1f} s")
    longest = ROW_S if where.type == "cuda" else 0.0
    for variant in variants:
        if rows and clock() + longest > deadline:
            line(f"profile: {variant.name}: no time left")
            continue
        began = clock()
        phase = phase_of(variant, full)
        row: dict[str, Any] = {**asdict(variant), "batch": phase.batch, "crop": phase.crop}
        try:
            with stream(where):
                rate, row["losses"] = _row(
                    model, replace(base, phases=(phase,), init=None), task, variant, where, timed, clock
                )
            row |= {"steps_per_s": rate, "images_per_s": rate * phase.batch}
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else None
            told = f"{rate:6.2f} steps/s  {rate * phase.batch:6.0f} images/s  losses {row['losses']}"
        except Exception as error:  # any error ends this row only
            row["error"] = f"{type(error).__name__}: {error}"[:500]
            told = f"failed: {row['error'][:200]}"
        forget(where)
        row["seconds"] = clock() - began
        longest = max(longest if rows else 0.0, row["seconds"])
        rows.append(row)
        line(f"profile: {variant.name:42s} {told}  (in {row['seconds']:.1f} s)")
        right = [found for found in rows if "error" not in found and variant_of(found).wins]
        if right:
            report["winner"] = max(right, key=lambda found: found["steps_per_s"])["name"]
        write(output / PROFILE, report)
    winner = next((found for found in rows if found["name"] == report["winner"]), None)
    if winner is not None and where.type == "cuda" and clock() + winner["seconds"] < deadline + ROW_S:
        with suppress(Exception):  # without a profiler, only the table of kernels is missing
            with stream(where):
                report["kernels"] = _kernels(model, replace(base, phases=(full,)), task, variant_of(winner), where)
            for found in report["kernels"][:SHOWN_KERNELS]:
                line(f"profile: {found['us_per_step']:8.0f} us  {found['calls_per_step']:5.0f} x  {found['name'][:90]}")
            write(output / PROFILE, report)
        forget(where)
    line(f"profile: fastest: {report['winner']}")
    return report


def _row(  # noqa: PLR0917
    model: ModelConfig, recipe: Recipe, task: Any, variant: Variant, device: torch.device, timed: int, clock: Clock
) -> tuple[float, list[float]]:
    """Steps a second, and the mean losses. Variants with the same seed, crop and loss have equal losses but for
    rounding."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = Run.begin(model, recipe, device, speed=variant.speed)
    task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)
    run.network.train()
    run.set_rate(1e-3)
    update = prepare(run, task, variant)
    # The recipe of a row has enough steps for the timed ones, see `phase_of`.
    rate = timed_steps(run, task, update, recipe.phases[0], variant.half, timed, clock)
    if not run.losses.isfinite().all():
        raise FloatingPointError(f"the losses are {run.losses.tolist()}")
    return rate, rounded(run.losses / (WARM_UP + 2 + timed))


def _kernels(
    model: ModelConfig, recipe: Recipe, task: Any, variant: Variant, device: torch.device
) -> list[dict[str, Any]]:
    """The kernels of a step by their time, longest first."""
    run = Run.begin(model, recipe, device, speed=variant.speed)
    task.recipe, task.sampler = recipe, tasks.Sampler(task.examples, recipe)
    run.network.train()
    update = prepare(run, task, variant)
    timed_steps(run, task, update, recipe.phases[0], variant.half, 1, time.monotonic)
    steps = 3
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        timed_steps_only(run, task, update, steps)
        wait(device)
    found = [
        {
            "name": event.key,
            "us_per_step": float(event.self_device_time_total) / steps,
            "calls_per_step": event.count / steps,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda kernel: -float(kernel["us_per_step"]))[: 4 * SHOWN_KERNELS]


def timed_steps_only(run: Run, task: tasks.Task, update: Update, steps: int) -> None:
    for number in range(steps):
        update(*task.batch(number), False)
        run.follow(0.01)


def winner(path: Path) -> Variant | None:
    """The fastest variant of a profile, None if there is no profile or every row failed."""
    if not path.is_file():
        return None
    report = json.loads(path.read_text())
    return next((variant_of(row) for row in report["rows"] if row["name"] == report["winner"]), None)
