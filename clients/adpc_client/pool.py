"""Pools of open WebSockets. A stream takes a connection for itself and returns it when it ends."""

import threading
from typing import Any

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.protocol import State
from websockets.sync.client import ClientConnection as Connection
from websockets.sync.client import connect

from adpc_client.transport import Endpoint

MAX_FRAME_BYTES = 1 << 28
"""The largest message to accept. An anytime server sends no larger map."""

_CLOSE_S = 1.0
"""How long to wait for the server's side of a closing handshake."""


class Pool:
    """A pool that threads may share."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[Connection] = []
        self._closed = False
        self._lock = threading.Lock()

    def acquire(self) -> Connection:
        """An open connection, idle or new.

        Raises ConnectionFailedError, ProtocolError, or a ReplyError if the server refuses the connection.
        """
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.state is State.OPEN:
                    return connection
        with self.endpoint.connect_errors():
            opened: Connection = connect(self.endpoint.stream_url, **_options(self.endpoint))
            return opened.__enter__()  # the connection stays open until someone calls its `close`

    def release(self, connection: Connection, reusable: bool) -> None:
        """Keep `connection` for the next stream if it is `reusable` and the pool is open; else close it."""
        with self._lock:
            keep = reusable and not self._closed
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def close(self) -> None:
        """Close the idle connections. Others close when they are released."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class AsyncPool:
    """A pool for the tasks of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[AsyncConnection] = []
        self._closed = False

    async def acquire(self) -> AsyncConnection:
        """An open connection, idle or new.

        Raises ConnectionFailedError, ProtocolError, or a ReplyError if the server refuses the connection.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.state is State.OPEN:
                return connection
        with self.endpoint.connect_errors():
            return await connect_async(self.endpoint.stream_url, **_options(self.endpoint))

    async def release(self, connection: AsyncConnection, reusable: bool) -> None:
        """Keep `connection` for the next stream if it is `reusable` and the pool is open; else close it."""
        if reusable and not self._closed:
            self._idle.append(connection)
        else:
            await connection.close()

    async def close(self) -> None:
        """Close the idle connections. Others close when they are released."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()


def _options(endpoint: Endpoint) -> dict[str, Any]:
    """The arguments of `connect` besides the URL, the same for threads and for asyncio."""
    return {
        "additional_headers": endpoint.headers,
        "open_timeout": endpoint.timeout.connect_s,
        "close_timeout": _CLOSE_S,
        "compression": None,  # images and maps are compressed already
        "max_size": MAX_FRAME_BYTES,
        "proxy": endpoint.proxy,
        "ssl": endpoint.stream_tls,
    }
