"""One step's work on the GPU: which rows there are, and layers run on them, or everywhere.

Feature maps are channels-last tensors (N, h, w, C), C padded with zeros. Holds no network and no request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.executors.gpu import kernels
from models.executors.gpu.layers import Layer, Tile, power_of_two, tiles
from models.network.configs import Masking

LEVELS = 4  # feature sizes: h / 4 to h / 32
PATCH = 8  # lists follow patches of this many positions squared, so that neighbouring rows share cache lines

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one feature size that are worked on between two exits.

    A position is needed if a position of the finest size in its block, or in one of the 8 blocks around, is active:
    only then can an active position of a later layer read it. Active rows are convolved, other needed ones
    interpolated. `entries`: int32 (N * h * w,), active rows from the front and interpolated ones from the back; twice
    the position, plus 1 if an interpolation may read the row. `counts`: int32 (4,), starts with how many of either.
    `mask`: uint8 (N, h0, w0), of the finest size. `factor`: finest size over this one.
    """

    entries: Tensor
    counts: Tensor
    mask: Tensor
    factor: int


def empty_rows(mask: Tensor) -> tuple[tuple[Rows, ...], Tensor]:
    """For `mask`, uint8 (N, h, w), whose values are read whenever `list_rows` is run; and what that counts.

    The counts, int32 (LEVELS + 2 * N, 4), start with those of the rows, aligned to 16 bytes. From LEVELS on, seen as
    (N, 8), they are what each input has: active positions of every level, and in the last column those inside.
    """
    counts = mask.new_zeros((LEVELS + 2 * len(mask), 4), dtype=torch.int32)
    rows = tuple(
        Rows(mask.new_empty(mask.numel() >> 2 * level, dtype=torch.int32), counts[level], mask, 1 << level)
        for level in range(LEVELS)
    )
    return rows, counts


