"""`Stream` and `AsyncStream` send one request over `/v1/stream` and iterate over its exits.

They differ only in how they wait. `_StreamState` holds the rest.
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
"""How long a stream that is closed early waits for its `end`. The connection can then serve the next stream."""


@dataclass(frozen=True)
class StreamRequest:
    """The request of a stream. `data` is an image file; without `id` the stream makes one."""

    data: bytes
    options: Options
    encoding: Encoding = "delta"
    id: str | None = None


class _StreamState:
    """The state of a request that both kinds of stream share, and the messages that they send."""

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
        """The name of the model that answers; None until the server has accepted the request."""
        return self._reader.model

    def _predict_message(self) -> str:
        request = self._request
        return json.dumps({"type": "predict", "id": self.id, "encoding": request.encoding, **request.options.message()})

    def _cancel_message(self) -> str:
        return json.dumps({"type": "cancel", "id": self.id})

    def _deadline_message(self, deadline_ms: float) -> str:
        if not 0 < deadline_ms < math.inf:
            raise ValueError(
                f"deadline_ms is {deadline_ms:g}; give a finite number of milliseconds above 0, counted from now"
            )
        self._wait_s = self._endpoint.timeout.answer_s(deadline_ms)
        return json.dumps({"type": "deadline", "id": self.id, "deadline_ms": deadline_ms})

    def _take(self, message: str | bytes) -> Exit | None:
        event = self._reader.feed(message)
        if isinstance(event, End):
            self.end, self._over = event, True
            return None
        self.last = event or self.last
        return event


class Stream(_StreamState):
    """An iterator over the exits of one request. Leaving its `with` block early cancels the request.

    `id` names the request. `last` is the latest exit, or None. `end` tells how the request ended; it is None before.
    Iterating raises a ReplyError if the server refuses, ConnectionFailedError, ServerSilentError or ProtocolError.
    Other threads may call `cancel` and `set_deadline`.
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
        """Ask the server to stop. The iteration then goes on to the `end`, whose `stop` is `cancelled`."""
        self._send(self._cancel_message())

    def set_deadline(self, deadline_ms: float) -> None:
        """Move the deadline to `deadline_ms` from now. Raises ValueError unless it is finite and above 0."""
        self._send(self._deadline_message(deadline_ms))

    def close(self) -> None:
        """Cancel the request unless it has ended, and free the connection for the next stream."""
        try:
            if self._connection is not None and not self._over:
                self.cancel()
                while not self._over:
                    self._take(self._connection.recv(timeout=_DRAIN_S))
        except (AdpcError, TimeoutError, ConnectionClosed):
            pass  # these exits are unwanted; the pool closes the connection
        finally:
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


class AsyncStream(_StreamState):
    """The counterpart of `Stream` for asyncio: `async with` opens it and `async for` iterates over its exits."""

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
        """Ask the server to stop. The iteration then goes on to the `end`, whose `stop` is `cancelled`."""
        await self._send(self._cancel_message())

    async def set_deadline(self, deadline_ms: float) -> None:
        """Move the deadline to `deadline_ms` from now. Raises ValueError unless it is finite and above 0."""
        await self._send(self._deadline_message(deadline_ms))

    async def close(self) -> None:
        """Cancel the request unless it has ended, and free the connection for the next stream."""
        try:
            if self._connection is not None and not self._over:
                await self.cancel()
                while not self._over:
                    self._take(await _within(self._connection.recv(), _DRAIN_S))
        except (AdpcError, TimeoutError, ConnectionClosed):
            pass  # these exits are unwanted; the pool closes the connection
        finally:
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
    except asyncio.TimeoutError as error:  # before Python 3.11 it is not a TimeoutError
        raise TimeoutError from error
