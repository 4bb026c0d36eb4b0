"""Masked convolution: active positions are convolved, inactive ones interpolated (equations 3-6).

This code is the reference: it computes every position and then applies the mask. Executors save that work.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.confidence import Masks

Fill = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""A function with the arguments and the result of `fill`."""


class MaskAware(nn.Module):
    """A layer whose forward takes the masks as a second argument."""


class Chain(nn.Sequential, MaskAware):
    """Layers in sequence; those that are `MaskAware` are given the masks."""

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        for layer in self:
            x = layer(x, masks) if isinstance(layer, MaskAware) else layer(x)
        return x


class Conv2d(nn.Conv2d, MaskAware):
    """A convolution that is never masked: the stem, layer1, exit 1, and networks without masks."""

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        return super().forward(x)


class MaskedConv2d(nn.Conv2d, MaskAware):
    """y = conv(x), bias included; at inactive positions the weighted mean of the active y around (equation 4).

    `Lambda` is the trainable scale of the RBF kernel; released checkpoints call it so. `fill` interpolates: the
    function of this module, unless training or export puts a faster one in its place.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, *, padding: int, bias: bool, window: int
    ) -> None:
        super().__init__(channels, out, kernel, stride, padding, bias=bias)
        self.window = window
        self.Lambda = nn.Parameter(torch.tensor(3.0))
        self.fill: Fill = fill

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = super().forward(x)
        return y if masks is None else self.fill(y, masks.at(y), self.Lambda, self.window)


def fill(y: Tensor, mask: Tensor, scale: Tensor, window: int) -> Tensor:
    """`y` (N, C, H, W) where `mask` (N, 1, H, W) is 1; elsewhere its interpolation from active positions (equation 3).

    `scale`: lambda of equation 6, a scalar. `window`: see `Masking`.
    """
    z = y * mask
    return z + interpolate(z, scale, window) * (1 - mask)


def rbf(scale: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The kernel of equation 6 in its separable form: taps, float32 (window,), and the norm, a scalar.

    The weight at offset (dy, dx) is taps[dy] * taps[dx] / norm, and 0 at the centre. The norm is the sum of all taps'
    products but the centre's, plus 1e-5; it is the same at borders and for every mask.
    """
    offset = torch.arange(window, device=scale.device, dtype=torch.float32) - window // 2
    taps = torch.exp(-(scale.float() ** 2) * offset**2)
    beside = 2 * taps[: window // 2].sum()
    # (1 + beside)^2 - 1, without subtracting: taps beside the centre may be 1e-4 of it.
    return taps, beside * (2 + beside) + 1e-5


def interpolate(z: Tensor, scale: Tensor, window: int) -> Tensor:
    """The RBF-weighted mean of each position's neighbours, without the position itself (equation 5).

    `z`: (N, C, H, W), 0 at inactive positions. `scale`: lambda, a scalar. Returns (N, C, H, W).
    """
    taps, norm = rbf(scale, window)
    taps = taps.to(z.dtype)
    # The centre is left out by never adding it, so that half precision keeps the small weights around it.
    above_below = _beside(z, taps, 2)
    return (above_below + _beside(z + above_below, taps, 3)) / norm.to(z.dtype)


def _beside(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Weighted sum of the neighbours on both sides along `dim` (2: above and below, 3: left and right); they are 0
    beyond the border."""
    radius = len(taps) // 2
    size = x.shape[dim]
    padded = F.pad(x, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0))
    pairs = (padded.narrow(dim, i, size) + padded.narrow(dim, 2 * radius - i, size) for i in range(radius))
    return sum((taps[i] * pair for i, pair in enumerate(pairs)), start=torch.zeros_like(x))
