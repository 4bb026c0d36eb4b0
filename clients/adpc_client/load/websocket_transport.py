"""Requests over WebSockets (`/v1/stream`), which show every exit as it comes."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from adpc_client.errors import AdpcError, ConnectionFailedError, ProtocolError, close_error, reply_error
from adpc_client.load.plan import PlannedRequest
from adpc_client.load.transport import CONNECT_S, Clock, LoadRequest, LoadTarget, OpenRequest
from adpc_client.pool import MAX_FRAME_BYTES
from adpc_client.transport import Endpoint, status_error


class WebSocketTransport:
    """WebSockets to one server. Every request has `options` in its message.

    A request takes an idle socket of its client, or opens another; once the client has `most`, its requests share them.
    One that will hang up has a socket for itself.
    """

    def __init__(
        self, target: LoadTarget, encoding: str, options: Mapping[str, str], clock: Clock, most: int | None = None
    ) -> None:
        self._target, self._clock, self._most = target, clock, most
        self._options = {"encoding": encoding, **options}
        self._url = Endpoint(target.url).stream_url
        self._sockets: dict[str, list[_LoadSocket]] = defaultdict(list)
        self._unshared: set[_LoadSocket] = set()

    async def connect(self, clients: Iterable[str]) -> None:
        for client in clients:
            socket = await self._new(client)
            self._sockets[client].append(socket)

    def open(self, request: LoadRequest) -> OpenRequest | None:
        if (socket := self._free(request.planned)) is None:
            return None
        opened = _StreamedRequest(socket, request.id, self._clock)
        if request.planned.hang_up:
            self._reserve(socket, request.planned.client, opened)
        socket.predict(opened, self._message(request), request.payload.data)
        return opened

    def close(self) -> None:
        for socket in [*self._unshared, *(socket for sockets in self._sockets.values() for socket in sockets)]:
            socket.hang_up()

    def _free(self, planned: PlannedRequest) -> "_LoadSocket | None":
        """Returns a socket that the request may use now, or None."""
        sockets = self._sockets[planned.client] = [each for each in self._sockets[planned.client] if each.usable]
        idlest = min(sockets, key=lambda socket: len(socket.requests), default=None)
        if idlest is None or not idlest.requests:
            return idlest
        shares = not planned.hang_up and self._most is not None and len(sockets) >= self._most
        return idlest if shares else None

    def _reserve(self, socket: "_LoadSocket", client: str, opened: OpenRequest) -> None:
        """Keep other requests away from a socket until `opened` has ended."""

        def give_back(_: object) -> None:
            self._unshared.remove(socket)
            self._sockets[client].append(socket)

        self._sockets[client].remove(socket)
        self._unshared.add(socket)
        opened.reply.add_done_callback(give_back)

    async def _new(self, client: str) -> "_LoadSocket":
        socket = await self._target.connect(lambda: _LoadSocket(self._url, self._target.headers), client)
        await asyncio.wait([socket.handshake], timeout=CONNECT_S)
        if not socket.handshake.done():
            socket.handshake.cancel()
            socket.hang_up()
            raise ConnectionFailedError(f"{self._url} did not accept a stream in {CONNECT_S:g} s")
        socket.handshake.result()
        if not socket.usable:  # the server says by a first message why it closes the socket
            raise socket.refusal or ConnectionFailedError(f"{self._url} closed the stream as soon as it was open")
        return socket

    def _message(self, request: LoadRequest) -> bytes:
        return json.dumps({"type": "predict", "id": request.id, **request.options(), **self._options}).encode()


class _StreamedRequest(OpenRequest):
    """A request on a socket that others may share."""

    def __init__(self, socket: "_LoadSocket", id: str, clock: Clock) -> None:
        super().__init__(clock)
        self.id = id
        self.unsure: float | None = None
        self._socket, self._gives_way = socket, False

    def cancel(self) -> None:
        self._socket.cancel(self.id)

    def hang_up(self) -> None:
        self.end("hung_up")
        self._socket.hang_up()

    def give_way(self) -> None:
        self._gives_way = True
        if self.exits:
            self.cancel()

    def reach(self, exit: int) -> None:
        super().reach(exit)
        if self._gives_way:
            self.give_way()


class _LoadSocket(asyncio.Protocol):
    """One WebSocket. `requests`: those open on it, by id. `handshake` is set once it can be used; it may raise an
    AdpcError. `refusal`: why the server closes it, or None."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.requests: dict[str, _StreamedRequest] = {}
        self.handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._protocol = ClientProtocol(parse_uri(url), max_size=MAX_FRAME_BYTES)
        self._headers = headers
        self._message: list[bytes] = []
        self._exit: tuple[_StreamedRequest | None, int] = (None, 0)
        """The exit whose maps come next, and its request."""
        self._maps_left = 0
        self.refusal: AdpcError | None = None

    @property
    def usable(self) -> bool:
        return self._protocol.state is State.OPEN and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        handshake = self._protocol.connect()
        handshake.headers.update(self._headers)
        self._protocol.send_request(handshake)
        self._flush()

    def predict(self, opened: _StreamedRequest, message: bytes, image: bytes) -> None:
        self.requests[opened.id] = opened
        self._protocol.send_text(message)
        self._protocol.send_binary(image)
        self._flush()

    def cancel(self, id: str) -> None:
        if self.usable and id in self.requests:
            self._protocol.send_text(json.dumps({"type": "cancel", "id": id}).encode())
            self._flush()

    def hang_up(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                self._shake_hands()
            elif event.opcode in DATA_OPCODES:
                self._take_frame(event)
        self._flush()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.receive_eof()
        received = self._protocol.close_rcvd
        code, reason = (received.code, received.reason) if received else (None, str(error or ""))
        self._lose(self.refusal or close_error(code, reason))

    def _shake_hands(self) -> None:
        error = self._protocol.handshake_exc
        if error is None:
            self.handshake.set_result(None)
        elif isinstance(error, InvalidStatus):
            response = error.response
            self._lose(status_error(response.status_code, response.body or b"", response.headers))
        else:
            self._lose(ProtocolError(f"the server does not speak WebSocket: {error}"))

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._message.clear()
            self._is_text = frame.opcode is Opcode.TEXT
        self._message.append(bytes(frame.data) if self._is_text else b"")
        if not frame.fin:
            return
        if not self._is_text:
            self._take_map()
            return
        try:
            self._take_text(json.loads(b"".join(self._message)))
        except (ValueError, KeyError, TypeError) as error:
            self._lose(ProtocolError(f"the server sent a message that makes no sense: {error!r}"))

    def _take_text(self, message: dict[str, Any]) -> None:
        kind, opened = message["type"], self.requests.get(message["id"])
        if kind == "exit":
            inline = "keypoints" in message or message["encoding"] == "json"
            self._maps_left = 0 if inline else 1 + bool(message.get("extra"))
            self._exit = opened, int(message["exit"])
            if opened is not None:
                opened.unsure = float(message["unsure"])
            if inline:
                self._reach()
        elif kind == "end" and opened is not None:
            del self.requests[opened.id]
            opened.end(message["stop"], opened.unsure, float(message["elapsed_ms"]))
        elif kind == "error" and not message.get("open"):
            error = reply_error(int(message.get("status", 0)), message, message.get("retry_after_s"))
            if message["id"] is None:
                self.refusal = error  # the server closes the socket next
            elif opened is not None:
                del self.requests[opened.id]
                opened.fail(error)

    def _take_map(self) -> None:
        self._maps_left -= 1
        if self._maps_left == 0:
            self._reach()

    def _reach(self) -> None:
        opened, exit = self._exit
        if opened is not None:
            opened.reach(exit)

    def _lose(self, error: AdpcError) -> None:
        """End all that waits for the socket, and close it."""
        if not self.handshake.done():
            self.handshake.set_exception(error)
        for opened in self.requests.values():
            opened.fail(error)
        self.requests.clear()
        self._transport.abort()

    def _flush(self) -> None:
        data = [part for part in self._protocol.data_to_send() if part]
        if data and not self._transport.is_closing():
            self._transport.writelines(data)
