"""The routes of version 2 of the Open Inference Protocol. Errors are those of the other routes: their field `error` is
the sentence that version 2 asks for."""

import asyncio
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.catalog import ServedModel
from server.engine.job import Job
from server.errors import InvalidError, TooLargeError
from server.protocols.bodies import REFUSED, LiveBody, answers
from server.protocols.http import hang_up_cancels, named, opened, read_request, weighted
from server.protocols.maps import further_map, label_map
from server.protocols.open_inference.bodies import (
    ConfigurationBody,
    IndexedModelBody,
    InferBody,
    MetadataBody,
    ReadyBody,
    ServerBody,
    StatisticsBody,
)
from server.protocols.open_inference.models import EXTENSIONS, configuration, metadata, statistics
from server.protocols.open_inference.requests import VERSION, InferRequest, check_version, parse_request
from server.protocols.open_inference.tensors import OutputTensor, write_body
from server.protocols.options import TIMEOUT_HEADER, parse_headers
from server.protocols.replies import milliseconds, reply
from server.protocols.values import shown
from server.requests.record import RequestRecord
from server.requests.registry import checked_id
from server.requests.service import Service

router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=REFUSED)

JSON_LENGTH = "Inference-Header-Content-Length"
SHORT_BYTES, SHORT_JSON_BYTES = 1 << 20, 1 << 12
"""A request of no more bytes, of which no more are JSON, is parsed on the event loop."""
_PARSER = ThreadPoolExecutor(1, "parse")
"""Requests are parsed one at a time: nothing else runs while the JSON of one is."""
WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""Content encodings, and zlib's argument `wbits` for each."""


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_INPUT = {"type": "object", "required": ["name", "datatype", "shape"]}
_INPUTS = {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": 1}
_ASKED_JSON = {"type": "object", "required": ["inputs"], "properties": {"inputs": _INPUTS}}
ASKED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _ASKED_JSON}, **_BINARY}}
}
INFERRED = answers(InferBody, "The newest exit that was reached by the deadline.")
INFERRED[200] |= {"content": _BINARY}
NOT_ALLOWED: dict[int | str, dict[str, Any]] = {400: REFUSED["4XX"], **REFUSED}


# --- the server and its models ---


@router.get("", responses=answers(ServerBody, "The server."))
async def server() -> Response:
    """The server's name, its version, and the extensions that it has."""
    try:
        release = version("anytime-inference-server")
    except PackageNotFoundError:  # it runs from a checkout that was not installed
        release = "0"
    return reply({"name": "anytime", "version": release, "extensions": list(EXTENSIONS)})


@router.get("/health/live", responses=answers(LiveBody, "It answers."))
async def live() -> Response:
    """200 while the server answers at all."""
    return reply({"live": True})


