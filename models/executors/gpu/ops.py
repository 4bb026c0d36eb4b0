"""Ops on rows: what the layers of a network launch, on the rows of a geometry or on every position.

Feature maps are channels-last tensors (N, h, w, C), C padded with zeros, see `layers.padded`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.executors.gpu import kernels
from models.executors.gpu.geometry import DeviceGeometry, LevelRows
from models.executors.gpu.layers import Tile, TritonConvolution, candidate_tiles, layer_name, power_of_two
from models.executors.gpu.streams import SideStreams

ADD_ROWS, INTERPOLATE_ROWS = 32, 16
"""Rows of one program of `kernels.add_resampled` and of `kernels.interpolate`."""
MAX_BLOCK = 128
"""The most channels of one program of either."""

Result = TypeVar("Result")


class RowOps:
    """The ops of one step. `geometry`: the rows that they compute; None: every position is active.

    `dense`: names of convolutions that cuDNN computes at every position, because that was measured to be faster.
    `tiles`: by the name of a convolution, the tile that was measured to be the fastest. `noted`: receives each masked
    convolution that is run, by its name, with the shape of its input. For names see `layers.layer_name`.
    """

    def __init__(
        self,
        geometry: DeviceGeometry | None,
        streams: SideStreams,
        *,
        dense: frozenset[str] = frozenset(),
        tiles: Mapping[str, Tile] | None = None,
        noted: dict[str, tuple[TritonConvolution, torch.Size]] | None = None,
    ) -> None:
        self._geometry = geometry
        self._streams = streams
        self._dense = dense
        self._tiles = tiles or {}
        self._noted = noted

    def rows(self, height: int) -> LevelRows | None:
        """The rows of maps with so many lines; None if every position is active."""
        return None if self._geometry is None else self._geometry.at(height)

    def convolve(
        self, conv: TritonConvolution, x: Tensor, residual: Tensor | None = None, *, halo: bool = True
    ) -> Tensor:
        """The convolution of `x` (N, h, w, in_channels) with what follows it: (N, h / stride, w / stride,
        out_channels). `residual`: of the result's shape. `halo`: False if only active rows of the result are read."""
        rows = self.rows(x.shape[1] // conv.stride)
        if rows is None:
            return convolve_densely(conv, x, residual)
        name = layer_name(conv, x)
        if self._noted is not None:
            self._noted[name] = conv, x.shape
        if name in self._dense:
            pre_activation = convolve_densely(conv, x, None, epilogue=False)
            out = torch.zeros_like(pre_activation)
            return interpolate(conv, rows, pre_activation, residual, out, active_too=True)
        shape = (x.shape[0], x.shape[1] // conv.stride, x.shape[2] // conv.stride, conv.out_channels)
        # cuDNN's Winograd convolutions mix rows that cancel out, so that one that is not a number spoils others: where
        # a dense convolution may read the result, rows that are not computed must be zeros.
        out = x.new_zeros(shape) if self._dense else x.new_empty(shape)
        tile = self._tiles.get(name)
        if not halo:
            convolve(conv, x, out, rows, residual=residual, pre_activation=None, tile=tile)
            return out
        pre_activation = x.new_empty(shape)
        convolve(conv, x, out, rows, residual=residual, pre_activation=pre_activation, tile=tile)
        return interpolate(conv, rows, pre_activation, residual, out)

    def convolve_needed(self, conv: TritonConvolution, x: Tensor) -> Tensor:
        """A 1x1 convolution whose results are summed before they are masked: active rows and the halo."""
        rows = self.rows(x.shape[1])
        if rows is None:
            return convolve_densely(conv, x, None)
        out = x.new_empty((*x.shape[:3], conv.out_channels))
        convolve(conv, x, out, rows, residual=None, pre_activation=None, needed=True)
        return out

    def convolve_scores(self, conv: TritonConvolution, x: Tensor, out: Tensor) -> None:
        """The last convolution of an exit: active rows of `out`, float32 (N, h, w, out_channels)."""
        convolve(conv, x, out, self.rows(x.shape[1]), residual=None, pre_activation=None)

    def add_resampled(
        self,
        maps: Sequence[Tensor],
        out: Tensor,
        *,
        pool: int = 1,
        relu: bool = False,
        bilinear: bool = True,
        halo: bool = True,
    ) -> Tensor:
        """The sum of one to four maps (N, ?, ?, C), each upsampled to the size of `out` (N, h, w, C), or, if `pool` is
        2, to twice that size, of which 2x2 are averaged. `halo`: False if only active rows of the result are read."""
        batch, height, width, channels = out.shape
        rows = self.rows(height)
        all_rows = batch * height * width
        four = [*maps, *[maps[0]] * (4 - len(maps))]
        shrinks = [height * pool // each.shape[1] for each in maps] + [0] * (4 - len(maps))
        block = min(MAX_BLOCK, power_of_two(channels))
        grid = (-(-all_rows // ADD_ROWS), -(-channels // block))
        kernels.add_resampled[grid](
            *four, out, rows.row_list if rows else out, rows.counts if rows else out, height, width, all_rows,
            *(each.stride(2) for each in four), out.stride(2), channels, *shrinks, pool, bilinear, relu,
            LISTED=rows is not None, NEEDED=rows is not None and halo, ROWS=ADD_ROWS, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return out

    def parallel(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """See `SideStreams.parallel`."""
        return self._streams.parallel(jobs)


def convolve_densely(conv: TritonConvolution, x: Tensor, residual: Tensor | None, *, epilogue: bool = True) -> Tensor:
    """The convolution at every position, by cuDNN. `epilogue`: False for pre-activations, without shift, residual and
    ReLU."""
    images = x.permute(0, 3, 1, 2)
    bias = conv.cudnn_bias_and_shift if epilogue else conv.cudnn_bias
    padding, stride = [conv.kernel_size // 2] * 2, [conv.stride] * 2
    if not epilogue or not (conv.relu and x.is_cuda):
        y = F.conv2d(images, conv.cudnn_weight, bias, stride, padding).permute(0, 2, 3, 1)
        if epilogue:
            y = y if residual is None else y + residual
            y = F.relu(y) if conv.relu else y
        return y.contiguous()
    if residual is None:
        y = torch.cudnn_convolution_relu(images, conv.cudnn_weight, bias, stride, padding, [1, 1], 1)
    else:
        y = torch.cudnn_convolution_add_relu(
            images, conv.cudnn_weight, residual.permute(0, 3, 1, 2), 1.0, bias, stride, padding, [1, 1], 1
        )
    return y.permute(0, 2, 3, 1).contiguous()


def convolve(
    conv: TritonConvolution,
    x: Tensor,
    out: Tensor,
    rows: LevelRows | None,
    *,
    residual: Tensor | None,
    pre_activation: Tensor | None,
    tile: Tile | None = None,
    needed: bool = False,
) -> None:
    """Launches `kernels.convolve`: active rows of `out`, or active rows and the halo if `needed`, or all without
    `rows`. Those that interpolation reads leave their pre-activation in `pre_activation`, of the shape of `out`."""
    batch, height, width, in_channels = x.shape
    out_height, out_width = out.shape[1:3]
    all_rows = batch * out_height * out_width
    tile = tile or candidate_tiles(conv, all_rows)[0]
    columns = conv.weights.shape[1]
    grid = (-(-all_rows // tile.rows) * (columns // tile.columns),)
    kernels.convolve[grid](
        x, conv.weights, conv.bias, conv.shift, out if residual is None else residual,
        out if pre_activation is None else pre_activation, out, rows.row_list if rows else out,
        rows.counts if rows else out, height, width, out_height, out_width, all_rows, columns, in_channels,
        conv.out_channels, x.stride(2), 0 if residual is None else residual.stride(2),
        0 if pre_activation is None else pre_activation.stride(2), out.stride(2), int(pre_activation is not None),
        0 if residual is None else conv.out_channels, conv.floor,
        TAPS=conv.kernel_size**2, STRIDE=conv.stride, LISTED=rows is not None, NEEDED=needed,
        ROWS=tile.rows, BLOCK=tile.columns, DEPTH=tile.depth, TAIL=in_channels % tile.depth, CACHED=tile.cached,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def interpolate(
    conv: TritonConvolution,
    rows: LevelRows,
    pre_activation: Tensor,
    residual: Tensor | None,
    out: Tensor,
    *,
    active_too: bool = False,
) -> Tensor:
    """Launches `kernels.interpolate`: halo rows of `out`, from the pre-activations of active rows around them; with
    `active_too`, active rows as well, from their own."""
    batch, height, width, _ = out.shape
    all_rows = batch * height * width
    block = min(MAX_BLOCK, power_of_two(conv.out_channels))
    grid = (-(-all_rows // INTERPOLATE_ROWS), -(-conv.out_channels // block))
    kernels.interpolate[grid](
        pre_activation, conv.halo_weights, conv.shift, out if residual is None else residual, out, rows.row_list,
        rows.counts, rows.mask, height, width, all_rows, conv.out_channels, rows.mask_step, conv.reach,
        pre_activation.stride(2), 0 if residual is None else residual.stride(2), out.stride(2),
        0 if residual is None else conv.out_channels, conv.floor,
        ACTIVE_TOO=active_too, ROWS=INTERPOLATE_ROWS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
