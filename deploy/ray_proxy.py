"""What Ray's proxies do beside passing requests on: they note the arrival, word the loss of a replica, and say the id
of a request once."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARRIVED = b"x-ray-arrived"
REQUEST_ID = b"x-request-id"

SENTENCE = "the replica that had this request is gone; send it again"
LOST = json.dumps({"error": SENTENCE, "code": "replica_lost"}).encode()
LOST_EVENT = b"event: error\ndata: " + LOST + b"\n\n"
WS_1012_SERVICE_RESTART = 1012


class PassedAnswer:
    """What the client of one request, or of one WebSocket, has been sent so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._is_socket = scope["type"] == "websocket"
        self._begun = self._ended = self._events = False

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message.get("headers", ())}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            message = {**message, "headers": _one_id(message.get("headers", ()))}
        self._begun = True
        last = message["type"] == "http.response.body" and not message.get("more_body")
        self._ended = last or message["type"] == "websocket.close"
        await self._send(message)

    async def end(self) -> None:
        """Say that the replica is gone, unless all has been said. Ray is silent then."""
        if self._ended:
            return
        if self._is_socket:
            with suppress(RuntimeError):  # the client has closed
                await self._send({"type": "websocket.close", "code": WS_1012_SERVICE_RESTART, "reason": SENTENCE})
        elif not self._begun:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(LOST))]
            start = {"type": "http.response.start", "status": 503, "headers": [*headers, (b"retry-after", b"1")]}
            await self._send(start)
            await self._send({"type": "http.response.body", "body": LOST})
        elif self._events:
            await self._send({"type": "http.response.body", "body": LOST_EVENT})
        # half an answer: the proxy hangs up


class ProxyMark:
    """ASGI middleware of a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        came = (ARRIVED, f"{time.time():.6f}".encode())
        scope["headers"] = [*(field for field in scope["headers"] if field[0] != ARRIVED), came]
        answer = PassedAnswer(scope, send)
        await self._app(scope, receive, answer.pass_on)
        await answer.end()


def _one_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer without the id that Ray adds behind the replica's own."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.lower() != REQUEST_ID or all(other.lower() != REQUEST_ID for other, _ in kept):
            kept.append((name, value))
    return kept


def arrived_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """When a request came to the proxy, in Unix seconds; None if the proxy does not say."""
    found = next((value for name, value in headers if name == ARRIVED), None)
    try:
        return None if found is None else float(found)
    except ValueError:
        return None


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(ProxyMark)]
