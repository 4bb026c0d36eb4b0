"""Convolutions ready for the GPU, and how one is run: on the rows that matter, or everywhere.

Holds no network. Feature maps are channels-last tensors (N, h, w, C), C padded to multiples of 16 with zeros.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.configs import Masking
from models.executors import triton_kernels as kernels
from models.masked import MaskedConv2d, rbf

GRANULE = 16  # channels: the least that a tensor core multiplies
IMAGE_CHANNELS = 8
PATCH = 8  # lists follow patches of this many positions squared, so that neighbouring rows share cache lines
LEVELS = 4  # feature sizes: h / 4 to h / 32
NEGLIGIBLE = 2.0**-24  # of the sum of an interpolation's weights: below a float's resolution


Result = TypeVar("Result")


def padded(channels: int) -> int:
    return -(-channels // GRANULE) * GRANULE


@dataclass(frozen=True)
class Tile:
    """What one program of `convolve` computes (rows by channels), in steps of `depth`."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    cached: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution with its batch norm folded in, and whether a ReLU follows (after a residual, if one is given).

    `bias` goes before the interpolation, `shift` after it: float32. `weight`: (out, channels, k, k) for cuDNN, with
    `dense_bias`, which is both, and `raw_bias`, the former.
    `matrix`: (k * k * channels, columns) for our kernel. `stencil`: float32 ((2 * reach + 1) ** 2,), the weights of
    equation 6 without those too small to matter; None where nothing is ever masked.
    """

    weight: Tensor
    dense_bias: Tensor
    raw_bias: Tensor
    matrix: Tensor
    bias: Tensor
    shift: Tensor
    stencil: Tensor | None
    reach: int
    stride: int
    relu: bool

    @property
    def out(self) -> int:
        return self.weight.shape[0]

    @property
    def floor(self) -> float:
        """What results are cut off at."""
        return 0.0 if self.relu else -math.inf

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride} {self.channels} -> {self.out}"


def fold(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    relu: bool,
    dtype: torch.dtype,
    segments: Sequence[int] = (),
    *,
    part: int | None = None,
) -> Layer:
    """`segments`: real channels of the maps that the input is put together from, each padded; none: it is one map.

    `part`: only what this one of the segments adds to the result, bias and shift with the first.
    An image has its three channels padded to `IMAGE_CHANNELS` only: it is convolved by cuDNN alone.
    """
    weight, bias = conv.weight.detach().double(), torch.zeros_like(conv.weight[:, 0, 0, 0], dtype=torch.float64)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    shift = torch.zeros_like(bias)
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        weight, bias = weight * scale[:, None, None, None], bias * scale
    out = padded(len(weight))
    parts = torch.split(weight, list(segments or (weight.shape[1],)), 1)
    if part is not None:
        parts = parts[part : part + 1]
        bias, shift = (bias, shift) if part == 0 else (0 * bias, 0 * shift)
    granule = IMAGE_CHANNELS if weight.shape[1] == 3 else GRANULE
    weight = torch.cat([F.pad(each, (0, 0, 0, 0, 0, -each.shape[1] % granule)) for each in parts], 1)
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, out - len(weight)))
    columns = -(-out // block(out)) * block(out)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, out)
    stencil, reach = None, 0
    if isinstance(conv, MaskedConv2d):
        stencil, reach = _stencil(conv)
    return Layer(
        weight.to(dtype).to(memory_format=torch.channels_last),
        F.pad(bias + shift, (0, out - len(bias))).to(dtype),
        F.pad(bias, (0, out - len(bias))).to(dtype),
        F.pad(matrix, (0, columns - out)).to(dtype).contiguous(),
        F.pad(bias, (0, columns - len(bias))).float(),
        F.pad(shift, (0, columns - len(shift))).float(),
        stencil,
        reach,
        conv.stride[0],
        relu,
    )


def _stencil(conv: MaskedConv2d) -> tuple[Tensor, int]:
    taps, norm = rbf(conv.Lambda.detach().double(), conv.window)
    weights = taps.double()[:, None] * taps.double() / norm.double()
    centre = conv.window // 2
    weights[centre, centre] = 0
    matters = (weights > NEGLIGIBLE * weights.sum()).nonzero()
    reach = int((matters - centre).abs().max()) if len(matters) else 0
    cut = slice(centre - reach, centre + reach + 1)
    return weights[cut, cut].float().flatten().contiguous(), reach


def block(out: int) -> int:
    """Output channels of one program."""
    return min(power_of_two(out), 64)


def power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << (number - 1).bit_length()


def tile(layer: Layer, capacity: int) -> Tile:
    columns = block(layer.out)
    depth = next(d for d in (64, 32, 16) if layer.channels % d in (0, 16, 32) and layer.channels >= d)
    programs = -(-capacity // 128) * -(-layer.out // columns)
    rows = 128 if programs >= 256 else 64
    return Tile(rows, columns, depth, 4, 4, cached=False)


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
"""Criteria of `settle`. What they settle stays settled, because its scores no longer change."""


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

    `dense`: masked layers that are convolved everywhere, by cuDNN, because that was measured to be faster.
    `streams`: filled as needed; None: there are none. `seen`: takes the masked layers that are run, with the shapes of
    their inputs.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        height: int,
        dense: frozenset[str],
        streams: "list[torch.cuda.Stream] | None",
        seen: dict[str, tuple[Layer, torch.Size]] | None = None,
    ) -> None:
        self.rows = rows
        self.height = height
        self.dense = dense
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
            out = torch.empty_like(kept)
            return interpolate(layer, rows, kept, residual, out, active_too=True)
        shape = (x.shape[0], x.shape[1] // layer.stride, x.shape[2] // layer.stride, layer.out)
        out = x.new_empty(shape)
        kept = x.new_empty(shape) if interpolated else out
        convolve(layer, x, out, rows, residual=residual, kept=kept if interpolated else None)
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
    needed: bool = False,
) -> None:
    """Active rows of `out` (or all `needed` ones); of `kept`, before shift, residual and ReLU, those at the edge."""
    items, height, width, channels = x.shape
    out_height, out_width = out.shape[1:3]
    capacity = items * out_height * out_width
    chosen = tile(layer, capacity)
    columns = layer.matrix.shape[1]
    grid = (-(-capacity // chosen.rows) * (columns // chosen.columns),)
    kernels.convolve[grid](
        x, layer.matrix, layer.bias, layer.shift, out if residual is None else residual, out if kept is None else kept,
        out, rows.entries if rows else out, rows.counts if rows else out, height, width, out_height, out_width,
        capacity, columns, layer.out, x.stride(2), 0 if residual is None else residual.stride(2),
        0 if kept is None else kept.stride(2), out.stride(2), int(kept is not None), layer.floor,
        ADD=residual is not None, TAPS=layer.kernel**2, STRIDE=layer.stride, CHANNELS=channels, LISTED=rows is not None,
        NEEDED=needed, ROWS=chosen.rows, BLOCK=chosen.columns, DEPTH=chosen.depth, TAIL=channels % chosen.depth,
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
        0 if residual is None else residual.stride(2), out.stride(2), layer.floor,
        ACTIVE_TOO=active_too, ADD=residual is not None, ROWS=size, BLOCK=span, num_warps=4,
    )  # fmt: skip
    return out


def measure(layer: Layer, shape: torch.Size, rows: Sequence[Rows], counts: Tensor, height: int) -> float:
    """The active share from which it is faster to convolve everywhere; 1 or more: never.

    `rows` are of maps `height` high at the finest size; their masks and lists are overwritten.
    """
    x = torch.randn(shape, device=layer.weight.device).to(layer.weight.dtype)
    mask = rows[0].mask
    crop = torch.zeros((len(mask), 2), dtype=torch.int32, device=x.device)

    def seconds(share: float, dense: frozenset[str]) -> float:
        mask.zero_()
        mask[:, : round(share * mask.shape[1])] = 1
        work = Pass(rows, height, dense, None)
        list_rows(work, counts, crop, layer.reach, everywhere=False)
        return time_of(lambda: work.convolve(layer, x))

    half, full = seconds(0.5, frozenset()), seconds(1, frozenset())
    dense = seconds(1, frozenset((name(layer, x),)))
    return 1 + (dense - full) / (2 * (full - half)) if full > half else float(dense >= full)


def time_of(job: Callable[[], object], repeats: int = 8, trials: int = 3) -> float:
    """Seconds that `job` takes on the GPU, launches not counted: the fastest of some trials."""
    job()
    graph = capture(lambda: [job() for _ in range(repeats)])
    times = []
    for _ in range(trials + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1000 / repeats)
    return min(times[1:])


def capture(job: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """`job` as a graph. Unlike torch.cuda.graph, this collects no garbage first, which would take most of the time."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(pool, capture_error_mode="thread_local")
        job()
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph
