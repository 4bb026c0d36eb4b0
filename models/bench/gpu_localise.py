"""Finds the first step at which the GPU executor's features differ from the reference's, under given masks.

`python -m models.bench.gpu_localise adpc-w48-cityscapes 512x1024 --active 0.8,0.6,0.35` prints a line for each step.
Without `--graphs`, kernels are launched one by one with untuned tiles, and the host waits for each step, so that the
step that causes a GPU error can be named. With it, tiles are tuned and CUDA graphs recorded, as in the server.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anytime import score_difference
from models.bench import street_masks
from models.commands.options import parse_shares, parse_size
from models.executors.gpu.executor import TritonExecutor
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import STRIDE, Frame, Size
from models.network.adpc import AdpcNet

TOLERANCE = 0.05
"""The largest difference that half precision explains, as a share of the reference's largest value."""


@dataclass(frozen=True)
class Fault:
    """A step that is wrong, and how. `branch`: the index of the wrong branch, the finest is 0; None if the scores of an
    exit are wrong, or if the GPU raised an error.

    `largest`: the reference's largest absolute value. `difference`: the largest difference, as a share of `largest`;
    nan if a value is nan. `place`: (y, x) of that difference in the branch. `active`: whether that position is
    convolved; otherwise it is interpolated. `error`: the GPU's error, or empty.
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
    """Returns the first fault, or None. `network` makes the same network each time.

    `shares` are the active shares after each exit, for masks of a drawn scene, or the masks themselves: bool (H / 4,
    W / 4), each within the one before. If it is empty, both executors get the masks of the reference. `graphs`: tune
    tiles and record CUDA graphs, as in the server; needs a GPU.
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
        except Exception as error:  # a fault on a GPU can raise any type
            return Fault(step.name, error=f"{type(error).__name__}: {error}".splitlines()[0])
        if step.exit is None:
            features = ours.features(state)
            expected = theirs_state.progress.features
            found = [
                _compare(step.name, branch, *pair, active)
                for branch, pair in enumerate(zip(features, expected, strict=True))
            ]
        else:
            assert state.exit is not None and theirs_state.exit is not None
            found = [_worst(step.name, None, state.exit.scores.float(), theirs_state.exit.scores.float(), None)]
        worst = max(found, key=lambda fault: fault.difference if fault.difference == fault.difference else float("inf"))
        say(str(worst))
        for fault in found:
            if not fault.difference <= tolerance:
                return fault
        if step.exit is not None and step.exit < ours.config.exits and ours.config.adaptive:
            active = (masks[step.exit - 1] if masks else theirs_state.latest().mask).to(device)
            ours.override(state, active, shrinking=True)
            reference.override(theirs_state, active)
    return None


def _masks(size: Size, shares: Sequence[float] | Sequence[Tensor], seed: int) -> list[Tensor]:
    given = [share for share in shares if isinstance(share, Tensor)]
    if given or not shares:
        return given
    height, width = size[0] // STRIDE, size[1] // STRIDE
    drawn = street_masks.masks(
        street_masks.draw(2 * height, 2 * width, seed), height, width, [float(share) for share in shares]
    )
    return [torch.from_numpy(mask) for mask in drawn]


def _compare(step: str, branch: int, ours: Tensor, theirs: Tensor, active: Tensor | None) -> Fault:
    """Compares one branch, (1, C, h, w), where it is read: at the active positions and in the blocks around them.
    `active`: bool at the finest size."""
    kept = None
    needed = torch.ones_like(theirs[:, :1], dtype=torch.bool)
    if active is not None:
        block = active.shape[0] // theirs.shape[2]
        kept = active[::block, ::block]
        blocks = F.max_pool2d(active[None, None].float(), block)
        needed = F.max_pool2d(blocks, 3, 1, 1) > 0
    zero = torch.zeros((), device=theirs.device)
    return _worst(step, branch, torch.where(needed, ours.float(), zero)[0], torch.where(needed, theirs, zero)[0], kept)


def _worst(step: str, branch: int | None, ours: Tensor, theirs: Tensor, kept: Tensor | None) -> Fault:
    off = (ours - theirs).abs().amax(0).nan_to_num(torch.inf, torch.inf)
    place = divmod(int(off.argmax()), off.shape[1])
    active = kept is None or bool(kept[place])
    largest = float(theirs.abs().max())
    difference = score_difference(ours, theirs) if largest else float(off.max())
    return Fault(step, branch, difference, largest, place, active)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models.bench.gpu_localise",
        description="Find the first step of the GPU's executor that is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("network", help="the name of a configuration")
    parser.add_argument("size", type=parse_size, help="HEIGHTxWIDTH, multiples of 32")
    parser.add_argument(
        "--active", type=parse_shares, default=(), help="the active share after each exit, as in 0.8,0.6,0.35"
    )
    parser.add_argument("--graphs", action="store_true", help="tune tiles and record CUDA graphs, as the server does")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16: wider range, less precision")
    given = parser.parse_args(arguments)
    from models.bench.gpu_runtimes import network  # noqa: PLC0415 - takes the GPU

    dtype = torch.bfloat16 if given.bfloat16 else torch.float16
    fault = localise(lambda: network(given.network), given.size, given.active, dtype=dtype, graphs=given.graphs)
    print("right at every step" if fault is None else f"FAULT {fault}")
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())
