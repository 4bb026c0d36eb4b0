"""Finds the layers of the GPU executor whose output is wrong for the input that they got: each launch is compared with
the same layer in float32."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from models.executors.gpu.executor import TritonExecutor
from models.executors.gpu.geometry import LevelRows
from models.executors.gpu.layers import TritonConvolution
from models.executors.gpu.ops import RowOps
from models.executors.gpu.streams import SideStreams
from models.imaging.geometry import Frame

TOLERANCE = 0.01
"""The largest difference of a layer's results, as a share of the largest result: a rounding to half precision and sums
in another order explain less."""
NAMES = ("convolve", "convolve_needed", "convolve_scores", "add_resampled")
"""Methods of `RowOps` that launch kernels."""
LINES = 12
"""How many wrong layers of each step are reported."""


def localise(executor: TritonExecutor, inputs: Tensor, masks: Sequence[Tensor] | None) -> Iterator[str]:
    """Yields a line for each wrong layer, in the order of launches, and a last line with their number. `masks`: the
    mask after each exit, bool (h, w); None means the executor's own. If a launch raises an error, yields a line that
    names the launch, and raises that error."""
    state = executor.start(inputs, Frame(*inputs.shape[2:]))
    watches = []
    for step in executor.steps:
        watch = Watch(step.name)
        watches.append(watch)
        try:
            with watch:
                executor._program(state.shape, 1).memory.streams = SideStreams(enabled=False)
                executor.advance([state])
                _wait(inputs)
        except Exception:
            yield from watch.lines[:LINES]
            yield f"{step.name}: the fault came with or before launch {watch.launches}, {watch.latest}"
            raise
        yield from watch.lines[:LINES]
        if step.exit is not None and executor.config.masks_after(step.exit) and masks is not None:
            executor.override(state, masks[step.exit - 1].to(inputs.device), shrinking=True)
    wrong, launches = (sum(getattr(watch, name) for watch in watches) for name in ("wrong", "launches"))
    worst = max(watches, key=lambda watch: watch.worst)
    yield f"{wrong} of {launches} launches are wrong, the worst differs by {worst.worst:.1e}, in {worst.step}"


class Watch:
    """In a `with` block, the result of everything that `RowOps` launch is compared with PyTorch's."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.lines: list[str] = []
        self.launches = self.wrong = 0
        self.latest = "none"
        self.worst = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "Watch":
        own = {name: getattr(RowOps, name) for name in NAMES}

        def convolve(
            ops: RowOps, conv: TritonConvolution, x: Tensor, residual: Tensor | None = None, *, halo: bool = True
        ) -> Tensor:
            self._begin(f"convolve {conv} from {tuple(x.shape)}")
            found: Tensor = own["convolve"](ops, conv, x, residual, halo=halo)
            rows = ops.rows(x.shape[1] // conv.stride)
            self._judge(found, convolved(conv, x, residual, rows), rows, halo)
            return found

        def convolve_needed(ops: RowOps, conv: TritonConvolution, x: Tensor) -> Tensor:
            self._begin(f"convolve_needed {conv} from {tuple(x.shape)}")
            found: Tensor = own["convolve_needed"](ops, conv, x)
            self._judge(found, convolved(conv, x, None, None), ops.rows(x.shape[1]), True)
            return found

        def convolve_scores(ops: RowOps, conv: TritonConvolution, x: Tensor, out: Tensor) -> None:
            self._begin(f"convolve_scores {conv} from {tuple(x.shape)}")
            own["convolve_scores"](ops, conv, x, out)
            rows = ops.rows(x.shape[1])
            self._judge(out, convolved(conv, x, None, rows), rows, False)

        def add_resampled(
            ops: RowOps, parts: Sequence[Tensor], out: Tensor, *, halo: bool = True, **how: Any
        ) -> Tensor:
            self._begin(f"add_resampled {[tuple(part.shape) for part in parts]} {how} halo={halo}")
            found: Tensor = own["add_resampled"](ops, parts, out, halo=halo, **how)
            self._judge(found, combined(parts, out, **how), ops.rows(out.shape[1]), halo)
            return found

        for name, watched in zip(NAMES, (convolve, convolve_needed, convolve_scores, add_resampled), strict=True):
            self._stack.enter_context(patch.object(RowOps, name, watched))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self, latest: str) -> None:
        self.launches += 1
        self.latest = latest

    def _judge(self, found: Tensor, expected: Tensor, rows: LevelRows | None, halo: bool) -> None:
        _wait(found)
        off = (found.float() - expected).abs()
        if rows is not None:
            listed = _active(rows)
            if halo:
                listed = listed | _halo(rows, listed.shape)
            off = torch.where(listed[..., None], off, 0.0)
            expected = torch.where(listed[..., None], expected, 0.0)
        largest = float(expected.abs().max())
        worst = float(torch.nan_to_num(off, nan=torch.inf).max()) / max(largest, 1e-6)
        self.worst = max(self.worst, worst)
        if worst > TOLERANCE:
            self.wrong += 1
            item, y, x, channel = (
                int(place[0]) for place in torch.where(off.isnan() | (off >= off.nan_to_num().max()))
            )
            wrong = float((off.nan_to_num(nan=torch.inf) > TOLERANCE * largest).any(3).float().mean())
            self.lines.append(
                f"{self.step} launch {self.launches}: {self.latest}: off by {worst:.1e}, at input {item}, row {y}, "
                f"column {x}, channel {channel}; {wrong:.2%} of positions are"
            )


