"""The wire format of version 2: JSON, and the binary tensors that may follow it. Pure.

A body is JSON alone, or JSON of as many bytes as the header `Inference-Header-Content-Length` says, followed by tensors
in the order in which the JSON lists them, each of `parameters.binary_data_size` bytes, little-endian and row-major. An
element of BYTES is its length as uint32, then its bytes.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from server.errors import InvalidError
from server.protocols.values import shown

MAX_JSON_BYTES = 3 * 2**20
"""The longest JSON: parsing it takes some hundredths of a second, in which nothing else runs."""
MAX_LISTS = 2**18
"""The most lists, objects and fields of a JSON, which take longer than numbers: pixels of 512 x 511 as lists of three.
"""
SLICE = 2**16
"""Numbers that are converted at once, in about a millisecond. Other threads run between slices."""
CODE = "bad_tensor"


@dataclass(frozen=True)
class InputTensor:
    """An input: `data` is a list of files for BYTES, which may be parts of the body, else an array of the shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8] | list[bytes | memoryview]


@dataclass(frozen=True)
class OutputTensor:
    """An output. `binary`: it is sent behind the JSON, not in it."""

    name: str
    datatype: str
    data: NDArray[Any]
    binary: bool


# --- reading ---


def split_body(body: bytes, json_bytes: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object of a body, and the binary data behind it. `json_bytes`: the header
    `Inference-Header-Content-Length`, or None. Raises InvalidError."""
    length = len(body)
    if json_bytes is not None:
        length = int(json_bytes) if json_bytes.isascii() and json_bytes.isdigit() and len(json_bytes) < 10 else -1
        if not 0 <= length <= len(body):
            raise InvalidError(
                f"Inference-Header-Content-Length is {shown(json_bytes)}; give the bytes of the JSON, at most the "
                f"{len(body):,} of the body",
                "bad_header",
            )
    if length > MAX_JSON_BYTES:
        sentence = f"the JSON has {length:,} bytes; the limit is {MAX_JSON_BYTES:,}: send tensors as binary data"
        raise InvalidError(sentence, "bad_json")
    view = memoryview(body)
    text = bytes(view[:length])
    lists = sum(map(text.count, (b"[", b"{", b":")))
    if lists > MAX_LISTS:
        sentence = f"the JSON has {lists:,} lists and fields; the limit is {MAX_LISTS:,}: send tensors as binary data"
        raise InvalidError(sentence, "bad_json")
    try:
        found = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidError(f"the request is not JSON: {error}", "bad_json") from None
    if not isinstance(found, dict):
        raise InvalidError(f"the request is a JSON {type(found).__name__}; it must be an object", "bad_json")
    return found, view[length:]


def read_inputs(listed: Any, binary: memoryview) -> list[InputTensor]:
    """The tensors of the field `inputs`. Raises InvalidError if one is malformed, and if bytes are missing or left."""
    inputs = []
    for number, field in enumerate(_objects(listed, "inputs")):
        name = field.get("name")
        if not isinstance(name, str):
            raise InvalidError(f"inputs[{number}] has no name; give a string", CODE)
        size = _parameters(field, name).get("binary_data_size")
        if "shared_memory_region" in _parameters(field, name):
            raise InvalidError(f"{name} is in shared memory, which is not served; send it in the body", CODE)
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(binary):
                sentence = f"binary_data_size of {name} is {shown(size)}; {len(binary):,} bytes are left in the body"
                raise InvalidError(sentence, CODE)
            if "data" in field:
                raise InvalidError(f"{name} has data and binary_data_size; send one of them", CODE)
        data: Any = field.get("data") if size is None else binary[:size]
        binary = binary[size or 0 :]
        inputs.append(_tensor(name, field, data))
    if binary:
        raise InvalidError(f"{len(binary):,} bytes follow the last tensor; binary_data_size must tell of all", CODE)
    return inputs


def _tensor(name: str, field: Mapping[str, Any], data: Any) -> InputTensor:
    datatype, shape = field.get("datatype"), field.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise InvalidError(f"shape of {name} is {shown(shape)}; give at most 8 whole numbers, none below 0", CODE)
    count = 1
    for side in shape:
        count *= side
    if datatype == "BYTES":
        if count != 1:
            raise InvalidError(f"{name} has {count:,} elements of BYTES; send one, a whole file, with shape [1]", CODE)
        elements = _elements(name, data) if isinstance(data, memoryview) else _texts(name, data)
        if len(elements) != 1:
            raise InvalidError(f"{name} has {len(elements)} elements; its shape {shape} has 1", CODE)
        return InputTensor(name, datatype, tuple(shape), elements)
    if datatype != "UINT8":
        raise InvalidError(f"datatype of {name} is {shown(datatype)}; it may be UINT8 or BYTES", CODE)
    values = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else _numbers(name, data)
    if values.size != count:
        raise InvalidError(f"{name} has {values.size:,} values; its shape {shape} has {count:,}", CODE)
    return InputTensor(name, datatype, tuple(shape), values.reshape(shape))


def _elements(name: str, data: memoryview) -> list[bytes | memoryview]:
    """The elements of a binary tensor of BYTES. Stops after the second, because a request has one image."""
    elements: list[bytes | memoryview] = []
    while data and len(elements) < 2:
        size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else -1
        if not 0 <= size <= len(data) - 4:
            raise InvalidError(f"element {len(elements)} of {name} is cut off; send its length, then its bytes", CODE)
        elements.append(data[4 : 4 + size])
        data = data[4 + size :]
    return elements


def _texts(name: str, data: Any) -> list[bytes | memoryview]:
    """The elements of a tensor of BYTES in JSON, where each is a string."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise InvalidError(f"data of {name} is {shown(data)}; give a list of strings", CODE)
    return [text.encode() for text in data]


def _numbers(name: str, data: Any) -> NDArray[np.uint8]:
    """The values of a tensor of UINT8 in JSON, flat or nested."""
    parts = [np.zeros(0, np.uint8)]
    for numbers in _flat(data):
        if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
            raise InvalidError(f"data of {name} are not numbers of UINT8; give whole numbers from 0 to 255", CODE)
        parts.append(np.frombuffer(bytes(numbers), np.uint8))
    return np.concatenate(parts)


def _flat(data: Any) -> Iterator[list[Any]]:
    """The elements of nested lists in order, in slices."""
    if not isinstance(data, list):
        yield [data]
        return
    pending, numbers = [iter(data)], list[Any]()
    while pending:
        for element in pending[-1]:
            if isinstance(element, list):
                pending.append(iter(element))
                break
            numbers.append(element)
            if len(numbers) == SLICE:
                yield numbers
                numbers = []
        else:
            pending.pop()
    yield numbers


def _objects(listed: Any, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(listed, list) or not all(isinstance(field, dict) for field in listed):
        raise InvalidError(f"{name} is {shown(listed)}; give a list of objects", CODE)
    return listed


def _parameters(field: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    parameters = field.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidError(f"parameters of {name} are {shown(parameters)}; give an object", CODE)
    return parameters


def read_outputs(body: Mapping[str, Any], offered: Sequence[str]) -> dict[str, bool]:
    """The outputs that are asked for, all of the `offered` if none is named, and whether each is wanted as binary data.
    Raises InvalidError."""
    binary = _flag(_parameters(body, "the request").get("binary_data_output", False), "binary_data_output")
    listed = body.get("outputs") or [{"name": name} for name in offered]
    outputs = {}
    for field in _objects(listed, "outputs"):
        name, parameters = field.get("name"), _parameters(field, "an output")
        if name not in offered:
            raise InvalidError(f"there is no output {shown(name)}; there are {', '.join(offered)}", CODE)
        for refused in ("classification", "shared_memory_region"):
            if parameters.get(refused):
                raise InvalidError(f"output {name} asks for {refused}, which is not served; leave it out", CODE)
        outputs[str(name)] = _flag(parameters.get("binary_data", binary), "binary_data")
    return outputs


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"{name} is {shown(value)}; it may be true or false", CODE)
    return value


# --- writing ---


def write_body(head: Mapping[str, Any], outputs: Sequence[OutputTensor]) -> tuple[bytes, int | None]:
    """The body of an answer, and the bytes of its JSON if tensors follow it, else None. `head`: fields besides
    `outputs`."""
    described, binary = list[tuple[bytes, OutputTensor]](), list[bytes]()
    for tensor in outputs:
        field: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.data.shape)}
        if tensor.binary:
            data = np.ascontiguousarray(tensor.data).tobytes()
            field["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            field["data"] = []
        described.append((pydantic_core.to_json(field), tensor))
    text = pydantic_core.to_json(head)[:-1] + b',"outputs":['
    text += b",".join(field if tensor.binary else _with_data(field, tensor.data) for field, tensor in described)
    text += b"]}"
    return b"".join([text, *binary]), len(text) if binary else None


def _with_data(field: bytes, data: NDArray[Any]) -> bytes:
    """Insert the numbers of `data` into `field`, the JSON of an output that ends with an empty list `data`."""
    flat = data.ravel()
    slices = (pydantic_core.to_json(flat[low : low + SLICE].tolist())[1:-1] for low in range(0, flat.size, SLICE))
    return field.removesuffix(b"]}") + b",".join(slices) + b"]}"
