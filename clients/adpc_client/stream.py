"""One request on `/v1/stream`: exits as they come. Imports no HTTP.

`Stream` and `AsyncStream` differ only in how they wait; what they know stands in `_Conversation`.
"""

import asyncio
import json
import math
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection as Connection

from adpc_client.errors import AdpcError
from adpc_client.options import Encoding, Options
from adpc_client.pool import AsyncPool, Pool
from adpc_client.results import End, Exit
from adpc_client.transport import Endpoint
from adpc_client.wire import StreamReader

_DRAIN_S = 1.0
"""How long a stream that is left early waits for its `end`, so that its connection can serve the next one."""


@dataclass(frozen=True)
class StreamRequest:
    """What a stream asks for: `data` is the encoded image; an `id` is made if none is given."""

    data: bytes
    options: Options
    encoding: Encoding = "delta"
    id: str | None = None


class _Conversation:
    """What both kinds of stream know: the messages to send, and what has come so far."""

    def __init__(self, endpoint: Endpoint, request: StreamRequest) -> None:
        self.id = request.id or secrets.token_hex(8)
        self.last: Exit | None = None
        self.end: End | None = None
        self._endpoint = endpoint
        self._request = request
        self._wait_s = endpoint.timeout.answer_s(request.options.deadline_ms)
        self._reader = StreamReader(self.id)
        self._over = False

    @property
    def model(self) -> str | None:
        """The model that answers, once the server has accepted the request."""
        return self._reader.model

    def _predict_message(self) -> str:
        request = self._request
        return json.dumps({"type": "predict", "id": self.id, "encoding": request.encoding, **request.options.message()})

    def _cancel_message(self) -> str:
        return json.dumps({"type": "cancel", "id": self.id})

    def _deadline_message(self, deadline_ms: float) -> str:
        if not 0 < deadline_ms < math.inf:
            raise ValueError(f"deadline_ms is {deadline_ms:g}; give the milliseconds from now on, above 0")
        self._wait_s = self._endpoint.timeout.answer_s(deadline_ms)
        return json.dumps({"type": "deadline", "id": self.id, "deadline_ms": deadline_ms})

    def _take(self, frame: str | bytes) -> Exit | None:
        event = self._reader.feed(frame)
        if isinstance(event, End):
            self.end, self._over = event, True
            return None
        self.last = event or self.last
        return event


class Stream(_Conversation):
    """Exits of one request, as an iterator. Use it in a `with`, so that leaving early cancels the rest.

    `id`: of the request. `last`: the latest exit, or None. `end`: how it ended, once it has. Iterating raises
    ReplyError and its kind when the server refuses, ConnectionFailedError, ServerSilentError or ProtocolError.
    `cancel` and `set_deadline` may be called from another thread.
    """

    def __init__(self, pool: Pool, request: StreamRequest) -> None:
        super().__init__(pool.endpoint, request)
        self._pool = pool
        self._connection: Connection | None = None

    def __enter__(self) -> "Stream":
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Exit:
        try:
            while not self._over:
                connection = self._open()
                with self._endpoint.stream_errors():
                    exit = self._take(connection.recv(timeout=self._wait_s))
                if exit is not None:
                    return exit
        except BaseException:
            self._finish()
            raise
        self._finish()
        raise StopIteration

    def cancel(self) -> None:
        """Stop the work. The iteration goes on to the `end`, whose `stop` is `cancelled`."""
        self._send(self._cancel_message())

    def set_deadline(self, deadline_ms: float) -> None:
        """Tighten or extend the deadline: milliseconds from now. Raises ValueError unless above 0."""
        self._send(self._deadline_message(deadline_ms))

    def close(self) -> None:
        """Cancel what is left, if anything, and free the connection for the next stream."""
        if self._connection is not None and not self._over:
            try:
                self.cancel()
                while not self._over:
                    self._take(self._connection.recv(timeout=_DRAIN_S))
            except (AdpcError, TimeoutError, ConnectionClosed):
                pass  # nobody waits for these exits any more; the connection is just not used again
        self._finish()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = connection = self._pool.acquire()
            try:
                with self._endpoint.stream_errors():
                    connection.send(self._predict_message())
                    connection.send(self._request.data)
            except BaseException:
                self._finish()
                raise
        return self._connection

    def _send(self, message: str) -> None:
        connection = self._connection
        if connection is None and not self._over:
            raise RuntimeError("the stream is not open yet; enter its `with` first")
        if connection is not None and not self._over:
            with self._endpoint.stream_errors():
                connection.send(message)

    def _finish(self) -> None:
        connection, self._connection, self._over = self._connection, None, True
        if connection is not None:
            self._pool.release(connection, self._reader.over)


class AsyncStream(_Conversation):
    """`Stream` for asyncio: `async with client.stream(image) as stream: async for exit in stream: ..`."""

    def __init__(self, pool: AsyncPool, request: StreamRequest) -> None:
        super().__init__(pool.endpoint, request)
        self._pool = pool
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> "AsyncStream":
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> Exit:
        try:
            while not self._over:
                connection = await self._open()
                with self._endpoint.stream_errors():
                    exit = self._take(await _within(connection.recv(), self._wait_s))
                if exit is not None:
                    return exit
        except BaseException:
            await self._finish()
            raise
        await self._finish()
        raise StopAsyncIteration

    async def cancel(self) -> None:
        """Stop the work. The iteration goes on to the `end`, whose `stop` is `cancelled`."""
        await self._send(self._cancel_message())

    async def set_deadline(self, deadline_ms: float) -> None:
        """Tighten or extend the deadline: milliseconds from now. Raises ValueError unless above 0."""
        await self._send(self._deadline_message(deadline_ms))

    async def close(self) -> None:
        """Cancel what is left, if anything, and free the connection for the next stream."""
        if self._connection is not None and not self._over:
            try:
                await self.cancel()
                while not self._over:
                    self._take(await _within(self._connection.recv(), _DRAIN_S))
            except (AdpcError, TimeoutError, ConnectionClosed):
                pass  # nobody waits for these exits any more; the connection is just not used again
        await self._finish()

    async def _open(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = connection = await self._pool.acquire()
            try:
                with self._endpoint.stream_errors():
                    await connection.send(self._predict_message())
                    await connection.send(self._request.data)
            except BaseException:
                await self._finish()
                raise
        return self._connection

    async def _send(self, message: str) -> None:
        connection = self._connection
        if connection is None and not self._over:
            raise RuntimeError("the stream is not open yet; enter its `async with` first")
        if connection is not None and not self._over:
            with self._endpoint.stream_errors():
                await connection.send(message)

    async def _finish(self) -> None:
        connection, self._connection, self._over = self._connection, None, True
        if connection is not None:
            await self._pool.release(connection, self._reader.over)


async def _within(waiting: Awaitable[str | bytes], limit_s: float | None) -> str | bytes:
    try:
        return await asyncio.wait_for(waiting, limit_s)
    except asyncio.TimeoutError as error:  # another class than TimeoutError before Python 3.11
        raise TimeoutError from error
