"""Turns the server's JSON and bytes into values. Performs no I/O."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpc_client.delta import apply_delta
from adpc_client.errors import AdpcError, ProtocolError, reply_error
from adpc_client.images import BROKEN_IMAGE
from adpc_client.labels import Labels
from adpc_client.results import End, Exit, ExitCost, Model, Prediction, Timing

Value = TypeVar("Value")
Json = Mapping[str, Any]


def parse_json(text: str | bytes) -> Json:
    """The JSON object in `text`. Raises ProtocolError if it holds anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"the server sent {text[:80]!r}, which is not JSON; is this an anytime server?") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"the server sent a JSON {type(value).__name__} where an object belongs")
    return value


def read_prediction(body: Json) -> Prediction:
    """The answer of `POST /v1/predict`. Raises ProtocolError if it is malformed."""
    return _read(_prediction, body, "answer")


def read_model(body: Json) -> Model:
    """The answer of `GET /v1/models/{name}`. Raises ProtocolError if it is malformed."""
    return _read(_model, body, "model")


def read_models(body: Json) -> tuple[Model, ...]:
    """The answer of `GET /v1/models`. Raises ProtocolError if it is malformed."""
    return _read(lambda body: tuple(_model(model) for model in body["models"]), body, "list of models")


def freeze(array: NDArray[Any]) -> NDArray[Any]:
    """`array`, made read-only in place."""
    array.flags.writeable = False
    return array


