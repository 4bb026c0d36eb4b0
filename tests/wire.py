"""A wire for protocols: a transport that remembers, an application that answers when it is told, and a clock."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from uvicorn.config import Config
from uvicorn.server import ServerState

from server.protocols.connection import HttpProtocol
from server.protocols.gate import Gate, make_gate
from server.protocols.http import HOP_S
from server.protocols.websocket import WebSocketProtocol
from server.settings import Settings

HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)


class Transport(asyncio.Transport):
    """The server's end of a connection from `address`."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 50_000), "sockname": ("127.0.0.1", 80)})
        self.protocol: Any = None
        self.written = b""
        self.reading = True
        self.closed = self.aborted = self.half_closed = False
        self.full_after: bytes | None = None

    def write(self, data: Any) -> None:
        assert not self.half_closed
        self.written += data
        if self.full_after is not None and self.written.endswith(self.full_after):
            self.protocol.pause_writing()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class Application:
    """Answers each HTTP request once `answer` is set, after it has read its body, or before if it `refuses`. It begins
    once `starts` is set, and says that it has waited `hop_s` seconds for other replicas. Takes a WebSocket's messages
    while `hears` is set."""

    def __init__(self, gate: Gate) -> None:
        self.state = SimpleNamespace(gate=gate)
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.messages: list[Any] = []
        self.starts = asyncio.Event()
        self.starts.set()
        self.answer = asyncio.Event()
        self.hears = asyncio.Event()
        self.refuses = False
        self.hop_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        self.headers.append(list(scope["headers"]))
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await self.hears.wait()
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    return
                self.messages.append(message.get("text") or message.get("bytes"))
        await self.starts.wait()
        body, more = b"", not self.refuses
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        scope[HOP_S] = self.hop_s
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Wire:
    """Connections to one gate, at a time that the test sets."""

    def __init__(self, connections: int = 100, **fields: Any) -> None:
        self.now_s = 1000.0
        self.gate = make_gate(Settings(**fields), connections)
        self.gate.turns.MIN_REST_S = 3600.0  # a test says when the next round is
        self.application = Application(self.gate)
        self._config = Config(
            self.application,  # type: ignore[arg-type]
            ws=WebSocketProtocol,
            ws_max_size=2 * self.gate.settings.max_body_bytes,
            log_config=None,
            lifespan="off",
        )
        self._state = ServerState()
        self._transports: list[Transport] = []

    def connect(self, address: str = "192.0.2.1") -> Transport:
        transport = Transport(address)
        self._transports.append(transport)
        transport.protocol = HttpProtocol(self._config, self._state, {})
        transport.protocol.connection_made(transport)
        return transport

    async def send(self, transport: Transport, data: bytes) -> None:
        """Let `data` arrive in one segment, and the server do what it wants to do about it."""
        transport.protocol.data_received(data)
        await self.settle()

    async def open_socket(self, address: str = "192.0.2.1", more: bytes = b"") -> Transport:
        """A WebSocket. `more` comes in the same segment as the handshake."""
        transport = self.connect(address)
        await self.send(transport, HANDSHAKE + b"\r\n" + more)
        assert transport.written.startswith(b"HTTP/1.1 101")
        transport.written = b""
        return transport

    def after(self, seconds: float) -> None:
        """Let time pass, and the server look at it."""
        self.now_s += seconds
        self.gate.peers.sweep(self.now_s)

    async def settle(self, iterations: int = 400) -> None:
        for _ in range(iterations):
            await asyncio.sleep(0)

    async def take_turns(self) -> None:
        """Hold rounds of turns until nobody waits for one."""
        await self.settle()
        while len(self.gate.turns):
            self.gate.turns.run()
            await self.settle(40)

    async def end(self) -> None:
        """Lose all connections."""
        for transport in self._transports:
            transport.closed = True
            transport.protocol.connection_lost(None)
        await self.settle()
        assert len(self.gate.peers) == self.gate.peers.held_bytes == 0


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A client's frame with a mask of zeros."""
    length = len(payload)
    head = bytes([opcode | (0x80 if final else 0)])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 2**16:
        head += bytes([0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


def close_code(written: bytes) -> int:
    """The code of the close frame at the end of what a server wrote."""
    at = written.rindex(b"\x88")
    return int.from_bytes(written[at + 2 : at + 4], "big")


def on_a_wire(check: Callable[[Wire], Any], connections: int = 100, **fields: Any) -> None:
    """Run `check` on an event loop, with the wire's clock in the protocols."""

    async def run() -> None:
        wire = Wire(connections, **fields)
        clock = SimpleNamespace(monotonic=lambda: wire.now_s)
        with patch("server.protocols.connection.time", clock), patch("server.protocols.websocket.time", clock):
            await check(wire)
            await wire.end()

    asyncio.run(run())
