"""Where the GPU's executor goes wrong: the first step whose features differ from the reference's, under given masks.

`python -m models.bench.gpu_localise adpc-w48-cityscapes 512x1024 --active 0.8,0.6,0.35` prints what it finds, one line a
step. Without `--graphs` every step runs by itself, as it is, and is waited for, so that a step that ends in an error of
the GPU is named; with it, steps are measured and recorded as when they serve.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anytime import score_difference
from models.data import scenes
from models.executors.gpu.executor import TritonExecutor
from models.executors.reference import ReferenceExecutor
from models.imaging.preprocess import STRIDE, Frame
from models.network.adpc import AdpcNet
from models.network.flops import Size, parse_shares, parse_size

TOLERANCE = 0.05
"""Of the largest value: what half precision explains."""


@dataclass(frozen=True)
class Fault:
    """`step`: the first that is wrong. `branch`: from the finest, 0; None: an exit's scores, or an error.

    `difference`: of the largest value of the reference, which is `largest`; nan where something is no number.
    `place`: (y, x) of the largest difference in the branch. `active`: whether that position is convolved (else it is
    interpolated). `error`: what the GPU said instead.
    """

    step: str
    branch: int | None = None
    difference: float = 0.0
    largest: float = 0.0
    place: tuple[int, int] | None = None
    active: bool = True
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.step}: {self.error}"
        where = "scores" if self.branch is None else f"branch {self.branch}"
        kind = "active" if self.active else "interpolated"
        return f"{self.step}: {where} off by {self.difference:.1%} of {self.largest:.3g} at {self.place}, {kind}"


def localise(
    network: Callable[[], AdpcNet],
    size: Size,
    shares: Sequence[float] | Sequence[Tensor] = (),
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
    graphs: bool = False,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> Fault | None:
    """The first fault, or None. `network` makes the same network each time.

    `shares`: active after each exit, of a drawn scene, or the masks themselves, bool (H / 4, W / 4), each within the one
    before; none: the network's own masks, the reference's given to both. `graphs`: on a GPU, as when it serves.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, frame = torch.randn(1, 3, *size, generator=generator).to(device), Frame(*size)
    masks = _masks(size, shares, seed)
    reference = ReferenceExecutor(network(), device)
    ours = TritonExecutor(network(), device, dtype, None if graphs else lambda: None)
    theirs_state, state = reference.start(inputs, frame), ours.start(inputs, frame)
    active: Tensor | None = None
    for step in ours.steps:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            reference.advance([theirs_state])
        try:
            ours.advance([state])
            if device != "cpu":
                torch.cuda.synchronize()
        except Exception as error:  # an error of the GPU can be any
            return Fault(step.name, error=f"{type(error).__name__}: {error}".splitlines()[0])
        if step.exit is None:
            features = ours.features(state)
            expected = theirs_state.progress.features
            found = [
                _compare(step.name, *pair, active, tolerance)
                for pair in zip(enumerate(features), expected, strict=True)
            ]
        else:
            assert state.exit is not None and theirs_state.exit is not None
            found = [_scores(step.name, state.exit.scores, theirs_state.exit.scores, tolerance)]
        worst = max(found, key=lambda fault: fault.difference if fault.difference == fault.difference else float("inf"))
        say(str(worst))
        for fault in found:
            if not fault.difference <= tolerance:
                return fault
        if step.exit is not None and step.exit < ours.config.exits and ours.config.settles:
            active = (masks[step.exit - 1] if masks else theirs_state.exit.active).to(device)
            ours.override(state, active)
            reference.override(theirs_state, active)
    return None
