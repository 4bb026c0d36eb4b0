"""Launches the CPU kernel of masked interpolation, which is in the native library."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref
from functools import cache

import torch
from torch import Tensor

from models.executors.cpu.library import library
from models.executors.cpu.structures import NativeFeatureShape, NativeStencilTap

NEGLIGIBLE = 1e-10
"""Smaller weights do not change a float32 sum, so they are left out."""


def launch(x: Tensor, y: Tensor, codes: Tensor, scale: Tensor, window: int, *, backward: bool) -> tuple[Tensor, Tensor]:
    """See `fused.Launch`; float32 or bfloat16."""
    count, channels, height, width = x.shape
    neighbours = _neighbours(float(scale.detach()), window)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    rows = NativeFeatureShape(height, width, channels)

    def part(first: int, last: int) -> float:
        slope = ctypes.c_double()
        if library().fill_lines(
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            y.data_ptr(),
            codes.data_ptr(),
            byref(rows),
            neighbours,
            len(neighbours),
            out.data_ptr(),
            first,
            last,
            backward,
            byref(slope),
        ):
            raise MemoryError(f"no memory for a line of {channels} channels")
        return slope.value

    threads = torch.get_num_threads()
    edges = [count * height * i // threads for i in range(threads + 1)]
    parts = map(part, edges, edges[1:]) if threads == 1 else _pool(threads).map(part, edges, edges[1:])
    return out, torch.tensor(sum(parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "fill")


def _neighbours(scale: float, window: int) -> "ctypes.Array[NativeStencilTap]":
    """The neighbours whose weight is not negligible, with its derivative by the scale; see `masked.rbf`."""
    offset = torch.arange(window, dtype=torch.float64) - window // 2
    distance = (offset[:, None] ** 2 + offset**2).flatten()
    weight = torch.exp(-(scale**2) * distance)
    weight[window * window // 2] = 0
    norm = weight.sum() + 1e-5
    slope = -2 * scale * distance * weight
    slope = (slope - weight * slope.sum() / norm) / norm
    found = [
        NativeStencilTap(index // window - window // 2, index % window - window // 2, *values)
        for index, values in enumerate(zip((weight / norm).tolist(), slope.tolist(), strict=True))
        if max(map(abs, values)) > NEGLIGIBLE
    ]
    return (NativeStencilTap * len(found))(*found)
