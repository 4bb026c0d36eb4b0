"""Whether a faster executor may take the reference's place: both run side by side at the served size, and the faster
one must be right at every exit and be faster.

That happens in a process of its own (`python -m models.executors`), because what is wrong on a GPU may end the
process that tries it. Imports executors only where it runs them.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anytime import Overridable, State, largest, score_difference
from models.imaging.geometry import STRIDE, Frame, Size
from models.imaging.preprocess import pad

TOLERANCE = 0.05
"""Largest difference of scores, over the largest score, that half precision explains."""
LIMIT_S = 600.0
"""Time for all of a proof: compiling for a new GPU takes minutes."""
SHARES = ((0.8, 0.6, 0.35), (0.3, 0.1, 0.02))
"""Active after each exit in the two requests that are interleaved; the first are the paper's means, which are timed."""
REPEATS = 5


@dataclass(frozen=True)
class Findings:
    """By exit: `differences` from the reference, of its largest score; median `seconds` from the start of both."""

    differences: tuple[float, ...]
    seconds: tuple[float, ...]
    reference_s: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """The executor to run, and why. `sound`: the faster executor was right, whether or not it was faster."""

    executor: str
    reason: str
    sound: bool = True


def judge(found: Findings, executor: str) -> Verdict:
    last = len(found.differences)
    for exit_index, difference in enumerate(found.differences, 1):
        if not difference < TOLERANCE:  # nan is wrong
            reason = f"is off by {difference:.1%} of the largest score at exit {exit_index}; {TOLERANCE:.0%} may be"
            return Verdict("reference", f"{executor} {reason}", sound=False)
    ours_ms, theirs_ms = (1000 * seconds[-1] for seconds in (found.seconds, found.reference_s))
    times = f"takes {ours_ms:.2f} ms to exit {last}, reference {theirs_ms:.2f} ms"
    if ours_ms >= theirs_ms:
        return Verdict("reference", f"{executor} {times}")
    return Verdict(executor, f"{executor} {times}, and differs by {max(found.differences):.1e} of the largest score")


def prove(executor: str, command: Sequence[str], limit_s: float = LIMIT_S) -> Verdict:
    """Run a proof of `executor`, whose last line of output is `Findings` as JSON, and judge it; see `command`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log) as process:
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                return Verdict("reference", f"{executor} was not proved right within {limit_s:g} s", sound=False)
        if status < 0:
            reason = f"{executor} died of {signal.Signals(-status).name} when it was tried"
            return Verdict("reference", reason, sound=False)
        try:
            found = json.loads(_last_line(out))
            return judge(Findings(*(tuple(found[name]) for name in Findings.__dataclass_fields__)), executor)
        except (ValueError, KeyError, TypeError):
            reason = f"{executor} failed with status {status} when it was tried: {_last_line(log) or 'it said nothing'}"
            return Verdict("reference", reason, sound=False)


def command(directory: Path, executor: str, device: str) -> list[str]:
    """What proves `executor` with the model of `directory` on `device`."""
    return [sys.executable, "-m", "models.executors", str(directory), "--executor", executor, "--device", device]


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return next((line.strip() for line in reversed(file.readlines()) if line.strip()), "")


def measure(faster: Overridable, reference: Overridable, size: Size, repeats: int = REPEATS) -> Findings:
    """Both on noise of `size`, under the same masks."""
    images = [pad(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]
    masks = [
        blobs((image.shape[2], image.shape[3]), shares, seed)
        for seed, (image, shares) in enumerate(zip(images, SHARES, strict=True))
    ]
    # What was recorded with the first requests must serve later ones.
    rounds = [_differences(faster, reference, images, masks) for _ in range(2)]
    times = [_seconds(model, images[0], masks[0], repeats) for model in (faster, reference)]
    return Findings(tuple(torch.stack(rounds).amax(0).tolist()), *times)


def blobs(size: Size, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Masks for an input of `size` (H, W): bool (H / 4, W / 4), each within the one before, of which `shares` are
    active."""
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


def _follow(model: Overridable, state: State, exit_index: int, masks: Sequence[Tensor]) -> None:
    if model.config.settles_after(exit_index):
        model.override(state, masks[exit_index - 1].to(model.device))


def _differences(
    faster: Overridable, reference: Overridable, images: Sequence[Tensor], masks: Sequence[Sequence[Tensor]]
) -> Tensor:
    """By exit, of requests that take turns at every step; nan where a score is."""
    ours, theirs = ([m.start(image, Frame(*image.shape[-2:])) for image in images] for m in (faster, reference))
    found = torch.zeros(reference.config.exits)
    for step in reference.steps:
        for our, their, given in zip(ours, theirs, masks, strict=True):
            faster.advance([our])
            reference.advance([their])
            if step.exit is not None and our.exit is not None and their.exit is not None:
                off = score_difference(our.exit.scores, their.exit.scores)
                found[step.exit - 1] = largest([float(found[step.exit - 1]), off])
                _follow(faster, our, step.exit, given)
                _follow(reference, their, step.exit, given)
    return found


def _seconds(model: Overridable, image: Tensor, masks: Sequence[Tensor], repeats: int) -> tuple[float, ...]:
    """Median seconds from the start to every exit, putting masks in place not counted."""
    runs = []
    for _ in range(repeats + 1):
        state, spent_s, times = model.start(image, Frame(*image.shape[-2:])), 0.0, []
        for step in model.steps:
            _wait(model.device)
            began_s = time.perf_counter()
            model.advance([state])
            if step.exit is not None:
                _wait(model.device)
            spent_s += time.perf_counter() - began_s
            if step.exit is not None:
                times.append(spent_s)
                _follow(model, state, step.exit, masks)
        runs.append(times)
    return tuple(median(column) for column in zip(*runs[1:], strict=True))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def main() -> int:
    from models.checkpoint import load_directory  # noqa: PLC0415 - the parent needs none of this
    from models.executors import build  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="python -m models.executors", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--executor", required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    size = load_directory(args.directory).config.size
    pair = [build(load_directory(args.directory), args.device, name) for name in (args.executor, "reference")]
    print(json.dumps(asdict(measure(pair[0], pair[1], size))))  # type: ignore[arg-type]
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
