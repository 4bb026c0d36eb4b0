"""TLS handshakes: connections that are counted, and limited in time, from their first byte on.

The event loop's own TLS tells of a connection only once its handshake is complete. Until then, silent clients would
hold descriptors that no limit counts.
"""

import asyncio
import ssl
import time
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from server.errors import ServerError
from server.protocols.connection import HttpProtocol
from server.protocols.gate import Gate
from server.protocols.peers import Peer


class TlsHandshake(Peer):
    """Waits for the handshake of one connection, and then hands it to HTTP."""

    def __init__(
        self,
        context: ssl.SSLContext,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__()
        self._context, self._config, self._state, self._app_state = context, config, server_state, app_state
        self._gate: Gate = config.app.state.gate  # type: ignore[union-attr]
        self._early = b""  # what has come before whoever is to read it
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else "unknown"
        self.waits_since_s = time.monotonic()
        self.due_s = self.waits_since_s + self._gate.settings.header_timeout_s
        self._state.connections.add(self)  # type: ignore[arg-type]
        if self._gate.peers.add(self) is not None:
            self.shutdown()
        else:
            self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._early += data

    def expire(self) -> None:
        self.shutdown()

    def give_way(self, error: ServerError) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Close the connection, without a word: before the handshake is complete, none would be understood."""
        self._forget()
        self.transport.abort()

    def _forget(self) -> None:
        self._state.connections.discard(self)
        self._gate.peers.remove(self)

    def _hand_on(self) -> None:
        """Give TLS what came before it was there: the event loop may read a connection before any task begins."""
        protocol: Any = self.transport.get_protocol()  # it has the methods of asyncio.BufferedProtocol
        data, self._early = memoryview(self._early), b""
        while data and protocol is not self:
            buffer = protocol.get_buffer(len(data))
            size_bytes = min(len(buffer), len(data))
            buffer[:size_bytes] = data[:size_bytes]
            protocol.buffer_updated(size_bytes)
            data = data[size_bytes:]

    async def _shake_hands(self) -> None:
        loop, limit_s = asyncio.get_running_loop(), self._gate.settings.header_timeout_s
        upgrade = loop.start_tls(self.transport, self, self._context, server_side=True, ssl_handshake_timeout=limit_s)
        upgrading = loop.create_task(upgrade)
        await asyncio.sleep(0)  # TLS now is the transport's protocol, and hears in the next iteration that it is
        loop.call_soon(self._hand_on)
        try:
            transport = await upgrading
        except OSError as error:  # SSLError is one, and so is the end of the connection
            self._gate.complaints.note(self.address, "bad_tls", str(error) or "the connection ended in its handshake")
            self.transport.abort()
            return
        finally:
            self._forget()
        assert transport is not None
        protocol = HttpProtocol(self._config, self._state, self._app_state)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._early:
            protocol.data_received(self._early)
