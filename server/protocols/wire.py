"""What crosses the wire: WebSocket messages and the bodies of replies, in milliseconds.

HTTP. What a request may ask for is in `ask.py`, the answer to it in `answers.py`; errors are `error_body`. Images are
turned upright by their EXIF orientation first; maps have the size of the upright image.

WebSocket `/v1/stream`. Text frames are JSON objects with `type`; the binary frames that a header announces follow it at
once, and nothing comes between them.

    client  {"type": "predict", "id": "a", "model"?, "deadline_ms"?, "min_exit"?, "max_exit"?, "quality"?,
             "best_effort"?, "box"?: "x,y,w,h" or [x, y, w, h], "map"?: "confidence" | "exit" | "unsure",
             "encoding"?: "png" (default) | "raw" | "delta" | "json"}, then the image file as one binary frame
            {"type": "cancel", "id"}
            {"type": "deadline", "id", "deadline_ms"}: from now
    server  {"type": "accepted", "id", "model", "task", "exits", "deadline_ms", and the labels of `describe_labels`}
            {"type": "exit", "id", "exit", "exits", "final", "elapsed_ms", "unsure", "encoding", "size": [h, w],
             "bytes"}, then the map as one binary frame of so many bytes (formats: see `encoder.py`).
              encoding "json": "mask" as over HTTP instead of "bytes", and no binary frame
              pose: "keypoints" instead of "bytes", and no binary frame
              with "map": also "extra": {"kind", "encoding", "bytes"}, and a binary frame after the map's; "delta" is
              against the same further map of the last exit sent; for "json", "data" instead of "bytes", and no frame
            {"type": "end", "id", "exit", "stop", "elapsed_ms", "skipped"}: always the last about a request that was
            accepted and did not fail
            {"type": "error", "id", "code", "error", "status", "retry_after_s"?, "open"?}: the last about a request that
              failed, unless "open" is true: then a message about a request was refused, or another of the same id, and
              the request goes on; "id" is null when the message belongs to none

Imports no torch.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from models.network.configs import GIGA
from server.catalog import ServedModel
from server.engine.messages import ModelFacts
from server.errors import InvalidError, ServerError
from server.protocols.options import Ask, parse_ask, positive, shown

MAX_ID = 128
Encoding = Literal["png", "raw", "delta", "json"]

# --- WebSocket messages ---


@dataclass(frozen=True)
class Predict:
    id: str
    ask: Ask
    encoding: Encoding


@dataclass(frozen=True)
class CancelById:
    id: str


@dataclass(frozen=True)
class NewDeadline:
    """`deadline_ms` from now."""

    id: str
    deadline_ms: float


class NotJsonError(InvalidError):
    """A text frame is no JSON object at all: the socket is closed."""


def parse_json(text: str) -> dict[str, Any]:
    """Raises NotJsonError unless `text` is a JSON object."""
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise NotJsonError("the message is nested too deeply; messages are flat objects", "not_json") from error
    except ValueError as error:
        raise NotJsonError(f"the message is not JSON: {error}", "not_json") from error
    if not isinstance(message, dict):
        raise NotJsonError(
            f"the message is a JSON {type(message).__name__}; it must be an object with `type`", "not_json"
        )
    return message


def parse_message(fields: Mapping[str, Any]) -> Predict | CancelById | NewDeadline:
    """A client's message. Raises InvalidError."""
    kind, message_id = fields.get("type"), fields.get("id")
    if not isinstance(message_id, str) or not 1 <= len(message_id) <= MAX_ID or not message_id.isprintable():
        raise InvalidError(
            f"id is {shown(message_id)}; give a string of 1 to {MAX_ID} printable characters", "bad_message"
        )
    if kind == "predict":
        encoding: Any = fields.get("encoding")
        encoding = "png" if encoding is None else encoding
        if encoding not in get_args(Encoding):
            raise InvalidError(
                f"encoding is {shown(encoding)}; it may be {', '.join(get_args(Encoding))}", "bad_message"
            )
        options = {name: value for name, value in fields.items() if name not in ("type", "id", "encoding")}
        return Predict(message_id, parse_ask(options), encoding)
    if kind == "cancel":
        return CancelById(message_id)
    if kind == "deadline":
        deadline_ms = positive("deadline_ms", fields.get("deadline_ms"))
        if deadline_ms is None:
            raise InvalidError("deadline_ms is missing; say how many milliseconds from now", "bad_message")
        return NewDeadline(message_id, deadline_ms)
    raise InvalidError(f"type is {shown(kind)}; it may be predict, cancel, deadline", "bad_message")


# --- replies ---


def milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(1000 * seconds, 3)


def error_body(error: ServerError, request_id: str | None) -> dict[str, Any]:
    return {"error": str(error), "code": error.code, "id": request_id}


def describe_labels(model: ServedModel) -> dict[str, Any]:
    """Segmentation: "classes" and "palette" (RGB of each); pose: "joints", "palette", "skeleton" (pairs of joints)."""
    colours = list(model.palette)
    palette = [colours[index : index + 3] for index in range(0, len(colours), 3)]
    if model.config.task == "pose":
        return {
            "joints": list(model.config.names),
            "palette": palette,
            "skeleton": [list(limb) for limb in model.config.skeleton],
        }
    return {"classes": list(model.config.names), "palette": palette}


def describe_model(model: ServedModel, facts: ModelFacts | None) -> dict[str, Any]:
    """What `GET /v1/models/{name}` says. `gmacs` of the dense network, and `seconds` as measured at the start under
    masks such as pictures leave, are cumulative at `size`; `quality`: whether the model is calibrated for it. All three
    are null until the worker is ready."""
    exits = [
        {
            "exit": index + 1,
            "gmacs": round(facts.macs[index] / GIGA, 4) if facts else None,
            "seconds": round(facts.seconds[index], 6) if facts else None,
        }
        for index in range(model.config.exits)
    ]
    return {
        "name": model.name,
        "task": model.config.task,
        "exits": exits,
        "size": list(model.config.size),
        "quality": facts.calibrated if facts else None,
        "licence": model.config.licence,
        **describe_labels(model),
    }


def base64_png(data: bytes) -> dict[str, Any]:
    return {"format": "png", "data": base64.b64encode(data).decode("ascii")}


def to_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
