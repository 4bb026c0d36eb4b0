"""The WebSocket: many requests on one socket, each sent its exits as they come. Messages are described in `wire.py`.

Imports no torch.
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from server.engine.messages import Stop
from server.errors import (
    DisconnectedError,
    InvalidError,
    NotFoundError,
    RequestCancelledError,
    ServerError,
    TooLargeError,
    UnavailableError,
    unexpected,
)
from server.protocols.replies import exit_message
from server.protocols.wire import (
    MAX_ID,
    CancelById,
    NewDeadline,
    NotJsonError,
    Predict,
    describe_labels,
    error_body,
    milliseconds,
    parse_json,
    parse_message,
    to_json,
)
from server.requests.job import Job
from server.requests.registry import Entry
from server.requests.service import Service, check_answer

logger = logging.getLogger("anytime.stream")
router = APIRouter()

DRAINING, NOT_JSON, REFUSED, TOO_BIG, FAULT, OVERLOADED = 1001, 1003, 1008, 1009, 1011, 1013


@router.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    service: Service = socket.app.state.service
    await Stream(socket, service).run()


Image = asyncio.Queue[bytes | ServerError]
"""For one item: the image that follows a header, or why none does."""


class Stream:
    """One socket: reads messages, and runs each request in a task of its own."""

    PAST_IDS = 256

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket = socket
        self._service = service
        self._client = socket.client.host if socket.client else "unknown"
        self._open: dict[str, Entry] = {}
        self._past: deque[str] = deque(maxlen=self.PAST_IDS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._image: Image | None = None
        """Where the next binary frame belongs; None if no header came before it."""

    async def run(self) -> None:
        """Serve the socket until it is closed by either side."""
        await self._socket.accept()
        streams = self._service.streams
        streams.add(self)
        try:
            self._check_room(len(streams))
            await self._read()
        except (DisconnectedError, WebSocketDisconnect):
            pass
        except ServerError as error:
            await self._refuse(error, _close_code(error))
        except Exception as error:  # the boundary: a fault of ours closes the socket and is logged
            logger.exception("a socket failed")
            await self._refuse(unexpected(error), FAULT)
        finally:
            streams.discard(self)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self, code: int) -> None:
        """Close from this side; nothing if the socket is closed."""
        try:
            await self._socket.close(code)
        except (RuntimeError, WebSocketDisconnect):  # by the other side, meanwhile
            return

    def _check_room(self, sockets: int) -> None:
        limit = self._service.settings.max_sockets
        if sockets > limit:
            sentence = f"{limit} sockets are open, which is the limit (--max-sockets); connect again later"
            raise UnavailableError(sentence, "overloaded", 1.0)
        self._service.limit.check_token(self._client)

    async def _read(self) -> None:
        """Hear messages until the client leaves. Raises ServerError on one after which the socket cannot go on."""
        while True:
            while len(self._tasks) > self._service.settings.max_open:  # most were refused, and the client does not read
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is not None:
                await self._hear_text(text)
            else:
                await self._hear_bytes(message["bytes"])

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
            self._image = asyncio.Queue()
            task = asyncio.create_task(self._serve(fields, self._image, time.monotonic()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # lets it begin: a cancel may follow at once, and must find it
            return
        try:
            self._obey(parse_message(fields))
        except ServerError as error:
            await self._send_error(error, fields.get("id"))

    async def _hear_bytes(self, data: bytes) -> None:
        """An image; one whose request has failed meanwhile is dropped with the queue that nobody reads."""
        if self._image is None:
            sentence = f"{len(data):,} bytes came without a header; send a predict message first"
            await self._send_error(InvalidError(sentence, "unexpected_binary"), None)
            return
        self._image.put_nowait(data)
        self._image = None

    def _obey(self, message: Predict | CancelById | NewDeadline) -> None:
        found = self._open.get(message.id)
        if found is None:
            if message.id not in self._past:  # else it has just ended, and its client will read that
                raise NotFoundError(f"no request {message.id!r} is open on this socket", "unknown_request")
        elif isinstance(message, CancelById):
            found.cancel()
        elif isinstance(message, NewDeadline):
            latest_s = found.arrived_s + self._service.settings.max_deadline_ms / 1000
            found.move(min(latest_s, time.monotonic() + message.deadline_ms / 1000))

    async def _serve(self, fields: dict[str, Any], image: Image, arrived_s: float) -> None:
        """One request, from its header to its last message."""
        message_id: Any = fields.get("id")
        last: dict[str, Any] | ServerError | None = None
        name = self._service.catalog.served(fields.get("model"))
        try:
            with self._service.ledger.entry(None, "websocket", arrived_s, name) as entry:
                message = self._parse(fields)
                entry.id = message.id
                self._open[message.id] = entry
                try:
                    await self._predict(message, image, entry)
                finally:
                    self._forget(entry)
        except DisconnectedError:
            return
        except RequestCancelledError:
            last = _end(message_id, 0, Stop.CANCELLED, arrived_s, [])
        except ServerError as error:
            if isinstance(message_id, str) and len(message_id) <= MAX_ID:
                self._past.append(message_id)  # its client may cancel it before it hears of this
            last = error
        del image  # nor does the error's traceback hold it, however long the client takes to hear of that
        if isinstance(last, ServerError):
            await self._send_error(last, message_id)
        elif last is not None:
            await self._tell(last)

    def _parse(self, fields: dict[str, Any]) -> Predict:
        message = parse_message(fields)
        assert isinstance(message, Predict)
        if message.id in self._open:
            raise InvalidError(f"request {message.id!r} is open on this socket; give another id", "duplicate_id")
        return message

    async def _predict(self, message: Predict, image: Image, entry: Entry) -> None:
        service = self._service
        known = service.accept(message.ask, entry, self._client)
        model = known.model
        async with entry.preparing():
            body = await image.get()
        if isinstance(body, ServerError):
            raise body
        with await service.begin(message.ask, known, body, entry, message.encoding) as job:
            del body  # the job has the pixels
            accepted = {
                "type": "accepted",
                "id": message.id,
                "model": model.name,
                "task": model.config.task,
                "exits": model.config.exits,
                "deadline_ms": milliseconds(job.deadline_s - entry.arrived_s),
                **describe_labels(model),
            }
            await self._send(accepted)
            sent = await self._send_exits(job, message)
            entry.stop = job.stop
            if not job.cancelled:
                await job.ended()
                check_answer(job)
            skipped = [done.exit for done in job.exits if done.exit >= job.order.required and done.exit not in sent]
            async with self._sending:
                self._forget(entry)  # nothing that follows this says that it is open
                await self._put(_end(message.id, job.latest, job.stop, entry.arrived_s, skipped))

    def _forget(self, entry: Entry) -> None:
        if self._open.get(entry.id) is entry:
            del self._open[entry.id]
            self._past.append(entry.id)

    async def _send_exits(self, job: Job, message: Predict) -> list[int]:
        """Send the newest exit whenever there is one and the socket takes it. Returns the exits that were sent."""
        sent: list[int] = []
        last = job.order.required - 1
        while True:
            newest = await job.newer(last)
            if newest <= last or job.cancelled:
                return sent
            async with self._sending:
                newest = job.latest  # others may have come while another request was being sent
                if job.cancelled:
                    return sent
                held = sent[-1] if sent else None
                header, frames = await self._service.encode(
                    message.encoding,
                    job.order.layout.pixels,
                    lambda: exit_message(job, newest, held, message.encoding),  # noqa: B023 - awaited before the next turn
                )
                header["elapsed_ms"] = milliseconds(time.monotonic() - job.order.budget.arrived_s)
                await self._put({"type": "exit", "id": message.id, **header})
                for frame in frames:
                    await self._put(frame)
            sent.append(newest)
            last = newest

    async def _send(self, message: dict[str, Any]) -> None:
        """A message of its own. Raises DisconnectedError."""
        async with self._sending:
            await self._put(message)

    async def _tell(self, message: dict[str, Any]) -> None:
        """`_send`, to a client that may have left."""
        with suppress(DisconnectedError):
            await self._send(message)

    async def _send_error(self, error: ServerError, message_id: Any) -> None:
        with suppress(DisconnectedError):
            async with self._sending:
                await self._put(self._error(error, message_id))

    def _error(self, error: ServerError, message_id: Any) -> dict[str, Any]:
        message_id = message_id if isinstance(message_id, str) else None
        retry = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
        going_on = {"open": True} if message_id in self._open else {}
        return {"type": "error", **error_body(error, message_id), "status": error.status, **retry, **going_on}

    async def _refuse(self, error: ServerError, code: int) -> None:
        await self._send_error(error, None)
        await self.close(code)

    async def _put(self, frame: dict[str, Any] | bytes) -> None:
        """One frame; waits while the client does not read. Raises DisconnectedError."""
        try:
            if isinstance(frame, bytes):
                await self._socket.send_bytes(frame)
            else:
                await self._socket.send_text(to_json(frame).decode())
        except (WebSocketDisconnect, RuntimeError) as error:
            raise DisconnectedError("the client hung up", "disconnected") from error


def _end(request_id: Any, exit_index: int, stop: Stop | None, arrived_s: float, skipped: list[int]) -> dict[str, Any]:
    elapsed_ms = milliseconds(time.monotonic() - arrived_s)
    end = {"type": "end", "id": request_id, "exit": exit_index, "stop": stop, "elapsed_ms": elapsed_ms}
    return {**end, "skipped": skipped}


def _close_code(error: ServerError) -> int:
    if isinstance(error, NotJsonError):
        return NOT_JSON
    if isinstance(error, TooLargeError):
        return TOO_BIG
    return OVERLOADED if isinstance(error, UnavailableError) else REFUSED
