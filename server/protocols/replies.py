"""What goes to the client: answers, exits, errors and descriptions, over HTTP and over the WebSocket.

Times on the wire are in milliseconds. A map is sent as one of these encodings:

- `png`: an indexed PNG with the model's palette, or a grey one for further maps.
- `raw`: H * W bytes, uint8, row-major.
- `delta`: the difference to the map of the exit that was *sent* last, which the client holds; zeros before the first
  exit. It is a zlib stream (RFC 1950) of H * W bytes, row-major, each the new value XOR the value held. In Python:
  `held ^= np.frombuffer(zlib.decompress(data), np.uint8).reshape(held.shape)`; in a browser:
  `DecompressionStream("deflate")`. The outcome is the `raw` map bit for bit.
- `json`: the PNG in base64, inside of the JSON message.

The functions that encode may run on any thread.
"""

import base64
import io
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import Response

from models.network.configs import GIGA
from server.catalog import ServedModel
from server.engine.job import Job
from server.engine.messages import ModelFacts
from server.errors import ServerError
from server.protocols.options import Parameter
from server.requests.registry import RequestRecord

Map = NDArray[np.uint8]
"""uint8 (H, W), C-contiguous: labels, or a further map."""

ANSWER_HEADERS = (
    Parameter("X-Request-Id", "string", "the request's"),
    Parameter(
        "X-Anytime-Exit", "integer", "the exit reached; this and those below come with a map, JSON says it itself"
    ),
    Parameter("X-Anytime-Exits", "integer", "exits of the model"),
    Parameter("X-Anytime-Stop", "string", "why it stopped: complete, quality, deadline or max_exit"),
    Parameter("X-Anytime-Elapsed-Ms", "number", "milliseconds since the first byte of the request"),
    Parameter("X-Anytime-Unsure", "number", "share of the positions that the next exit would still compute"),
    Parameter("X-Anytime-Size", "string", "HEIGHTxWIDTH of the map"),
)


