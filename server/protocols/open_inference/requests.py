"""What an inference request of version 2 asks for: the image, the options and the outputs. Pure."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.catalog import ServedModel
from server.errors import InvalidError, NotFoundError
from server.protocols.open_inference.tensors import InputTensor, read_inputs, read_outputs, split_body
from server.protocols.options import RequestOptions, parse_options
from server.protocols.values import shown

VERSION = "1"
"""The version of every model."""
INPUT = "image"
IGNORED = ("binary_data_output", "content_type", "sequence_start", "sequence_end")
"""Parameters that client libraries send on their own and that have no effect here."""
INSTEAD = {"model": "the path names the model", "encoding": "the outputs tell how they are sent"}
"""Options of other protocols that are no parameters of version 2, and what stands for them."""
NAMES = sorted({*RequestOptions.model_fields, "timeout"} - {*INSTEAD})
"""The parameters of a request that have an effect."""
LONGEST_US = 2**63
"""Longer timeouts, in microseconds, are the same to every server; JSON has integers that no float holds."""


@dataclass(frozen=True)
class InferRequest:
    """`id`: the client's, or None. `file`: an image file. `timeout_s`: a deadline besides that of the options, or None.
    `outputs`: the names of the outputs, and whether each is wanted as binary data."""

    id: str | None
    file: bytes | memoryview
    options: RequestOptions
    timeout_s: float | None
    outputs: dict[str, bool]


def output_names(model: ServedModel, options: RequestOptions) -> Sequence[str]:
    """The outputs of a request."""
    first = "keypoints" if model.config.task == "pose" else "mask"
    return (first,) if options.map is None else (first, "map")


def parse_request(body: bytes, json_bytes: str | None, model: ServedModel) -> InferRequest:
    """An inference request. `json_bytes`: the header `Inference-Header-Content-Length`. Raises InvalidError."""
    fields, binary = split_body(body, json_bytes)
    parameters = fields.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidError(f"parameters are {shown(parameters)}; give an object", "bad_parameter")
    options = _options(parameters, model)
    inputs = read_inputs(fields.get("inputs"), binary)
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(tensor.name[:80] for tensor in inputs) or "none"
        raise InvalidError(f"the inputs are {names}; {model.name} has one, {INPUT}", "bad_tensor")
    given_id = fields.get("id", "")
    if not isinstance(given_id, str):
        raise InvalidError(f"id is {shown(given_id)}; give a string", "bad_id")
    timeout_s = _timeout_s(parameters.get("timeout"))
    return InferRequest(
        given_id or None, _file(inputs[0]), options, timeout_s, read_outputs(fields, output_names(model, options))
    )


def check_version(version: str | None) -> None:
    """Raises NotFoundError unless `version` is None or the only version."""
    if version not in (None, VERSION):
        raise NotFoundError(f"there is no version {version[:80]!r}; every model has version {VERSION}", "unknown_model")


def _options(parameters: Mapping[str, Any], model: ServedModel) -> RequestOptions:
    """The request options among the parameters. Raises InvalidError."""
    sequence_id = parameters.get("sequence_id")
    if sequence_id:
        sentence = f"sequence_id is {shown(sequence_id)}, but models keep no state between requests; leave it out"
        raise InvalidError(sentence, "bad_parameter")
    asked = {
        name: value
        for name, value in parameters.items()
        if name not in IGNORED and name not in ("timeout", "priority", "sequence_id")
    }
    unknown = next((name for name in asked if name not in NAMES), None)
    if unknown is not None:
        instead = INSTEAD.get(unknown, f"there are {', '.join(NAMES)}")
        raise InvalidError(f"there is no parameter {shown(unknown)} here; {instead}", "bad_parameter")
    priority = _priority(parameters.get("priority"))
    return parse_options({**asked, "model": model.name, **({} if priority is None else {"priority": priority})})


def _priority(value: Any) -> int | None:
    """Version 2 counts from 1, the highest, and 0 is the default; ours goes from 2, the highest, to 0. None is the
    default."""
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidError(f"priority is {shown(value)}; it is 0 for the default, or 1 (highest) to 3", "bad_parameter")
    return {0: None, 1: 2, 2: 1}.get(value, 0)


def _timeout_s(value: Any) -> float | None:
    """Version 2 gives whole microseconds; 0 is none."""
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int or value < 0:
        raise InvalidError(f"timeout is {shown(value)}; give whole microseconds from 0, which is none", "bad_parameter")
    return float(min(value, LONGEST_US) / 1e6)


def _file(tensor: InputTensor) -> bytes | memoryview:
    """The image file of an input. Raw pixels become an uncompressed BMP, so that all images go one way."""
    if isinstance(tensor.data, list):
        return tensor.data[0]
    shape = tensor.shape
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3 or 0 in shape:
        raise InvalidError(
            f"{INPUT} has the shape {list(shape)}; send UINT8 [1, height, width, 3], or BYTES [1] with an image file",
            "bad_tensor",
        )
    return bitmap(tensor.data[0])


def bitmap(pixels: NDArray[np.uint8]) -> memoryview:
    """An uncompressed BMP of RGB pixels, uint8 (H, W, 3): rows from the top, BGR, each of a multiple of 4 bytes."""
    height, width = pixels.shape[:2]
    row_bytes = -(-3 * width // 4) * 4
    offset, size = 54, 54 + height * row_bytes
    file = np.zeros(size, np.uint8)
    rows = file[offset:].reshape(height, row_bytes)
    rows[:, : 3 * width].reshape(height, width, 3)[:] = pixels[..., ::-1]
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", size, 0, 0, offset, 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)
    file[:offset] = np.frombuffer(header, np.uint8)
    return file.data
