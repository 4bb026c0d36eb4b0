"""Masked interpolation for training, `masked.fill` (equations 3-6), as one forward and one backward pass.

gpu.py and cpu.py hold the kernels of the two passes.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from models.executors.cpu.library import library
from models.network import masked
from models.network.masked import MaskedConv2d
from models.training.fused import cpu

Launch = Callable[..., tuple[Tensor, Tensor]]
"""launch(x, y, codes, scale, window, backward=) -> the result and the gradient of `scale`, a scalar.

Forward: the result is `x` (N, C, H, W), channels last, with inactive positions interpolated; `y` is not read.
Backward: `x` is the gradient of that result, and `y` the forward pass's `x`. `codes`: see the function `codes`.
"""

ACTIVE, BORDER = 1, 2
"""Bits of a position's code."""

# Triton is imported only where there is a GPU: it is not installed elsewhere.
gpu_fill: Any = importlib.import_module("models.training.fused.gpu") if torch.cuda.is_available() else None
network_layers: Any = importlib.import_module("models.training.fused.layers") if torch.cuda.is_available() else None
gpu_loss: Any = importlib.import_module("models.training.fused.entropy") if torch.cuda.is_available() else None

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _launch(like: Tensor) -> Launch:
    """The kernel for the device of a tensor."""
    return gpu_fill.launch if like.is_cuda else cpu.launch


def codes(mask: Tensor, window: int) -> Tensor:
    """uint8 (N, 1, H, W). Bit 0: the position is active. Bit 1: a position of the other kind lies within the window.
    Codes are kept as long as `mask` (N, 1, H, W), because all layers of a size share them."""
    if mask not in _known:
        _known[mask] = {}
    known = _known[mask]
    if window not in known:
        pool = F.max_pool2d(torch.cat([mask, 1 - mask], 1), window, 1, window // 2)
        border = torch.where(mask > 0, pool[:, 1:], pool[:, :1])
        known[window] = (ACTIVE * mask + BORDER * border).to(torch.uint8).contiguous()
    found: Tensor = known[window]
    return found


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, codes: Tensor, scale: Tensor, window: int) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(y, codes, scale)
        ctx.window = window
        return _launch(y)(y, y, codes, scale, window, backward=False)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        y, codes, scale = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        found, slope = _launch(y)(gradient, y, codes, scale, ctx.window, backward=True)
        return found, None, slope.to(scale.dtype), None


def fill(y: Tensor, mask: Tensor, scale: Tensor, window: int) -> Tensor:
    """As `masked.fill`: y (N, C, H, W) with inactive positions interpolated; mask (N, 1, H, W), 1 where active."""
    native = y.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
    if mask.requires_grad or not (y.is_cuda or native):  # kernels take masks of 0 and 1 only, not soft masks
        return masked.fill(y, mask, scale, window)
    return _Fill.apply(y, codes(mask, window), scale, window)  # type: ignore[no-any-return, no-untyped-call]


def fuse(network: nn.Module, device: torch.device, *, all_layers: bool = False) -> None:
    """Gives every masked convolution of `network` the kernel for `device`, if there is one; a CPU has none if there was
    no compiler at installation. On a GPU, `all_layers` also gives the other layers their kernels, see layers.py."""
    if device.type == "cpu":
        try:
            library()
        except OSError:
            return
    for layer in network.modules():
        if isinstance(layer, MaskedConv2d):
            layer.fill = fill
    if device.type == "cuda" and all_layers:
        network_layers.install(network)
