"""Replies: the answers, exits and errors that clients are sent, over every protocol.

Times on the wire are in milliseconds. Functions that encode a map may run on any thread.
"""

import base64
import json
import math
import time
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from starlette.responses import Response

from models.network.configs import GIGA
from server.engine.job import Job
from server.engine.messages import Stop
from server.errors import ServerError, UnauthorizedError
from server.protocols.bodies import AnswerBody, ClassRuns, ErrorBody, MapHeaders, PngBody, PredictionBody, RunsBody
from server.protocols.descriptions import describe_labels
from server.protocols.encoder import Map, frame, keypoints, png
from server.protocols.maps import NO_CLASS, answer_size, further_map, has_holes, label_map
from server.protocols.rle import class_runs
from server.requests.record import RequestRecord

INLINE = ("json", "rle")
"""Encodings whose maps are part of the JSON message."""


def to_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def reply(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(to_json(body), status, headers, "application/json")


def error_message(error: ServerError, request_id: str | None) -> dict[str, Any]:
    """The last message about a request that failed."""
    retry = {} if error.retry_after_s is None else {"retry_after_s": round(error.retry_after_s, 3)}
    return {"type": "error", **error_body(error, request_id), "status": error.status, **retry}


def milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(1000 * seconds, 3)


def error_body(error: ServerError, request_id: str | None) -> ErrorBody:
    return {"error": str(error), "code": error.code, "id": request_id}


def error_reply(
    error: ServerError, status: int, given_id: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    """The HTTP response for an error. `given_id`: the id that the client gave the request."""
    headers = dict(headers or {})
    request_id = error.request_id or given_id
    if request_id and request_id.isascii() and request_id.isprintable():
        headers["X-Request-Id"] = request_id
    if error.trace is not None:
        headers["traceresponse"] = str(error.trace)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.code == "draining":
        headers["Connection"] = "close"  # the client sends its next request to another server
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return reply(error_body(error, request_id), status, headers)


# --- answers ---


def http_reply(record: RequestRecord, job: Job) -> Response:
    """The newest exit of a request over HTTP, in the encoding that `record.encoding` names."""
    began_s = time.monotonic()
    if record.encoding in ("application/octet-stream", "image/png"):
        labels = label_map(record, job, job.latest)
        data = labels.tobytes() if record.encoding == "application/octet-stream" else _png(record, job, labels)
        return Response(data, 200, _headers(record, job), record.encoding)
    answer = _answer(record, job)
    body = {**answer, **_facts(record, job, began_s), **_meta(record)}
    return reply(body, headers={"X-Request-Id": record.id})


def _facts(record: RequestRecord, job: Job, began_s: float) -> PredictionBody:
    """The fields of a JSON answer besides its maps. `began_s`: when the encoding of the maps began."""
    model, found = job.model, job.exits[-1]
    now_s = time.monotonic()
    return {
        "id": record.id,
        "model": model.name,
        "task": model.config.task,
        "exit": found.exit,
        "exits": model.config.exits,
        "final": job.final,
        "stop": job.stop,
        "deadline_ms": milliseconds(record.budget_s),
        "unsure": found.active_share,
        "size": list(answer_size(record, job)),
        "timing": {
            "decode_ms": milliseconds(record.decode_s),
            "queue_ms": milliseconds(job.exits[0].started_s - job.submitted_s),
            "compute_ms": [milliseconds(done.stage_s) for done in job.exits],
            "encode_ms": milliseconds(now_s - began_s),
        },
        "elapsed_ms": milliseconds(now_s - record.arrived_s),
    }


def _answer(record: RequestRecord, job: Job) -> AnswerBody:
    """The maps or keypoints of the newest exit."""
    answer: AnswerBody = {}
    labels = describe_labels(job.model)
    if job.model.config.task == "pose":
        answer = {
            "keypoints": keypoints(job.keypoints(job.latest)),
            "joints": labels["joints"],
            "palette": labels["palette"],
            "skeleton": labels["skeleton"],
        }
    else:
        answer["mask"] = {**_mask(record, job, job.latest), **labels}
    extra = further_map(record, job, job.latest)
    if extra is not None:
        answer["map"] = {"kind": job.spec.extra, **_base64(png(extra))}
    return answer


def _mask(record: RequestRecord, job: Job, exit_index: int) -> PngBody | RunsBody:
    """The label map of an exit inside JSON."""
    labels = label_map(record, job, exit_index)
    if record.encoding != "rle":
        return _base64(_png(record, job, labels))
    size = list(labels.shape)
    runs: dict[str, ClassRuns] = {
        str(number): {"size": size, "counts": counts} for number, counts in class_runs(labels) if number != NO_CLASS
    }
    return {"format": "rle", "data": runs}


def _png(record: RequestRecord, job: Job, labels: Map) -> bytes:
    return png(labels, job.model.palette, holes=has_holes(record))


def _meta(record: RequestRecord) -> dict[str, str]:
    """The option `meta`, which is sent back with every message about the request."""
    return {} if record.options.meta is None else {"meta": record.options.meta}


def _headers(record: RequestRecord, job: Job) -> Mapping[str, str]:
    found, (height, width) = job.exits[-1], answer_size(record, job)
    headers: MapHeaders = {
        "X-Request-Id": record.id,
        "X-Anytime-Exit": str(found.exit),
        "X-Anytime-Exits": str(job.model.config.exits),
        "X-Anytime-Stop": str(job.stop),
        "X-Anytime-Elapsed-Ms": str(milliseconds(time.monotonic() - record.arrived_s)),
        "X-Anytime-Unsure": f"{found.active_share:.6g}",
        "X-Anytime-Size": f"{height}x{width}",
    }
    if record.options.meta is not None:
        headers["X-Anytime-Meta"] = quote(record.options.meta)
    return cast("Mapping[str, str]", headers)


# --- exits, as they come ---


def accepted_message(record: RequestRecord, job: Job) -> dict[str, Any]:
    """The message that a request's job has started."""
    model = job.model
    return {
        "type": "accepted",
        "id": record.id,
        **_meta(record),
        "model": model.name,
        "task": model.config.task,
        "exits": model.config.exits,
        "deadline_ms": milliseconds(record.budget_s),
        **describe_labels(model),
    }


def exit_message(
    record: RequestRecord, job: Job, exit_index: int, held: int | None
) -> tuple[dict[str, Any], list[bytes]]:
    """The message of an exit, and the binary frames that follow it. `held`: the exit sent before, or None."""
    model, encoding = job.model, record.encoding
    found = next(done for done in job.exits if done.exit == exit_index)
    message: dict[str, Any] = {
        "type": "exit",
        "id": record.id,
        **_meta(record),
        "exit": exit_index,
        "exits": model.config.exits,
        "final": found.final or exit_index == model.config.exits,
        "unsure": found.active_share,
        "gmacs": round(found.macs / GIGA, 4),
        "encoding": encoding,
        "size": list(answer_size(record, job)),
    }
    frames: list[bytes] = []
    if model.config.task == "pose":
        message["keypoints"] = keypoints(job.keypoints(exit_index))
    elif encoding in INLINE:
        message["mask"] = _mask(record, job, exit_index)
    else:
        before = None if held is None else label_map(record, job, held)
        labels = label_map(record, job, exit_index)
        frames.append(frame(encoding, labels, before, model.palette, holes=has_holes(record)))
        message["bytes"] = len(frames[-1])
    extra = further_map(record, job, exit_index)
    if extra is not None:
        message["extra"] = {"kind": job.spec.extra, "encoding": encoding}
        if encoding in INLINE:
            message["extra"] |= _base64(png(extra))
        else:
            frames.append(frame(encoding, extra, None if held is None else further_map(record, job, held)))
            message["extra"]["bytes"] = len(frames[-1])
    return message, frames


def end_message(
    request_id: Any, exit_index: int, stop: Stop | None, arrived_s: float, skipped: list[int]
) -> dict[str, Any]:
    """The last message about a request that did not fail. `skipped`: exits that were reached and not sent."""
    elapsed_ms = milliseconds(time.monotonic() - arrived_s)
    end = {"type": "end", "id": request_id, "exit": exit_index, "stop": stop, "elapsed_ms": elapsed_ms}
    return {**end, "skipped": skipped}


def _base64(data: bytes) -> PngBody:
    return {"format": "png", "data": base64.b64encode(data).decode("ascii")}
