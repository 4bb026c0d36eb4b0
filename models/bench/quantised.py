"""Post-training quantisation as the runtimes recommend it, for their rows in eight bits. Each stage is quantised alone,
on what the stages before it give in float32.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Stage = Any
"""Computes from one exit to the next; see `runtimes.StageFunction`."""
NamedArrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class StageInputs:
    """What the last of `stages`, all of torch, reads of each of the images: arrays by `names`. They are computed anew
    whenever they are asked for, because all of them together take too much memory."""

    stages: Sequence[Stage]
    names: Sequence[str]
    images: Callable[[], Iterable[Tensor]]

    def __iter__(self) -> Iterator[NamedArrays]:
        for image in self.images():
            values: Sequence[Tensor] = [image]
            with torch.inference_mode():
                for stage in self.stages[:-1]:
                    _, *values = stage(*values)
            yield dict(zip(self.names, (np.ascontiguousarray(value.numpy()) for value in values), strict=True))


class _Reader:
    """ONNX Runtime's way to read calibration data."""

    def __init__(self, arrays: Iterable[NamedArrays]) -> None:
        self._left: Iterator[NamedArrays] = iter(arrays)

    def get_next(self) -> NamedArrays | None:
        return next(self._left, None)


def onnx_int8(graph: Path, arrays: Iterable[NamedArrays]) -> None:
    """Replaces a graph by one with 8-bit features and weights between QuantizeLinear and DequantizeLinear nodes."""
    tools = importlib.import_module("onnxruntime.quantization")
    clean = importlib.import_module("onnxruntime.quantization.shape_inference")
    cleaned = graph.with_suffix(".clean.onnx")
    clean.quant_pre_process(str(graph), str(cleaned), skip_symbolic_shape=True)
    tools.quantize_static(
        str(cleaned),
        str(graph),
        _Reader(arrays),
        quant_format=tools.QuantFormat.QDQ,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        per_channel=True,
    )
    cleaned.unlink()


def openvino_int8(model: Any, arrays: Iterable[NamedArrays]) -> Any:
    """An OpenVINO model after NNCF's post-training quantisation."""
    nncf = importlib.import_module("nncf")
    return nncf.quantize(model, nncf.Dataset(arrays))