def convolved(conv: TritonConvolution, x: Tensor, residual: Tensor | None, rows: LevelRows | None) -> Tensor:
    """PyTorch's result of a layer for `x` (N, h, w, C): float32 (N, h, w, out), valid where `rows` are listed."""
    images = x.float().permute(0, 3, 1, 2)
    out = conv.out_channels
    y = F.conv2d(images, conv.cudnn_weight.float(), conv.bias[:out], conv.stride, conv.kernel_size // 2)
    if rows is not None and conv.halo_weights is not None:
        active = _active(rows)[:, None]
        pre_activation = torch.where(active, y, 0.0)
        side = 2 * conv.reach + 1
        around = F.conv2d(
            pre_activation.flatten(0, 1)[:, None], conv.halo_weights.view(1, 1, side, side), padding=conv.reach
        )
        y = torch.where(active, y, around[:, 0].view_as(y))
    y = (y + conv.shift[:out, None, None]).permute(0, 2, 3, 1)
    y = y if residual is None else y + residual.float()
    return F.relu(y) if conv.relu else y


def combined(
    parts: Sequence[Tensor],
    out: Tensor,
    *,
    pool: int = 1,
    relu: bool = False,
    bilinear: bool = True,
) -> Tensor:
    """PyTorch's result of `RowOps.add_resampled`, float32 (N, h, w, C)."""
    size = (out.shape[1] * pool, out.shape[2] * pool)
    total = torch.zeros(out.shape[0], out.shape[3], *size, device=out.device)
    for part in parts:
        image = part.float().permute(0, 3, 1, 2)
        if tuple(image.shape[2:]) != size and bilinear:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        elif tuple(image.shape[2:]) != size:
            image = F.interpolate(image, size=size, mode="nearest")
        total = total + image
    total = F.avg_pool2d(total, pool) if pool > 1 else total
    return (F.relu(total) if relu else total).permute(0, 2, 3, 1)


def _active(rows: LevelRows) -> Tensor:
    """bool (N, h, w), at the size of `rows`."""
    return rows.mask[:, :: rows.mask_step, :: rows.mask_step] != 0


def _halo(rows: LevelRows, shape: torch.Size) -> Tensor:
    """bool `shape` (N, h, w): positions that are listed as interpolated."""
    count = int(rows.counts[1])
    listed = torch.zeros(shape, dtype=torch.bool, device=rows.mask.device)
    if count:
        listed.view(-1)[(rows.row_list[len(rows.row_list) - count :] >> 1).long()] = True
    return listed


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
