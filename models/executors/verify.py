"""Verification: decides whether a faster executor may replace the reference. Both run side by side at the model's size;
the faster one must be correct at every exit and take less time.

Verification runs in a process of its own (`python -m models.executors`), because a broken kernel may end its process.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anytime import Overridable, State, exits_in_turns, exits_of, largest, score_difference
from models.executors.registry import REFERENCE
from models.imaging.geometry import STRIDE, Frame, Size
from models.imaging.preprocess import pad

TOLERANCE = 0.05
"""Largest difference of scores, over the largest score, that half precision explains."""
LIMIT_S = 600.0
"""The time that a verification may take: compiling for a new GPU takes minutes."""
SHARES = ((0.8, 0.6, 0.35), (0.3, 0.1, 0.02))
"""The active shares after each exit of two requests that take turns. Only the first, the paper's means, is timed."""
REPEATS = 5


@dataclass(frozen=True)
class Findings:
    """What a verification measured at each exit. `differences`: the largest difference from the reference, as a share
    of its largest score; nan if a score is nan. `seconds`, `reference_s`: the median seconds from the start to the exit
    of the faster executor and of the reference."""

    differences: tuple[float, ...]
    seconds: tuple[float, ...]
    reference_s: tuple[float, ...]


@dataclass(frozen=True)
class ExecutorChoice:
    """The executor to run, and why. `right`: the faster executor's scores were right, whether or not it was faster."""

    executor: str
    reason: str
    right: bool = True


def choose(found: Findings, executor: str) -> ExecutorChoice:
    """`executor` if it was right and faster, the reference otherwise."""
    last = len(found.differences)
    for exit_index, difference in enumerate(found.differences, 1):
        if not difference < TOLERANCE:  # nan is wrong
            reason = (
                f"is off by {difference:.1%} of the largest score at exit {exit_index}; the limit is {TOLERANCE:.0%}"
            )
            return ExecutorChoice(REFERENCE, f"{executor} {reason}", right=False)
    ours_ms, theirs_ms = (1000 * seconds[-1] for seconds in (found.seconds, found.reference_s))
    times = f"takes {ours_ms:.2f} ms to exit {last}, reference {theirs_ms:.2f} ms"
    if ours_ms >= theirs_ms:
        return ExecutorChoice(REFERENCE, f"{executor} {times}")
    largest_difference = max(found.differences)
    return ExecutorChoice(executor, f"{executor} {times}, and differs by {largest_difference:.1e} of the largest score")


def verify(executor: str, command: Sequence[str], limit_s: float = LIMIT_S) -> ExecutorChoice:
    """Runs `command`, see `verification_command`, and chooses by the last line that it prints: `Findings` of `executor`
    as JSON. Chooses the reference if the command fails, dies or takes longer than `limit_s`."""
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log) as process:
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                reason = f"{executor} was not verified within {limit_s:g} s"
                return ExecutorChoice(REFERENCE, reason, right=False)
        if status < 0:
            reason = f"{executor} died of {signal.Signals(-status).name} when it was tried"
            return ExecutorChoice(REFERENCE, reason, right=False)
        with suppress(ValueError, KeyError, TypeError):
            if status == 0:
                found = json.loads(_last_line(out))
                return choose(Findings(*(tuple(found[name]) for name in Findings.__dataclass_fields__)), executor)
        reason = f"{executor} failed with status {status} when it was tried: {_last_line(log) or 'it said nothing'}"
        return ExecutorChoice(REFERENCE, reason, right=False)


def verification_command(directory: Path, executor: str, device: str) -> list[str]:
    """The command that measures `executor` with the model of `directory` on `device`."""
    return [sys.executable, "-m", "models.executors", str(directory), "--executor", executor, "--device", device]


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return next((line.strip() for line in reversed(file.readlines()) if line.strip()), "")


def measure(faster: Overridable, reference: Overridable, size: Size, repeats: int = REPEATS) -> Findings:
    """Runs both executors on noise of `size` under the same masks, and compares scores and times."""
    images = [pad(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]
    masks = [
        smooth_masks((image.shape[2], image.shape[3]), shares, seed)
        for seed, (image, shares) in enumerate(zip(images, SHARES, strict=True))
    ]
    # Twice, because what was recorded with the first requests must serve later ones.
    rounds = [_differences(faster, reference, images, masks) for _ in range(2)]
    times = [_seconds(model, images[0], masks[0], repeats) for model in (faster, reference)]
    return Findings(tuple(torch.stack(rounds).amax(0).tolist()), *times)


def smooth_masks(size: Size, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Masks of smooth regions for an input of `size` (H, W): bool (H / 4, W / 4), each within the one before, with
    active shares of `shares`."""
    height, width = (side // STRIDE for side in size)
    noise = torch.rand(1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    hills = F.interpolate(noise, size=(height, width), mode="bicubic")[0, 0]
    order = hills.flatten().argsort(descending=True)
    masks = []
    for share in shares:
        mask = torch.zeros(height * width, dtype=torch.bool)
        mask[order[: round(share * height * width)]] = True
        masks.append(mask.view(height, width))
    return masks


def _override(model: Overridable, state: State, exit_index: int, masks: Sequence[Tensor]) -> None:
    if model.config.masks_after(exit_index):
        model.override(state, masks[exit_index - 1].to(model.device), shrinking=True)


def _differences(
    faster: Overridable, reference: Overridable, images: Sequence[Tensor], masks: Sequence[Sequence[Tensor]]
) -> Tensor:
    """The largest difference of scores at each exit, float32 (exits,), when requests take turns at every step."""
    ours, theirs = ([m.start(image, Frame(*image.shape[-2:])) for image in images] for m in (faster, reference))
    turns = [
        (model, [state])
        for pair in zip(ours, theirs, strict=True)
        for model, state in zip((faster, reference), pair, strict=True)
    ]
    found = torch.zeros(reference.config.exits)
    for exit_index in exits_in_turns(turns):
        for our, their, given in zip(ours, theirs, masks, strict=True):
            off = score_difference(our.latest().scores, their.latest().scores)
            found[exit_index - 1] = largest([float(found[exit_index - 1]), off])
            _override(faster, our, exit_index, given)
            _override(reference, their, exit_index, given)
    return found


def _seconds(model: Overridable, image: Tensor, masks: Sequence[Tensor], repeats: int) -> tuple[float, ...]:
    """Median seconds from the start to every exit; putting masks in place does not count."""
    runs = []
    for _ in range(repeats + 1):
        state, spent_s, times = model.start(image, Frame(*image.shape[-2:])), 0.0, []
        _wait(model.device)
        began_s = time.perf_counter()
        for exit_index in exits_of(model, [state]):
            _wait(model.device)
            spent_s += time.perf_counter() - began_s
            times.append(spent_s)
            _override(model, state, exit_index, masks)
            _wait(model.device)
            began_s = time.perf_counter()
        runs.append(times)
    return tuple(median(column) for column in zip(*runs[1:], strict=True))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def main() -> int:
    from models.checkpoint import load_directory  # noqa: PLC0415 - the parent needs none of this
    from models.executors.selection import build  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m models.executors", description=__doc__, allow_abbrev=False)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--executor", required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    size = load_directory(args.directory).config.size
    pair = [build(load_directory(args.directory), args.device, name) for name in (args.executor, REFERENCE)]
    print(json.dumps(asdict(measure(pair[0], pair[1], size))))  # type: ignore[arg-type]
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