def to_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def reply(body: Mapping[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(to_json(body), status, headers, "application/json")


def milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(1000 * seconds, 3)


def error_body(error: ServerError, request_id: str | None) -> dict[str, Any]:
    return {"error": str(error), "code": error.code, "id": request_id}


# --- answers ---


def http_reply(record: RequestRecord, job: Job) -> Response:
    """The newest exit of a request over HTTP, in the media type that `record.encoding` names."""
    began_s = time.monotonic()
    model, found, layout = job.model, job.exits[-1], job.spec.layout
    if record.encoding == "application/octet-stream":
        return Response(job.labels(found.exit).tobytes(), 200, _headers(record, job), record.encoding)
    if record.encoding == "image/png":
        return Response(png(job.labels(found.exit), model.palette), 200, _headers(record, job), record.encoding)
    body: dict[str, Any] = {
        "id": record.id,
        "model": model.name,
        "task": model.config.task,
        "exit": found.exit,
        "exits": model.config.exits,
        "final": found.exit == model.config.exits,
        "stop": job.stop,
        "deadline_ms": milliseconds(record.budget_s),
        "unsure": found.unsure,
        "size": [layout.height, layout.width],
    }
    if model.config.task == "pose":
        body |= {"keypoints": keypoints(job.keypoints(found.exit)), **describe_labels(model)}
    else:
        body["mask"] = {**base64_png(png(job.labels(found.exit), model.palette)), **describe_labels(model)}
    extra = job.extra_map(found.exit)
    if extra is not None:
        body["map"] = {"kind": job.spec.extra, **base64_png(png(extra))}
    now_s = time.monotonic()
    body["timing"] = {
        "decode_ms": milliseconds(record.decode_s),
        "queue_ms": milliseconds(job.exits[0].started_s - job.submitted_s),
        "compute_ms": [milliseconds(done.stage_s) for done in job.exits],
        "encode_ms": milliseconds(now_s - began_s),
    }
    body["elapsed_ms"] = milliseconds(now_s - record.arrived_s)
    return reply(body, headers={"X-Request-Id": record.id})


def _headers(record: RequestRecord, job: Job) -> dict[str, str]:
    found, layout = job.exits[-1], job.spec.layout
    return {
        "X-Request-Id": record.id,
        "X-Anytime-Exit": str(found.exit),
        "X-Anytime-Exits": str(layout.exits),
        "X-Anytime-Stop": str(job.stop),
        "X-Anytime-Elapsed-Ms": str(milliseconds(time.monotonic() - record.arrived_s)),
        "X-Anytime-Unsure": f"{found.unsure:.6g}",
        "X-Anytime-Size": f"{layout.height}x{layout.width}",
    }


def accepted_message(record: RequestRecord, job: Job) -> dict[str, Any]:
    """The WebSocket message that a request's job has started."""
    model = job.model
    return {
        "type": "accepted",
        "id": record.id,
        "model": model.name,
        "task": model.config.task,
        "exits": model.config.exits,
        "deadline_ms": milliseconds(record.budget_s),
        **describe_labels(model),
    }


def exit_message(
    record: RequestRecord, job: Job, exit_index: int, held: int | None
) -> tuple[dict[str, Any], list[bytes]]:
    """The WebSocket message of an exit, and the binary frames that follow it. `held`: the exit sent before, or None."""
    model, encoding = job.model, record.encoding
    found = next(done for done in job.exits if done.exit == exit_index)
    message: dict[str, Any] = {
        "type": "exit",
        "id": record.id,
        "exit": exit_index,
        "exits": model.config.exits,
        "final": exit_index == model.config.exits,
        "unsure": found.unsure,
        "encoding": encoding,
        "size": [job.spec.layout.height, job.spec.layout.width],
    }
    frames: list[bytes] = []
    if model.config.task == "pose":
        message["keypoints"] = keypoints(job.keypoints(exit_index))
    elif encoding == "json":
        message["mask"] = base64_png(png(job.labels(exit_index), model.palette))
    else:
        before = None if held is None else job.labels(held)
        frames.append(_frame(encoding, job.labels(exit_index), before, model.palette))
        message["bytes"] = len(frames[-1])
    extra = job.extra_map(exit_index)
    if extra is not None:
        message["extra"] = {"kind": job.spec.extra, "encoding": encoding}
        if encoding == "json":
            message["extra"] |= base64_png(png(extra))
        else:
            frames.append(_frame(encoding, extra, None if held is None else job.extra_map(held), None))
            message["extra"]["bytes"] = len(frames[-1])
    return message, frames


# --- descriptions ---


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
    """The body of `GET /v1/models/{name}`.

    `gmacs` (of the dense network) and `seconds` (measured under masks while warming up) are cumulative at `size`.
    `quality` says whether requests may ask for it. All three are null until the worker is ready.
    """
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


# --- encodings ---


def png(values: Map, palette: bytes | None = None) -> bytes:
    """An indexed PNG with `palette` (3 bytes a class), or a grey one without."""
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    file = io.BytesIO()
    # CamVid label maps at 480x360, mean of six: level 1 with run lengths 0.74 ms and 4.2 kB; level 1 alone 0.85 ms and
    # 6.0 kB; level 6, Pillow's default, 1.6 ms and 4.7 kB.
    image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def base64_png(data: bytes) -> dict[str, Any]:
    return {"format": "png", "data": base64.b64encode(data).decode("ascii")}


def delta(values: Map, held: Map | None) -> bytes:
    """The difference from `held`, of the same shape, to `values`; None: the client holds nothing yet."""
    changed = values if held is None else np.bitwise_xor(values, held)
    # If 2 % of the pixels changed along class boundaries: 4.4 kB in 0.39 ms; without run lengths 6.0 kB in 0.42 ms.
    compress = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compress.compress(np.ascontiguousarray(changed).data) + compress.flush()


def keypoints(array: NDArray[np.float32]) -> list[list[float]]:
    """float32 (J, 3) -> [[x, y, score], ..]. The numbers are exact: each reads back as the same float32."""
    rows: list[list[float]] = array.astype(float).tolist()
    return rows


def _frame(encoding: str, values: Map, held: Map | None, palette: bytes | None) -> bytes:
    if encoding == "raw":
        return values.tobytes()
    if encoding == "delta":
        return delta(values, held)
    return png(values, palette)