class StreamReader:
    """Turns the WebSocket messages about one request into exits, in order, and decodes their maps.

    A text message is the header of an exit. Binary messages follow it: the mask, which a pose lacks, then the extra map
    if the request named one. The header announces their sizes. With the encoding `json` it contains the maps itself.
    `over` is true once the last message about the request has come.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.model: str | None = None
        self.labels = Labels()
        self.over = False
        self._header: Json | None = None
        self._parts: list[Json] = []
        self._payloads: list[bytes] = []
        self._held: dict[str, NDArray[np.uint8]] = {}

    def feed(self, message: str | bytes) -> Exit | End | None:
        """The exit or the end that `message` completes; None if it completes neither.

        Raises ProtocolError for a malformed message, and the ReplyError that the server sends.
        """
        return _read(self._binary if isinstance(message, bytes) else self._text, message, "frame")

    def _text(self, text: Any) -> Exit | End | None:
        if self._header is not None:
            raise ProtocolError("the server sent text where the map of an exit belongs")
        message = parse_json(text)
        kind = message.get("type")
        if kind == "error":
            self._error(message)
            return None
        if message.get("id") != self.id:
            raise ProtocolError(
                f"the server sent a message about request {message.get('id')!r}; only {self.id!r} is open"
            )
        if kind == "accepted":
            self.model = message.get("model")
            self.labels = _labels(message)
            return None
        if kind == "end":
            self.over = True
            return End(
                int(message["exit"]),
                message["stop"],
                float(message["elapsed_ms"]),
                tuple(int(exit) for exit in message.get("skipped", ())),
            )
        if kind != "exit":
            raise ProtocolError(f"the server sent a message of unknown type {kind!r}")
        inline = message["encoding"] == "json"
        self._header, self._payloads = message, []
        self._parts = [] if "keypoints" in message else [message["mask"] if inline else message]
        if message.get("extra"):
            self._parts.append(message["extra"])
        if inline:
            self._payloads = [base64.b64decode(part["data"]) for part in self._parts]
        return self._exit() if len(self._payloads) == len(self._parts) else None

    def _error(self, message: Json) -> None:
        if message.get("id") not in (None, self.id):
            return  # it is late, and about the request that used this connection before
        self.over = message.get("id") == self.id and not message.get("open")
        raise reply_error(int(message.get("status", 0)), message, message.get("retry_after_s"))

    def _binary(self, data: Any) -> Exit | None:
        if self._header is None:
            raise ProtocolError(f"the server sent {len(data)} bytes without a header")
        announced = int(self._parts[len(self._payloads)]["bytes"])
        if len(data) != announced:
            raise ProtocolError(f"the header announced {announced} bytes; {len(data)} came")
        self._payloads.append(data)
        return self._exit() if len(self._payloads) == len(self._parts) else None

    def _exit(self) -> Exit:
        header, self._header = self._header, None
        assert header is not None
        size = _size(header["size"])
        maps = {
            str(part.get("kind", "mask")): self._map(part, data, size)
            for part, data in zip(self._parts, self._payloads, strict=True)
        }
        keypoints = header.get("keypoints")
        mask = maps.pop("mask", None)
        return Exit(
            exit=int(header["exit"]),
            exits=int(header["exits"]),
            final=bool(header["final"]),
            elapsed_ms=float(header["elapsed_ms"]),
            unsure=float(header["unsure"]),
            size=size,
            labels=self.labels,
            extra=next(iter(maps.values()), None),
            _mask=mask,
            _keypoints=None if keypoints is None else _keypoints(keypoints),
            meta=header.get("meta"),
        )

    def _map(self, part: Json, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
        encoding, kind = part.get("format") or part["encoding"], str(part.get("kind", "mask"))
        if encoding == "png":
            return _png(data, size)
        if encoding == "raw":
            return freeze(np.frombuffer(data, np.uint8).reshape(size))
        if encoding != "delta":
            raise ProtocolError(f"the server sent a map encoded as {encoding!r}; known are png, raw and delta")
        self._held[kind] = apply_delta(data, self._held.get(kind), size[0] * size[1])
        return freeze(self._held[kind].reshape(size))


def _read(reader: Callable[[Any], Value], body: Any, what: str) -> Value:
    try:
        return reader(body)
    except AdpcError:  # some are also a ValueError or an OSError
        raise
    except BROKEN_IMAGE as error:  # of a map, or of the JSON around it
        raise ProtocolError(f"the server's {what} does not make sense: {type(error).__name__}: {error}") from error


def _prediction(body: Json) -> Prediction:
    size = _size(body["size"])
    mask, keypoints, extra, timing = body.get("mask"), body.get("keypoints"), body.get("map"), body["timing"]
    if (mask is None) == (keypoints is None):
        raise ProtocolError("the server's answer must hold either a mask or keypoints")
    return Prediction(
        exit=int(body["exit"]),
        exits=int(body["exits"]),
        final=bool(body["final"]),
        elapsed_ms=float(body["elapsed_ms"]),
        unsure=float(body["unsure"]),
        size=size,
        labels=_labels(body if mask is None else mask),
        extra=None if extra is None else _png(base64.b64decode(extra["data"]), size),
        _mask=None if mask is None else _png(base64.b64decode(mask["data"]), size),
        _keypoints=None if keypoints is None else _keypoints(keypoints),
        meta=body.get("meta"),
        id=str(body["id"]),
        model=str(body["model"]),
        stop=body["stop"],
        deadline_ms=None if body.get("deadline_ms") is None else float(body["deadline_ms"]),
        timing=Timing(
            float(timing["decode_ms"]),
            float(timing["queue_ms"]),
            tuple(float(ms) for ms in timing["compute_ms"]),
            float(timing["encode_ms"]),
        ),
    )


def _model(body: Json) -> Model:
    exits = tuple(ExitCost(int(cost["exit"]), cost.get("gmacs"), cost.get("seconds")) for cost in body["exits"])
    return Model(str(body["name"]), body["task"], exits, _labels(body), str(body.get("licence", "")))


def _labels(body: Json) -> Labels:
    names = body.get("classes") or body.get("joints") or ()
    palette = np.array(body.get("palette") or (), np.uint8).reshape(-1, 3)
    skeleton = tuple((int(a), int(b)) for a, b in body.get("skeleton") or ())
    return Labels(tuple(str(name) for name in names), freeze(palette), skeleton)


def _size(size: Any) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


def _keypoints(rows: Any) -> NDArray[np.float32]:
    return freeze(np.array(rows, np.float32).reshape(-1, 3))


def _png(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        labels = np.array(image)  # the PNG is indexed, so these are the class numbers, not colours
    if labels.dtype != np.uint8 or labels.shape != size:
        raise ProtocolError(f"the map is {labels.dtype} {labels.shape}; its header says uint8 {size}")
    return freeze(labels)
