"""The HTTP routes: predictions, models, requests, health and metrics."""

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.access.identity import caller_of
from server.engine.messages import Stop
from server.errors import DisconnectedError, NotAcceptableError
from server.protocols.bodies import (
    REFUSED,
    LiveBody,
    MapHeaders,
    ModelDetailsBody,
    ModelsBody,
    PredictionBody,
    ReadinessBody,
    answers,
)
from server.protocols.descriptions import describe_costs, describe_model
from server.protocols.events import EVENTS, EventStream, served_events
from server.protocols.form import FORM, read_form
from server.protocols.options import TIMEOUT_HEADER, QueryOptions, RequestHeaders, parse_headers, parse_options
from server.protocols.replies import http_reply, reply
from server.protocols.values import shown
from server.requests.body import join, limited
from server.requests.record import RequestRecord
from server.requests.service import Read, Service
from server.trace_context import parse_traceparent

router = APIRouter()

PREDICT_PATH = "/v1/predict"
ARRIVED_S = "anytime.arrived_s"
"""The key of the ASGI scope that holds the time of arrival, in seconds of `time.monotonic()`: that of the request's
first byte if `HttpProtocol` serves it, that of its complete headers on another ASGI host."""
HOP_S = "anytime.hop_s"
"""The key of the ASGI scope that holds the seconds that a look-up has waited for other replicas, if it did."""
MEDIA_TYPES = ("application/json", "image/png", "application/octet-stream", EVENTS)
"""The media types of an answer; the first is the default. The second and third hold a map alone."""


def documented(model: Any) -> dict[str, dict[str, Any]]:
    """The fields of a pydantic model or a typed dictionary by name, as OpenAPI describes parameters and headers."""
    found = {}
    for name, field in TypeAdapter(model).json_schema()["properties"].items():
        schema = field.get("anyOf", [field])[0]  # without the null that stands for a missing parameter
        bare = {key: value for key, value in schema.items() if key not in ("title", "description")}
        found[name] = {"description": field["description"], "schema": bare}
    return found


_FILE = {"schema": {"type": "string", "format": "binary"}}
PREDICT: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": place, **field}
        for place, model in (("query", QueryOptions), ("header", RequestHeaders))
        for name, field in documented(model).items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind}": _FILE for kind in ("jpeg", "png", "webp", "bmp")},
            FORM: {"schema": {"type": "object", "properties": {"image": _FILE["schema"]}}},
        },
    },
}
PREDICTED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictionBody,
        "description": "The newest exit that was reached by the deadline.",
        "content": {"image/png": _FILE, "application/octet-stream": _FILE, EVENTS: {"schema": {"type": "string"}}},
        "headers": documented(MapHeaders),
    },
    **REFUSED,
}
MEASURED = {200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}, **REFUSED}


@router.post(PREDICT_PATH, openapi_extra=PREDICT, responses=PREDICTED, response_class=Response, tags=["predict"])
async def predict(request: Request) -> Response:
    """The best map that fits the deadline, in one answer; or every exit as it comes, as server-sent events."""
    if _wants_events(request.headers.getlist("accept")):
        events = _events(request)
        first = await anext(events)  # an error before the first event is answered over HTTP
        return EventStream(first, events, named(request.state.record))
    with _opened(request) as record, ExitStack() as until_answered:
        response = await _service(request).predict(record, _reader(request, record, until_answered), http_reply)
        response.headers.update(named(record))
        return response


def named(record: RequestRecord) -> dict[str, str]:
    """The headers of a response that identify its request."""
    trace = {} if record.trace is None else {"traceresponse": str(record.trace)}
    return {"X-Request-Id": record.id, **trace}


async def _events(request: Request) -> AsyncGenerator[bytes, None]:
    """See `served_events`."""
    with _opened(request) as record, ExitStack() as until_answered:
        read = _reader(request, record, until_answered)
        async with aclosing(served_events(_service(request), record, read)) as events:
            async for event in events:
                yield event


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@contextmanager
def opened(request: Request, protocol: str, model: str | None) -> Iterator[RequestRecord]:
    """Open the record of a request, with its caller and its time of arrival. `model`: the name of the requested model;
    None: the default model. Raises ServerError."""
    service, headers = _service(request), request.headers
    caller, served = caller_of(request.scope), service.catalog.served(model)
    arrived_s = request.scope[ARRIVED_S] - caller.waited_s
    with service.registry.open(protocol, arrived_s, headers.get("x-request-id"), caller, served) as record:
        record.trace = service.tracer.begin(record, parse_traceparent(headers.get("traceparent")))
        record.sharer = caller.network
        yield record


@contextmanager
def _opened(request: Request) -> Iterator[RequestRecord]:
    """Open the record of a request to `POST /v1/predict`, with its options. Raises ServerError."""
    service = _service(request)
    headers, query = request.headers, request.query_params
    with opened(request, "http", query.get("model")) as record:
        request.state.record = record
        record.options = options = parse_options(query, query.getlist("deadline_ms"))
        record.timeout_s = parse_headers(headers, headers.getlist(TIMEOUT_HEADER)).timeout_s
        task = service.catalog.get(options.model).config.task
        record.encoding = _encoding(",".join(headers.getlist("accept")), task, options)
        yield record


def _reader(request: Request, record: RequestRecord, until_answered: ExitStack) -> Read:
    """A function that receives the image. From then on, until `until_answered` is closed, the request is cancelled if
    the client hangs up."""
    service = _service(request)

    async def read() -> bytes:
        body = await _body(request, service.settings.max_body_bytes)
        until_answered.enter_context(hang_up_cancels(request, service, record))
        return body

    return read


