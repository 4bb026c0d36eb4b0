"""Masked convolution: convolve active positions, interpolate the others (equations 3-6).

This is the meaning, written densely; executors save the work. Imports only masks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.confidence import Masks


class MaskAware(nn.Module):
    """A layer whose forward takes the masks as a second argument."""


class Chain(nn.Sequential, MaskAware):
    """Layers in sequence; the masks are handed to those that know them."""

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        for layer in self:
            x = layer(x, masks) if isinstance(layer, MaskAware) else layer(x)
        return x


class Conv2d(nn.Conv2d, MaskAware):
    """A convolution that is never masked: the stem, layer1, exit 1, and networks without masks."""

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        return super().forward(x)


class MaskedConv2d(nn.Conv2d, MaskAware):
    """y = conv(x), bias included; where the mask is 0, the weighted mean of the active y around (equation 4).

    `Lambda` is the trainable scale of the RBF kernel; it has the name it bears in released checkpoints.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, *, padding: int, bias: bool, window: int
    ) -> None:
        super().__init__(channels, out, kernel, stride, padding, bias=bias)
        self.window = window
        self.Lambda = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        y = super().forward(x)
        if masks is None:
            return y
        mask = masks.at(y)
        z = y * mask
        return z + interpolate(z, self.Lambda, self.window) * (1 - mask)


def rbf(scale: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The kernel of equation 6 in its separable form: taps (window,) and the norm, a scalar.

    The weight at offset (dy, dx) is taps[dy] * taps[dx] / norm, and 0 at the centre. The norm is the sum of the
    weights + 1e-5, the same at borders and for any mask.
    """
    offset = torch.arange(window, device=scale.device, dtype=torch.float32) - window // 2
    taps = torch.exp(-(scale.float() ** 2) * offset**2)
    return taps, taps.sum() ** 2 - 1 + 1e-5


def interpolate(z: Tensor, scale: Tensor, window: int) -> Tensor:
    """The RBF-weighted mean of each position's neighbours, the position itself left out (equation 5).

    `z` (N, C, H, W) is 0 at inactive positions; `scale` is the scalar lambda. Returns (N, C, H, W).
    """
    taps, norm = rbf(scale, window)
    taps = taps.to(z.dtype)
    radius = window // 2
    height, width = z.shape[-2:]
    padded = F.pad(z, (0, 0, radius, radius))
    rows = sum((padded[:, :, i : i + height] * taps[i] for i in range(window)), start=torch.zeros_like(z))
    padded = F.pad(rows, (radius, radius, 0, 0))
    both = sum((padded[:, :, :, i : i + width] * taps[i] for i in range(window)), start=-z)
    return both / norm.to(z.dtype)
