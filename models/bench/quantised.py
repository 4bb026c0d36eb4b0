"""Post-training quantisation as the runtimes recommend it, for their rows in eight bits. Each stage is quantised alone,
on what the stages before it give in float32.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Stage = Any
"""Computes from one exit to the next; see `runtimes.StageFunction`."""
NamedArrays = Mapping[str, NDArray[np.float32]]


def stage_inputs(
    stages: Sequence[Stage], names: Sequence[Sequence[str]], inputs: Sequence[Tensor]
) -> list[list[NamedArrays]]:
    """What every stage, of torch, reads of each input, by name."""
    found: list[list[NamedArrays]] = [[] for _ in stages]
    with torch.inference_mode():
        for image in inputs:
            values = [image]
            for stage, named, arrays in zip(stages, names, found, strict=True):
                arrays.append(dict(zip(named, (np.ascontiguousarray(value.numpy()) for value in values), strict=True)))
                _, *values = stage(*values)
    return found


class _Reader:
    """ONNX Runtime's way to read calibration data."""

    def __init__(self, arrays: Sequence[NamedArrays]) -> None:
        self._left: Iterator[NamedArrays] = iter(arrays)

    def get_next(self) -> NamedArrays | None:
        return next(self._left, None)


def onnx_int8(graph: Path, arrays: Sequence[NamedArrays]) -> None:
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


def openvino_int8(model: Any, arrays: Sequence[NamedArrays]) -> Any:
    """An OpenVINO model after NNCF's post-training quantisation."""
    nncf = importlib.import_module("nncf")
    return nncf.quantize(model, nncf.Dataset(list(arrays)), subset_size=len(arrays))