@router.get("/health/ready", responses=answers(ReadyBody, "The state.", 503))
async def ready(request: Request) -> Response:
    """200 while requests are answered; 503 before and while draining."""
    is_ready = bool(_service(request).engine.readiness()["ready"])
    return reply({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/models/stats", responses=answers(StatisticsBody, "The statistics."))
async def all_statistics(request: Request) -> Response:
    """How many requests each model has answered, and where their time went."""
    return reply(statistics(list(_service(request).statistics.items())))


@router.get("/models/{name}", responses=answers(MetadataBody, "The model."))
@router.get("/models/{name}/versions/{version}", responses=answers(MetadataBody, "The model."))
async def model(request: Request, name: str, version: str | None = None) -> Response:
    """The inputs and outputs of a model."""
    check_version(version)
    return reply(metadata(_service(request).catalog.get(name)))


@router.get("/models/{name}/ready", responses=answers(ReadyBody, "The state.", 503))
@router.get("/models/{name}/versions/{version}/ready", responses=answers(ReadyBody, "The state.", 503))
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """200 while requests for a model are answered."""
    check_version(version)
    _service(request).catalog.get(name)
    return await ready(request)


@router.get("/models/{name}/config", responses=answers(ConfigurationBody, "The model."))
@router.get("/models/{name}/versions/{version}/config", responses=answers(ConfigurationBody, "The model."))
async def model_configuration(request: Request, name: str, version: str | None = None) -> Response:
    """What load generators ask for before they begin."""
    check_version(version)
    return reply(configuration(_service(request).catalog.get(name)))


@router.get("/models/{name}/stats", responses=answers(StatisticsBody, "The statistics."))
@router.get("/models/{name}/versions/{version}/stats", responses=answers(StatisticsBody, "The statistics."))
async def model_statistics(request: Request, name: str, version: str | None = None) -> Response:
    """How many requests a model has answered, and where their time went."""
    check_version(version)
    service = _service(request)
    found = service.catalog.get(name).name
    return reply(statistics([(found, service.statistics[found])]))


@router.post("/repository/index", responses=answers(list[IndexedModelBody], "The models."))
async def index(request: Request) -> Response:
    """The models that are served."""
    service = _service(request)
    state = "READY" if service.engine.readiness()["ready"] else "UNAVAILABLE"
    models = [{"name": model.name, "version": VERSION, "state": state, "reason": ""} for model in service.catalog]
    return Response(pydantic_core.to_json(models), media_type="application/json")


@router.post("/repository/models/{name}/load", status_code=400, responses=NOT_ALLOWED)
@router.post("/repository/models/{name}/unload", status_code=400, responses=NOT_ALLOWED)
async def load(request: Request, name: str) -> Response:
    """Refused: the models are those that the server was started with."""
    _service(request).catalog.get(name)
    raise InvalidError("models are loaded at the start alone; restart the server with other --models", "not_allowed")


# --- inference ---


@router.post("/models/{name}/infer", openapi_extra=ASKED, responses=INFERRED, response_class=Response)
@router.post(
    "/models/{name}/versions/{version}/infer", openapi_extra=ASKED, responses=INFERRED, response_class=Response
)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """The best map that fits the deadline, as tensors. The parameters take the options of `POST /v1/predict`."""
    service, headers = _service(request), request.headers
    with opened(request, "v2", name) as record:
        check_version(version)
        model = service.catalog.get(name)
        service.check_caller(record)
        timeout_s = parse_headers(headers, headers.getlist(TIMEOUT_HEADER)).timeout_s
        longest_s, limit = service.settings.max_deadline_ms / 1000, service.settings.max_body_bytes
        record.move_deadline(record.arrived_s + min(longest_s, timeout_s or longest_s))  # the body may ask for less
        async with record.preparing():
            coded = await read_request(request, limit)
        with hang_up_cancels(request, service, record):
            parse = partial(_parse, coded, headers, model, limit)
            if _is_short(coded, headers):
                asked = parse()
            else:
                async with record.preparing():  # the parser may be busy with other requests
                    asked = await asyncio.get_running_loop().run_in_executor(_PARSER, parse)
            record.options = asked.options
            content_encoding = _content_encoding(headers.get("accept-encoding", ""))
            tensors = "v2 binary" if all(asked.outputs.values()) else "v2 json"
            record.encoding = tensors if content_encoding is None else f"{tensors} {content_encoding}"
            if asked.id is not None:
                record.id, record.owner = checked_id(asked.id), record.caller.owner(made_id=False)
            given_s = (timeout_s, asked.timeout_s)
            record.timeout_s = min((seconds for seconds in given_s if seconds is not None), default=None)

            async def read() -> bytes | memoryview:
                return asked.file

            response = await service.predict(record, read, partial(_answer, asked, content_encoding))
            response.headers.update(named(record))
            return response


def _is_short(coded: bytes, headers: Mapping[str, str]) -> bool:
    """Returns whether the event loop parses the request itself, because that takes less than a millisecond. A thread
    parses the others."""
    if len(coded) > SHORT_BYTES or headers.get("content-encoding", "identity").lower() != "identity":
        return False
    length = headers.get(JSON_LENGTH.lower(), "")
    json_bytes = int(length) if length.isdecimal() and len(length) < 8 else len(coded)
    return json_bytes <= SHORT_JSON_BYTES


def _parse(coded: bytes, headers: Mapping[str, str], model: ServedModel, limit_bytes: int) -> InferRequest:
    body = _decompressed(coded, headers.get("content-encoding", "identity").lower(), limit_bytes)
    return parse_request(body, headers.get(JSON_LENGTH.lower()), model)


def _decompressed(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Raises InvalidError, or TooLargeError as soon as the body would have more than `limit_bytes`."""
    if encoding == "identity":
        return body
    if encoding not in WINDOW_BITS:
        raise InvalidError(f"Content-Encoding is {shown(encoding)}; it may be gzip or deflate", "bad_encoding")
    stream = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        found = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidError(f"the body is not {encoding}: {error}; send the whole of it", "bad_encoding") from None
    if len(found) > limit_bytes:
        sentence = f"the body has more than {limit_bytes:,} bytes, which is the limit (--max-body-bytes): send fewer"
        raise TooLargeError(sentence, "body_too_large")
    if not stream.eof or stream.unused_data:
        raise InvalidError(f"the {encoding} body is cut off, or more follows it; send the whole of it", "bad_encoding")
    return found


def _content_encoding(accepted: str) -> str | None:
    """How the answer is compressed, by the header `Accept-Encoding` (RFC 9110, section 12.5.3); None: not at all."""
    weights = dict(weighted(part) for part in accepted.split(","))
    return next((name for name in WINDOW_BITS if weights.get(name, 0.0) > 0), None)


def _answer(asked: InferRequest, content_encoding: str | None, record: RequestRecord, job: Job) -> Response:
    """The newest exit as tensors."""
    found = job.exits[-1]
    facts: dict[str, Any] = {
        "exit": found.exit,
        "exits": job.model.config.exits,
        "final": job.final,
        "stop": str(job.stop),
        "unsure": found.active_share,
        "deadline_ms": milliseconds(record.budget_s),
        "elapsed_ms": milliseconds(time.monotonic() - record.arrived_s),
    }
    if record.options.meta is not None:
        facts["meta"] = record.options.meta
    head = {"model_name": job.model.name, "model_version": VERSION, "id": record.id, "parameters": facts}
    body, json_bytes = write_body(head, [_tensor(name, job, record, asked.outputs[name]) for name in asked.outputs])
    headers: dict[str, str] = {}
    if json_bytes is not None:
        headers[JSON_LENGTH] = str(json_bytes)
    if content_encoding is not None:
        compressor = zlib.compressobj(1, wbits=WINDOW_BITS[content_encoding])
        body = compressor.compress(body) + compressor.flush()
        headers["Content-Encoding"] = content_encoding
    media_type = "application/json" if json_bytes is None else "application/octet-stream"
    return Response(body, 200, headers, media_type)


def _tensor(name: str, job: Job, record: RequestRecord, binary: bool) -> OutputTensor:
    if name == "keypoints":
        return OutputTensor(name, "FP32", job.keypoints(job.latest)[None], binary)
    found = label_map(record, job, job.latest) if name == "mask" else further_map(record, job, job.latest)
    return OutputTensor(name, "UINT8", np.asarray(found)[None], binary)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
