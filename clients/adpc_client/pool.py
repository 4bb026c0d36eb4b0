"""Open WebSockets that wait for their next stream. A stream has its connection to itself while it lasts."""

import threading

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.protocol import State
from websockets.sync.client import ClientConnection as Connection
from websockets.sync.client import connect

from adpc_client.transport import Endpoint

MAX_FRAME_BYTES = 1 << 28
"""No map of an image that a server takes is larger; a stream that sends more is not one of ours."""

_CLOSE_S = 1.0


class Pool:
    """Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[Connection] = []
        self._closed = False
        self._lock = threading.Lock()

    def acquire(self) -> Connection:
        """An open connection. Raises ConnectionFailedError, ProtocolError, or the ReplyError of a refusal."""
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.state is State.OPEN:
                    return connection
        with self.endpoint.connect_errors():
            connecting = connect(
                self.endpoint.stream_url,
                additional_headers=self.endpoint.headers,
                open_timeout=self.endpoint.timeout.connect_s,
                close_timeout=_CLOSE_S,
                compression=None,  # images and maps are compressed already
                max_size=MAX_FRAME_BYTES,
            )
            return connecting.__enter__()  # it outlives this block: `close` is its exit

    def release(self, connection: Connection, reusable: bool) -> None:
        with self._lock:
            keep = reusable and not self._closed
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class AsyncPool:
    """Lives in one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[AsyncConnection] = []
        self._closed = False

    async def acquire(self) -> AsyncConnection:
        """An open connection. Raises ConnectionFailedError, ProtocolError, or the ReplyError of a refusal."""
        while self._idle:
            connection = self._idle.pop()
            if connection.state is State.OPEN:
                return connection
        with self.endpoint.connect_errors():
            return await connect_async(
                self.endpoint.stream_url,
                additional_headers=self.endpoint.headers,
                open_timeout=self.endpoint.timeout.connect_s,
                close_timeout=_CLOSE_S,
                compression=None,  # images and maps are compressed already
                max_size=MAX_FRAME_BYTES,
            )

    async def release(self, connection: AsyncConnection, reusable: bool) -> None:
        if reusable and not self._closed:
            self._idle.append(connection)
        else:
            await connection.close()

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
