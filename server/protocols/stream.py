"""The WebSocket `/v1/stream`: many requests on one socket, each of which is sent its exits as they come.

Text frames are JSON objects with `type`. The binary frames that a message announces follow it at once; nothing comes
between them.

    client  {"type": "predict", "id": "a", "model"?, "deadline_ms"?, "min_exit"?, "max_exit"?, "quality"?,
             "best_effort"?, "box"?: "x,y,w,h" or [x, y, w, h], "map"?: "confidence" | "exit" | "unsure",
             "classes"?: "road,car" or ["road", 8], "roi"?: as "box", "priority"?, "captured_at"?,
             "meta"?: comes back with `accepted` and every exit,
             "encoding"?: "png" (default) | "raw" | "delta" | "json" | "rle"}, then the image file as one binary frame
            {"type": "cancel", "id"}
            {"type": "deadline", "id", "deadline_ms"}: from now
    server  {"type": "accepted", "id", "model", "task", "exits", "deadline_ms", and the labels of `describe_labels`}
            {"type": "exit", "id", "exit", "exits", "final", "elapsed_ms", "unsure", "gmacs", "encoding",
             "size": [h, w], "bytes"}, then the map as one binary frame of so many bytes (encodings: see `replies.py`)
              "gmacs": multiply-adds so far / 1024^3
              encodings "json" and "rle": "mask" as over HTTP instead of "bytes", and no binary frame
              pose: "keypoints" instead of "bytes", and no binary frame
              with "map": also "extra": {"kind", "encoding", "bytes"}, and a binary frame after the map's; "delta" is
              against the same further map of the last exit sent; for "json" and "rle", "data" instead of "bytes", and
              no frame
            {"type": "end", "id", "exit", "stop", "elapsed_ms", "skipped"}: the last message about a request that was
            accepted and did not fail
            {"type": "error", "id", "code", "error", "status", "retry_after_s"?, "open"?}: the last message about a
              request that failed. With "open": true, a message about a request was refused, or a second request of the
              same id, and the request goes on. "id" is null if the error belongs to no request
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from server.access.identity import caller_of
from server.engine.job import Job
from server.engine.messages import Stop
from server.errors import (
    DisconnectedError,
    InvalidError,
    NotFoundError,
    RequestCancelledError,
    ServerError,
    TooLargeError,
    TooManyRequestsError,
    unexpected,
)
from server.garbage import without_frames
from server.protocols.exits import new_exits, skipped_exits
from server.protocols.options import (
    CancelMessage,
    DeadlineMessage,
    Message,
    PredictMessage,
    parse_json,
    parse_message,
)
from server.protocols.replies import accepted_message, end_message, error_message, exit_message, milliseconds, to_json
from server.protocols.turns import Allowance
from server.protocols.values import MAX_ID
from server.requests.record import RequestRecord
from server.requests.service import Service
from server.trace_context import parse_traceparent

logger = logging.getLogger("anytime.stream")
router = APIRouter()


@router.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    service: Service = socket.app.state.service
    await StreamSession(socket, service).run()


ImageQueue = asyncio.Queue[bytes | ServerError]
"""Holds one item: the image that follows a `predict` message, or the error if something else follows it."""


class StreamSession:
    """One socket. It reads messages, and runs each request in a task of its own."""

    PAST_IDS = 256
    """The number of ended requests whose ids are remembered, so that a cancel that crosses the end of its request is
    not answered with an error."""
    ERRORS, ERROR_RATE = 100.0, 10.0
    """The burst and the rate of errors; a socket that exceeds them is closed, since its client ignores them."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket = socket
        self._service = service
        self._caller = caller_of(socket.scope)
        _, port = socket.client or ("", 0)
        self._sharer = self._caller.key or f"{self._caller.address}:{port}"
        self._trace = parse_traceparent(socket.headers.get("traceparent"))
        self._open: dict[str, RequestRecord] = {}
        self._past: deque[str] = deque(maxlen=self.PAST_IDS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._errors = Allowance(self.ERROR_RATE, self.ERRORS)
        self._too_many_errors = False
        self._image: ImageQueue | None = None
        """Takes the next binary frame; None if no `predict` message came before it."""

    async def run(self) -> None:
        """Serve the socket until it is closed by either side."""
        await self._socket.accept()
        sockets = self._service.sockets
        sockets.add(self._socket)
        try:
            sockets.check(self._caller)
            await self._read()
        except (DisconnectedError, WebSocketDisconnect):
            pass
        except ServerError as error:
            await self._refuse(error)
        except Exception as error:  # the boundary: a fault of the server closes the socket and is logged
            logger.exception("a socket failed")
            await self._refuse(unexpected(error))
        finally:
            sockets.discard(self._socket)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Read messages until the client leaves. Raises ServerError on a message that closes the socket."""
        while True:
            while len(self._tasks) > self._service.settings.max_open:  # the client does not read its errors
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is not None:
                await self._hear_text(text)
            else:
                await self._hear_bytes(message["bytes"])
            if self._too_many_errors:
                sentence = f"more than {self.ERROR_RATE:g} messages a second had errors; read what they say"
                raise TooManyRequestsError(sentence, "too_many_errors")

    async def _hear_text(self, text: str) -> None:
        limit = self._service.settings.max_message_bytes
        size_bytes = len(text.encode())
        if size_bytes > limit:
            sentence = f"the message has {size_bytes:,} bytes; the limit is {limit:,} (--max-message-bytes)"
            raise TooLargeError(sentence, "message_too_large")
        fields = parse_json(text)
        if self._image is not None:
            sentence = "a header must be followed by its image, as a binary frame"
            self._image.put_nowait(InvalidError(sentence, "no_image"))
        self._image = None
        if fields.get("type") == "predict":
            self._image = ImageQueue()
            task = asyncio.create_task(self._serve(fields, self._image, time.monotonic()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # lets the task begin: a cancel may follow at once, and must find the request
            return
        try:
            self._obey(parse_message(fields))
        except ServerError as error:
            await self._send_error(error, fields.get("id"))

    async def _hear_bytes(self, data: bytes) -> None:
        """Hand an image to its request. If the request has failed meanwhile, nothing reads the queue, and both are
        dropped."""
        if self._image is None:
            sentence = f"{len(data):,} bytes came without a header; send a predict message first"
            await self._send_error(InvalidError(sentence, "unexpected_binary"), None)
            return
        self._image.put_nowait(data)
        self._image = None

    def _obey(self, message: Message) -> None:
        found = self._open.get(message.id)
        if found is None:
            if message.id not in self._past:  # else it has just ended, as the client will read
                raise NotFoundError(f"no request {message.id!r} is open on this socket", "unknown_request")
        elif isinstance(message, CancelMessage):
            self._service.cancel(found)
        elif isinstance(message, DeadlineMessage):
            self._service.move_deadline(found, message.deadline_ms / 1000)

    async def _serve(self, fields: dict[str, Any], image: ImageQueue, arrived_s: float) -> None:
        """Serve one request, from its `predict` message to the last message about it."""
        message_id: Any = fields.get("id")
        last: dict[str, Any] | ServerError | None = None
        model = self._service.catalog.served(fields.get("model"))
        try:
            with self._service.registry.open(
                "websocket", arrived_s, caller=self._caller, model=model, listed=False
            ) as record:
                record.trace = self._service.tracer.begin(record, self._trace)
                message = self._parse(fields)
                record.sharer = self._sharer
                record.id, record.options, record.encoding = message.id, message, message.encoding
                self._open[message.id] = record
                try:
                    await self._predict(record, image)
                finally:
                    self._forget(record)
        except DisconnectedError:
            return
        except RequestCancelledError:
            last = end_message(message_id, 0, Stop.CANCELLED, arrived_s, [])
        except ServerError as error:
            if isinstance(message_id, str) and len(message_id) <= MAX_ID:
                self._past.append(message_id)  # the client may cancel the request before it reads of the error
            last = without_frames(error)  # which refer to the error
        del image, fields  # a client that does not read its error must not hold what it sent
        if isinstance(last, ServerError):
            await self._send_error(last, message_id)
        elif last is not None:
            with suppress(DisconnectedError):
                await self._send(last)

    def _parse(self, fields: dict[str, Any]) -> PredictMessage:
        """A `predict` message. Raises InvalidError."""
        message = parse_message(fields)
        assert isinstance(message, PredictMessage)
        if message.id in self._open:
            raise InvalidError(f"request {message.id!r} is open on this socket; give another id", "duplicate_id")
        return message

    async def _predict(self, record: RequestRecord, image: ImageQueue) -> None:
        """Run a request's job and send its exits. Raises ServerError if it ends without an answer."""
        async with self._service.job(record, lambda: _received(image)) as job:
            await self._send(accepted_message(record, job))
            sent = await self._send_exits(record, job)
            if job.cancelled:
                record.stop = job.stop
            else:
                record.stop = await job.ended()
                record.check_answer(job)
            skipped = skipped_exits(job, sent)
            async with self._sending:
                self._forget(record)  # messages after this one must not say that the request is open
                await self._put(end_message(record.id, job.latest, job.stop, record.arrived_s, skipped))

    def _forget(self, record: RequestRecord) -> None:
        if self._open.get(record.id) is record:
            del self._open[record.id]
            self._past.append(record.id)

    async def _send_exits(self, record: RequestRecord, job: Job) -> list[int]:
        """Send the newest exit whenever there is one and the socket takes it. Returns the exits that were sent."""
        sent: list[int] = []
        async with aclosing(new_exits(job, self._sending)) as exits:
            async for new in exits:
                message, frames = await self._service.encode(
                    record,
                    lambda: exit_message(record, job, new.exit, new.held),  # noqa: B023 - awaited before the next turn
                )
                message["elapsed_ms"] = milliseconds(time.monotonic() - record.arrived_s)
                await self._put(message)
                for frame in frames:
                    await self._put(frame)
                sent.append(new.exit)
        return sent

    async def _send(self, message: dict[str, Any]) -> None:
        """Send a message without binary frames. Raises DisconnectedError."""
        async with self._sending:
            await self._put(message)

    async def _send_error(self, error: ServerError, message_id: Any) -> None:
        self._too_many_errors |= not self._errors.take(time.monotonic())
        with suppress(DisconnectedError):
            async with self._sending:
                await self._put(self._error(error, message_id))

    def _error(self, error: ServerError, message_id: Any) -> dict[str, Any]:
        message_id = message_id if isinstance(message_id, str) else None
        going_on = {"open": True} if message_id in self._open else {}
        return {**error_message(error, message_id), **going_on}

    async def _refuse(self, error: ServerError) -> None:
        """Send an error, and close the socket."""
        await self._send_error(error, None)
        with suppress(RuntimeError, WebSocketDisconnect):  # the client has closed it meanwhile
            await self._socket.close(error.close_code)

    async def _put(self, frame: dict[str, Any] | bytes) -> None:
        """Send one frame; waits while the client does not read. Raises DisconnectedError."""
        try:
            if isinstance(frame, bytes):
                await self._socket.send_bytes(frame)
            else:
                await self._socket.send_text(to_json(frame).decode())
        except (WebSocketDisconnect, RuntimeError) as error:
            raise DisconnectedError("the client hung up", "disconnected") from error


async def _received(image: ImageQueue) -> bytes:
    """The image, once it has come. Raises InvalidError if another message came in its place."""
    body = await image.get()
    if isinstance(body, ServerError):
        raise body
    return body
