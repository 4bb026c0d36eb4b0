"""A reached exit as the bytes that go to its client, over HTTP and over the WebSocket. Imports no torch."""

import time
from typing import Any

from starlette.responses import Response

from server.protocols import encoder
from server.protocols.options import Format, Parameter
from server.protocols.wire import Encoding, base64_png, describe_labels, milliseconds, to_json
from server.requests.job import Job
from server.requests.registry import Entry

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


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(to_json(body), status, headers, "application/json")


def http_answer(job: Job, entry: Entry, form: Format) -> Response:
    """Encode the newest exit; runs on an encoding thread."""
    began_s = time.monotonic()
    model, found = job.order.model, job.exits[-1]
    if form == "application/octet-stream":
        return Response(job.labels(found.exit).tobytes(), 200, _headers(job, entry), form)
    if form == "image/png":
        png = encoder.png(job.labels(found.exit), model.palette)
        return Response(png, 200, _headers(job, entry), form)
    body: dict[str, Any] = {
        "id": entry.id,
        "model": model.name,
        "task": model.config.task,
        "exit": found.exit,
        "exits": model.config.exits,
        "final": found.exit == model.config.exits,
        "stop": job.stop,
        "deadline_ms": milliseconds(job.deadline_s - entry.arrived_s),
        "unsure": found.unsure,
        "size": [job.order.layout.height, job.order.layout.width],
    }
    if model.config.task == "pose":
        body |= {"keypoints": encoder.keypoints(job.keypoints(found.exit)), **describe_labels(model)}
    else:
        body["mask"] = {**base64_png(encoder.png(job.labels(found.exit), model.palette)), **describe_labels(model)}
    extra = job.extra_map(found.exit)
    if extra is not None:
        body["map"] = {"kind": job.order.extra, **base64_png(encoder.png(extra))}
    now_s = time.monotonic()
    body["timing"] = {
        "decode_ms": milliseconds(job.order.decode_s),
        "queue_ms": milliseconds(job.exits[0].started_s - job.submitted_s),
        "compute_ms": [milliseconds(done.stage_s) for done in job.exits],
        "encode_ms": milliseconds(now_s - began_s),
    }
    body["elapsed_ms"] = milliseconds(now_s - entry.arrived_s)
    return reply(body, headers={"X-Request-Id": entry.id})


def _headers(job: Job, entry: Entry) -> dict[str, str]:
    found = job.exits[-1]
    return {
        "X-Request-Id": entry.id,
        "X-Anytime-Exit": str(found.exit),
        "X-Anytime-Exits": str(job.order.layout.exits),
        "X-Anytime-Stop": str(job.stop),
        "X-Anytime-Elapsed-Ms": str(milliseconds(time.monotonic() - entry.arrived_s)),
        "X-Anytime-Unsure": f"{found.unsure:.6g}",
        "X-Anytime-Size": f"{job.order.layout.height}x{job.order.layout.width}",
    }


def exit_message(job: Job, exit_index: int, held: int | None, encoding: Encoding) -> tuple[dict[str, Any], list[bytes]]:
    """The header of an exit and its binary frames; runs on an encoding thread. `held`: the exit sent before."""
    model = job.order.model
    found = next(done for done in job.exits if done.exit == exit_index)
    header: dict[str, Any] = {
        "exit": exit_index,
        "exits": model.config.exits,
        "final": exit_index == model.config.exits,
        "unsure": found.unsure,
        "encoding": encoding,
        "size": [job.order.layout.height, job.order.layout.width],
    }
    frames: list[bytes] = []
    if model.config.task == "pose":
        header["keypoints"] = encoder.keypoints(job.keypoints(exit_index))
    elif encoding == "json":
        header["mask"] = base64_png(encoder.png(job.labels(exit_index), model.palette))
    else:
        before = None if held is None else job.labels(held)
        frames.append(_frame(encoding, job.labels(exit_index), before, model.palette))
        header["bytes"] = len(frames[-1])
    extra = job.extra_map(exit_index)
    if extra is not None:
        header["extra"] = {"kind": job.order.extra, "encoding": encoding}
        if encoding == "json":
            header["extra"] |= base64_png(encoder.png(extra))
        else:
            frames.append(_frame(encoding, extra, None if held is None else job.extra_map(held), None))
            header["extra"]["bytes"] = len(frames[-1])
    return header, frames


def _frame(encoding: Encoding, values: encoder.Map, held: encoder.Map | None, palette: bytes | None) -> bytes:
    if encoding == "raw":
        return values.tobytes()
    if encoding == "delta":
        return encoder.delta(values, held)
    return encoder.png(values, palette)
