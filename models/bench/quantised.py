"""The runtimes in eight bits that `python -m models bench` compares: post-training quantisation as each of them
recommends it, on the same few images. Each stage is quantised alone, on what the stages before it give in float32.
"""

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.data import camvid
from models.evaluation.ranges import RangeObserver
from models.imaging.geometry import Size
from models.imaging.preprocess import normalise
from models.network.adpc import AdpcNet
from models.quantisation import Scales

IMAGES = 4
"""How many images a stage is calibrated on. Random weights need no more: only the time counts."""

Stage = Any
"""Computes from one exit to the next; see `runtimes.StageFunction`."""
NamedArrays = Mapping[str, NDArray[np.float32]]


def sparse_scales(net: AdpcNet, inputs: Sequence[Tensor]) -> Scales:
    """The scales of a network that has no model directory."""
    observer = RangeObserver(net)
    observer.observe_inputs(inputs)
    return Scales("", observer.scales())


def stage_inputs(
    stages: Sequence[Stage], known: Sequence[Mapping[str, object]], inputs: Sequence[Tensor]
) -> list[list[NamedArrays]]:
    """What every stage reads of each input, by name, as the stages before it, in float32, give it."""
    found: list[list[NamedArrays]] = [[] for _ in stages]
    for image in inputs:
        values: list[NDArray[np.float32]] = [image.numpy()]
        for stage, names, arrays in zip(stages, known, found, strict=True):
            arrays.append(dict(zip(names, values, strict=True)))
            _, *values = stage(*values)
    return found


class _Reader:
    """ONNX Runtime's way to read calibration data."""

    def __init__(self, arrays: Sequence[NamedArrays]) -> None:
        self._left: Iterator[NamedArrays] = iter(arrays)

    def get_next(self) -> NamedArrays | None:
        return next(self._left, None)


def onnx_int8(graph: bytes, arrays: Sequence[NamedArrays]) -> bytes:
    """A graph with 8-bit features and weights between QuantizeLinear and DequantizeLinear nodes (QDQ)."""
    tools = importlib.import_module("onnxruntime.quantization")
    clean = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        given, cleaned, found = (Path(folder) / f"{name}.onnx" for name in ("given", "cleaned", "found"))
        given.write_bytes(graph)
        clean.quant_pre_process(str(given), str(cleaned), skip_symbolic_shape=True)
        tools.quantize_static(
            str(cleaned),
            str(found),
            _Reader(arrays),
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            per_channel=True,
        )
        return found.read_bytes()


def openvino_int8(model: Any, arrays: Sequence[NamedArrays]) -> Any:
    """An OpenVINO model after NNCF's post-training quantisation."""
    nncf = importlib.import_module("nncf")
    return nncf.quantize(model, nncf.Dataset(list(arrays)), subset_size=len(arrays))


def calibration_images(folder: str | None, net: AdpcNet, size: Size, noise: Sequence[Tensor]) -> list[Tensor]:
    """Inputs (1, 3, H, W) to calibrate on: the first training images of a folder of CamVid, resized to `size`; `noise`
    without a folder."""
    if folder is None:
        return list(noise)
    found = []
    for scene in camvid.read(Path(folder), "train")[:IMAGES]:
        inputs = normalise(scene.image(), net.config)
        found.append(F.interpolate(inputs, size=size, mode="bilinear", align_corners=False))
    return found
