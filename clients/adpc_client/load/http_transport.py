"""POSTs over HTTP/1.1 (RFC 9112), each on a connection that it has for itself and that stays open for later ones."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import urlencode

from adpc_client.errors import AdpcError, ConnectionFailedError, ProtocolError
from adpc_client.load.transport import Clock, LoadRequest, LoadTarget, OpenRequest
from adpc_client.transport import request_path, status_error
from adpc_client.wire import parse_json

MEDIA_TYPES = {"png": "image/png", "raw": "application/octet-stream", "json": "application/json"}
_FIELDS = "content-length", "content-type", "connection", "retry-after", "transfer-encoding", "x-anytime-[a-z-]+"
_FIELD = re.compile(rf"\r\n({'|'.join(_FIELDS)}):[ \t]*([^\r]*)".encode(), re.IGNORECASE)


class HttpTransport:
    """Connections to one server. Every request has `options` in its query."""

    def __init__(self, target: LoadTarget, encoding: str, options: Mapping[str, str], clock: Clock) -> None:
        self.clock = clock
        self._target, self._options = target, options
        # Poses come as JSON only, whatever is preferred.
        self._accept = f"{MEDIA_TYPES[encoding]}, {MEDIA_TYPES['json']};q=0.5"
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
        self._idle: dict[str, list[_HttpConnection]] = defaultdict(list)
        self._connected: set[_HttpConnection] = set()
        self._queries: dict[tuple[str | None, int | None], str] = {}
        """The encoded options but for the deadline, by model and priority."""
        self._cancels: set[asyncio.Task[None]] = set()

    async def connect(self, clients: Iterable[str]) -> None:
        for client in clients:
            idle = self._idle[client]
            connection = await self._target.connect(partial(_HttpConnection, self._connected, idle), client)
            if not connection.usable:
                raise connection.refusal or ConnectionFailedError(f"{self._target.url} closed a connection at once")
            idle.append(connection)

    def open(self, request: LoadRequest) -> OpenRequest | None:
        if (connection := self._free(request.planned.client)) is None:
            return None
        opened = _PostedRequest(self, connection, request)
        connection.send(self._head(request), request.payload.data, opened)
        return opened

    def close(self) -> None:
        for task in self._cancels:
            task.cancel()
        for connection in self._connected:
            connection.hang_up()

    def cancel(self, request: LoadRequest) -> None:
        """Send DELETE on another connection of the same client."""
        task = asyncio.create_task(self._delete(request))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _delete(self, request: LoadRequest) -> None:
        client = request.planned.client
        try:
            if (connection := self._free(client)) is None:
                await self.connect([client])
                connection = self._free(client)
        except AdpcError:
            return  # the request goes on to its own end
        if connection is None:
            return
        path = self._target.path + request_path(request.id)
        head = f"DELETE {path} HTTP/1.1\r\nHost: {self._target.netloc}\r\n{self._headers}\r\n"
        connection.send(head.encode(), b"", None)

    def _free(self, client: str) -> "_HttpConnection | None":
        idle = self._idle[client]
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    def _head(self, request: LoadRequest) -> bytes:
        planned, payload = request.planned, request.payload
        key = planned.model, planned.priority  # all that `LoadRequest.options` takes from it, besides the deadline
        if key not in self._queries:
            options = {**request.options(), **self._options}
            options.pop("deadline_ms")
            self._queries[key] = "".join(f"&{urlencode({name: value})}" for name, value in options.items())
        query = f"deadline_ms={round(request.deadline_ms, 3)}{self._queries[key]}"
        return (
            f"POST {self._target.path}/v1/predict?{query} HTTP/1.1\r\n"
            f"Host: {self._target.netloc}\r\n"
            f"{self._headers}"
            f"X-Request-Id: {request.id}\r\n"
            f"Accept: {self._accept}\r\n"
            f"Content-Type: {payload.content_type}\r\n"
            f"Content-Length: {len(payload.data)}\r\n\r\n"
        ).encode()


class _HttpConnection(asyncio.Protocol):
    """One connection. `connected` has it while it is open, `idle` while it can take a request. `refusal`: what the
    server answered before it was asked anything, or None."""

    def __init__(self, connected: "set[_HttpConnection]", idle: "list[_HttpConnection]") -> None:
        self.refusal: AdpcError | None = None
        self._connected, self._idle = connected, idle
        self._asked = False
        self._opened: _PostedRequest | None = None
        self._received = b""
        self._fields: dict[str, str] = {}
        self._status = 0
        self._body: list[bytes] = []
        self._left_bytes = -1
        """What is still to come of the answer's body; -1 before its head has come."""

    @property
    def usable(self) -> bool:
        return self in self._connected and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connected.add(self)

    def send(self, head: bytes, body: bytes, opened: "_PostedRequest | None") -> None:
        """Send a request. Its answer goes to `opened`, or nowhere."""
        self._opened, self._asked = opened, True
        self._transport.writelines([head, body])

    def hang_up(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._left_bytes < 0:
            self._received += data
            head, end, data = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._received = b""
            try:
                self._read_head(head)
            except (ValueError, KeyError):
                self._lose(ProtocolError(f"the server answered {head[:80]!r}; adpc load reads HTTP/1.1 with a length"))
                return
        self._left_bytes -= len(data)
        self._body.append(data)
        if self._left_bytes <= 0:
            self._answer()

    def connection_lost(self, error: Exception | None) -> None:
        why = f": {error}" if error else ""
        self._lose(ConnectionFailedError(f"the connection broke before the answer was complete{why}"))

    def _read_head(self, head: bytes) -> None:
        self._status = int(head[9:12])
        self._fields = {name.decode().lower(): text.decode("latin-1") for name, text in _FIELD.findall(head)}
        self._left_bytes = int(self._fields["content-length"])

    def _answer(self) -> None:
        opened, self._opened = self._opened, None
        body, self._body, self._left_bytes = b"".join(self._body), [], -1
        if self._fields.get("connection", "").lower() == "close":
            self._connected.discard(self)
            self._transport.close()
        else:
            self._idle.append(self)
        if opened is not None:
            opened.answer(self._status, self._fields, body)
        elif not self._asked:
            self.refusal = _status_error(self._status, body, self._fields)

    def _lose(self, error: AdpcError) -> None:
        self._connected.discard(self)
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.fail(error)
        self._transport.abort()


class _PostedRequest(OpenRequest):
    """A request that waits for its answer."""

    def __init__(self, transport: HttpTransport, connection: _HttpConnection, request: LoadRequest) -> None:
        super().__init__(transport.clock)
        self._transport, self._connection, self._request = transport, connection, request

    def cancel(self) -> None:
        self._transport.cancel(self._request)

    def hang_up(self) -> None:
        self.end("hung_up")
        self._connection.hang_up()

    def give_way(self) -> None:
        """Does nothing: an answer over HTTP shows no exit before it is complete."""

    def answer(self, status: int, fields: Mapping[str, str], body: bytes) -> None:
        """Take the answer. The map in it stays unread: its exit is in `fields`, or beside it in the JSON."""
        if status != 200:
            self.fail(_status_error(status, body, fields))
            return
        try:
            told = fields if "x-anytime-exit" in fields else _as_fields(parse_json(body))
            exit, stop = int(told["x-anytime-exit"]), told["x-anytime-stop"]
            unsure, elapsed_ms = float(told["x-anytime-unsure"]), float(told["x-anytime-elapsed-ms"])
        except (AdpcError, KeyError, ValueError) as error:
            self.fail(ProtocolError(f"the answer names no exit ({error}); is this an anytime server?"))
            return
        self.reach(exit)
        self.end(stop, unsure, elapsed_ms)


def _status_error(status: int, body: bytes, fields: Mapping[str, str]) -> AdpcError:
    return status_error(status, body, {"Retry-After": fields["retry-after"]} if "retry-after" in fields else {})


def _as_fields(body: Mapping[str, Any]) -> dict[str, str]:
    names = "exit", "stop", "unsure", "elapsed_ms"
    return {f"x-anytime-{name.replace('_', '-')}": str(body[name]) for name in names}