def list_rows(work: "Pass", counts: Tensor, crop: Tensor, reach: int, *, everywhere: bool) -> None:
    """Fill the rows of `work` and their `counts` from their mask.

    `crop`: int32 (N, 2), height and width that count as inside. `reach`: the longest of all interpolations.
    `everywhere`: all rows are needed, because the next mask may be active where this one is not.
    """
    counts.zero_()

    def fill(level: int) -> None:
        rows = work.rows[level]
        items, height, width = rows.mask.shape
        height, width = height >> level, width >> level
        grid = (items * -(-height // PATCH) * -(-width // PATCH),)
        kernels.list_rows[grid](
            rows.mask, crop, rows.entries, rows.counts, counts[LEVELS:], height, width,
            FACTOR=rows.factor, SIZE=rows.factor**2, REACH=reach, EVERYWHERE=everywhere, PATCH=PATCH, SLOT=level,
        )  # fmt: skip

    work.parallel([partial(fill, level) for level in range(LEVELS)])


SETTLED_BY = ("max_probability", "entropy", "max_score")
"""Criteria that the kernel of `settle` knows."""


def settle(masking: Masking, exit_index: int, scores: Tensor, mask: Tensor, decided: Tensor, *, first: bool) -> None:
    """New `mask` and `decided`, uint8 (N, h, w), from the exit's `scores`, float32 (N, h, w, C).

    `first`: the mask so far means nothing, everything was active.
    """
    size, rows = mask.numel(), 64
    kernels.settle[(-(-size // rows),)](
        scores, mask, decided, size, masking.threshold, exit_index, scores.stride(2), scores.shape[3],
        CRITERION=masking.criterion, FIRST=first, ROWS=rows, BLOCK=power_of_two(scores.shape[3]),
    )  # fmt: skip


class Pass:
    """Runs layers over the maps of one step. `rows`: by level; none: everything is computed, nothing masked.

    `dense`: masked layers that are convolved everywhere, by cuDNN, because that was measured to be faster. `tiles`: by
    layer, where one was measured to be the fastest. `streams`: filled as needed; None: there are none. `seen`: takes
    the masked layers that are run, with the shapes of their inputs.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        height: int,
        streams: "list[torch.cuda.Stream] | None" = None,
        *,
        dense: frozenset[str] = frozenset(),
        tiles: Mapping[str, Tile] | None = None,
        seen: dict[str, tuple[Layer, torch.Size]] | None = None,
    ) -> None:
        self.rows = rows
        self.height = height
        self.dense = dense
        self.tiles = tiles or {}
        self.streams = streams
        self.seen = seen

    def at(self, height: int) -> Rows | None:
        return self.rows[(self.height // height).bit_length() - 1] if self.rows else None

    def convolve(self, layer: Layer, x: Tensor, residual: Tensor | None = None, *, interpolated: bool = True) -> Tensor:
        """`interpolated`: False where only active rows of the result are ever read."""
        rows = self.at(x.shape[1] // layer.stride)
        if rows is None:
            return everywhere(layer, x, residual)
        if self.seen is not None:
            self.seen[name(layer, x)] = layer, x.shape
        if name(layer, x) in self.dense:
            kept = everywhere(layer, x, None, raw=True)
            out = torch.zeros_like(kept)
            return interpolate(layer, rows, kept, residual, out, active_too=True)
        shape = (x.shape[0], x.shape[1] // layer.stride, x.shape[2] // layer.stride, layer.out)
        # A dense convolution by cuDNN may mix rows that cancel out (Winograd), so all that it reads must be numbers.
        out = x.new_zeros(shape) if self.dense else x.new_empty(shape)
        kept = x.new_empty(shape) if interpolated else out
        convolve(
            layer,
            x,
            out,
            rows,
            residual=residual,
            kept=kept if interpolated else None,
            tile=self.tiles.get(name(layer, x)),
        )
        return interpolate(layer, rows, kept, residual, out) if interpolated else out

    def products(self, layer: Layer, x: Tensor) -> Tensor:
        """A convolution whose results are combined before they are masked: all needed rows."""
        rows = self.at(x.shape[1])
        if rows is None:
            return everywhere(layer, x, None)
        out = x.new_empty((*x.shape[:3], layer.out))
        convolve(layer, x, out, rows, residual=None, kept=None, needed=True)
        return out

    def scores(self, layer: Layer, x: Tensor, out: Tensor) -> None:
        """The last layer of an exit: float32 `out`, only active rows of it."""
        convolve(layer, x, out, self.at(x.shape[1]), residual=None, kept=None)

    def combine(
        self, parts: Sequence[Tensor], out: Tensor, *, pool: int = 1, relu: bool = False, bilinear: bool = True,
        interpolated: bool = True,
    ) -> Tensor:  # fmt: skip
        """The sum of maps, each resized to `out` (N, h, w, C), or to twice its size and averaged for `pool` 2."""
        items, height, width, channels = out.shape
        rows = self.at(height)
        capacity = items * height * width
        four = [*parts, *[parts[0]] * (4 - len(parts))]
        shrinks = [height * pool // part.shape[1] for part in parts] + [0] * (4 - len(parts))
        span = min(128, power_of_two(channels))
        grid = (-(-capacity // 32), -(-channels // span))
        kernels.combine[grid](
            *four, out, rows.entries if rows else out, rows.counts if rows else out, height, width, capacity,
            *(part.stride(2) for part in four), out.stride(2), channels, *shrinks, pool, bilinear, relu,
            LISTED=rows is not None, NEEDED=rows is not None and interpolated, ROWS=32, BLOCK=span, num_warps=4,
        )  # fmt: skip
        return out

    def parallel(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of jobs that do not depend on each other; on a GPU each has a stream of its own.

        The jobs' inputs must be kept until this returns.
        """
        if self.streams is None:
            return [job() for job in jobs]
        main = torch.cuda.current_stream()
        while len(self.streams) < len(jobs) - 1:
            self.streams.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        results = []
        for stream in self.streams[: len(jobs) - 1]:
            stream.wait_stream(main)
        for job, stream in zip(jobs, [main, *self.streams], strict=False):
            with torch.cuda.stream(stream):
                results.append(job())
        for stream in self.streams[: len(jobs) - 1]:
            main.wait_stream(stream)
        return results


def name(layer: Layer, x: Tensor) -> str:
    """How a choice between dense and sparse is called: it depends on these alone."""
    return f"{layer} from {x.shape[1]}x{x.shape[2]}"


def kind(layer: Layer, capacity: int) -> str:
    """How a choice is called in files: by the layer and about how many positions it computes at most."""
    return f"{layer} at 2^{(capacity - 1).bit_length()}"


def everywhere(layer: Layer, x: Tensor, residual: Tensor | None, *, raw: bool = False) -> Tensor:
    """A dense convolution by the framework. `raw`: without what follows the interpolation."""
    images = x.permute(0, 3, 1, 2)
    bias = layer.raw_bias if raw else layer.dense_bias
    padding, stride = [layer.kernel // 2] * 2, [layer.stride] * 2
    if raw or not (layer.relu and x.is_cuda):
        y = F.conv2d(images, layer.weight, bias, stride, padding).permute(0, 2, 3, 1)
        if not raw:
            y = y if residual is None else y + residual
            y = F.relu(y) if layer.relu else y
        return y.contiguous()
    if residual is None:
        y = torch.cudnn_convolution_relu(images, layer.weight, bias, stride, padding, [1, 1], 1)
    else:
        y = torch.cudnn_convolution_add_relu(
            images, layer.weight, residual.permute(0, 3, 1, 2), 1.0, bias, stride, padding, [1, 1], 1
        )
    return y.permute(0, 2, 3, 1).contiguous()


def convolve(
    layer: Layer,
    x: Tensor,
    out: Tensor,
    rows: Rows | None,
    *,
    residual: Tensor | None,
    kept: Tensor | None,
    tile: Tile | None = None,
    needed: bool = False,
) -> None:
    """Active rows of `out` (or all `needed` ones); of `kept`, before shift, residual and ReLU, those at the edge."""
    items, height, width, channels = x.shape
    out_height, out_width = out.shape[1:3]
    capacity = items * out_height * out_width
    chosen = tile or tiles(layer, capacity)[0]
    columns = layer.matrix.shape[1]
    grid = (-(-capacity // chosen.rows) * (columns // chosen.columns),)
    kernels.convolve[grid](
        x, layer.matrix, layer.bias, layer.shift, out if residual is None else residual, out if kept is None else kept,
        out, rows.entries if rows else out, rows.counts if rows else out, height, width, out_height, out_width,
        capacity, columns, channels, layer.out, x.stride(2), 0 if residual is None else residual.stride(2),
        0 if kept is None else kept.stride(2), out.stride(2), int(kept is not None),
        0 if residual is None else layer.out, layer.floor,
        TAPS=layer.kernel**2, STRIDE=layer.stride, LISTED=rows is not None, NEEDED=needed,
        ROWS=chosen.rows, BLOCK=chosen.columns, DEPTH=chosen.depth, TAIL=channels % chosen.depth,
        CACHED=chosen.cached,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip


def interpolate(
    layer: Layer, rows: Rows, kept: Tensor, residual: Tensor | None, out: Tensor, *, active_too: bool = False
) -> Tensor:
    """Interpolated rows of `out` (and the active ones from `kept`, where a dense convolution has left them)."""
    items, height, width, _ = out.shape
    capacity = items * height * width
    span = min(128, power_of_two(layer.out))
    size = 16
    grid = (-(-capacity // size), -(-layer.out // span))
    kernels.interpolate[grid](
        kept, layer.stencil, layer.shift, out if residual is None else residual, out, rows.entries, rows.counts,
        rows.mask, height, width, capacity, layer.out, rows.factor, layer.reach, kept.stride(2),
        0 if residual is None else residual.stride(2), out.stride(2), 0 if residual is None else layer.out, layer.floor,
        ACTIVE_TOO=active_too, ROWS=size, BLOCK=span, num_warps=4,
    )  # fmt: skip
    return out