def _wants_events(accept: Sequence[str]) -> bool:
    try:
        return bool(accept) and accepted_media_type(",".join(accept)) == EVENTS
    except NotAcceptableError:
        return False


def _encoding(accept: str, task: str, options: QueryOptions) -> str:
    """How maps are encoded: `rle`, `json` for events, or the media type of the answer. Raises NotAcceptableError."""
    in_json = (MEDIA_TYPES[0], EVENTS)
    if task == "pose":
        media_type = accepted_media_type(accept, in_json, "keypoints")
    elif options.map is not None:
        media_type = accepted_media_type(accept, in_json, "two maps")
    elif options.encoding == "rle":
        media_type = accepted_media_type(accept, in_json, "run lengths")
    else:
        media_type = accepted_media_type(accept)
    if media_type in in_json and options.encoding == "rle":
        return "rle"
    return "json" if media_type == EVENTS else media_type


async def read_request(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLargeError, or DisconnectedError if the client hangs up meanwhile."""
    return await join([piece async for piece in _pieces(request, limit_bytes)])


async def _pieces(request: Request, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises as `read_request`."""
    length = request.headers.get("content-length", "")
    try:
        async for piece in limited(request.stream(), int(length) if length.isdecimal() else None, limit_bytes):
            yield piece
    except ClientDisconnect:
        raise DisconnectedError("the client hung up", "disconnected") from None


async def _body(request: Request, limit_bytes: int) -> bytes:
    """The image's bytes: the body itself, or field `image` of a form.

    Raises InvalidError, TooLargeError, or DisconnectedError if the client hangs up meanwhile.
    """
    if request.headers.get("content-type", "").lower().startswith(FORM):
        return await read_form(request.headers, _pieces(request, limit_bytes))
    return await read_request(request, limit_bytes)


@contextmanager
def hang_up_cancels(request: Request, service: Service, record: RequestRecord) -> Iterator[None]:
    """Cancels the request if the client closes the connection. Use it once the body has been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        service.cancel(record, Stop.DISCONNECTED)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


@lru_cache(maxsize=64)  # clients send the same header again and again
def accepted_media_type(accept: str, offered: tuple[str, ...] = MEDIA_TYPES, what: str = "a map") -> str:
    """The best of the `offered` media types for an `Accept` header (RFC 9110, section 12.5.1).

    An empty header accepts all. Raises NotAcceptableError, which says that `what` can be none of the accepted types.
    """
    ranges = dict(weighted(part) for part in (accept or "*/*").split(","))

    def weight(media_type: str) -> float:
        return ranges.get(media_type, ranges.get(f"{media_type.partition('/')[0]}/*", ranges.get("*/*", 0.0)))

    best = max(offered, key=weight)
    if weight(best) <= 0:
        raise NotAcceptableError(
            f"Accept is {shown(accept)}; {what} can be {' or '.join(offered)}: accept that", "not_acceptable"
        )
    return best


def weighted(text: str) -> tuple[str, float]:
    """One part of an `Accept` or `Accept-Encoding` header: the value, and its weight `q` (RFC 9110, section 12.4.2)."""
    value, *parameters = (part.strip().lower() for part in text.split(";"))
    try:
        weight = next((float(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
    except ValueError:
        weight = 0.0
    return value, 0.0 if math.isnan(weight) else weight


@router.get("/v1/models", responses=answers(ModelsBody, "The models."), tags=["models"])
async def models(request: Request) -> Response:
    """Every served model, and the name of the default one."""
    service: Service = request.app.state.service
    facts = service.engine.facts
    described = [describe_model(model, facts.get(model.name)) for model in service.catalog]
    settings = service.settings
    deadlines = {"default": settings.default_deadline_ms, "max": settings.max_deadline_ms}
    return reply({"default": service.catalog.default, "models": described, "deadline_ms": deadlines})


@router.get("/v1/models/{name}", responses=answers(ModelDetailsBody, "The model."), tags=["models"])
async def model(request: Request, name: str) -> Response:
    """One model: task, labels, what exits cost at first and as learnt since, and how many requests got no answer."""
    service: Service = request.app.state.service
    found = service.catalog.get(name)
    described = describe_model(found, service.engine.facts.get(name))
    ended = {stop: service.metrics.ended(name, stop) for stop in (Stop.REJECTED, Stop.NO_EXIT)}
    return reply({**described, "learnt": describe_costs(service.engine.pool.learnt(name)), "without_answer": ended})


@router.get("/health/live", responses=answers(LiveBody, "It answers."), tags=["health"])
async def live() -> Response:
    """200 while the server answers at all."""
    return reply({"live": True})


@router.get("/health/ready", responses=answers(ReadinessBody, "The state.", 503), tags=["health"])
async def ready(request: Request) -> Response:
    """200 while a worker can serve: it has run every exit of every model. 503 while the models load, while the only
    worker restarts or does not respond, and while the server drains."""
    service: Service = request.app.state.service
    body = service.engine.readiness()
    return reply(body, 200 if body["ready"] else 503)


@router.get("/metrics", responses=MEASURED, response_class=Response, tags=["health"])
async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    text = bytearray()
    for part in service.metrics.parts():
        text += part
        await asyncio.sleep(0)  # lets other requests be answered meanwhile
    return Response(bytes(text), media_type="text/plain; version=0.0.4; charset=utf-8")
