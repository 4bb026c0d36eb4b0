"""What Ray's proxies do beside passing requests on: they note the arrival, word the loss of a replica, and say the id
of a request once."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARRIVED = b"x-ray-arrived"
REQUEST_ID = b"x-request-id"

SENTENCE = "the replica that had this request is gone; send it again"
STATUS, RETRY_S = 503, 1
"""How a request is answered whose replica is lost, and the seconds after which asking again may help."""
WS_1012_SERVICE_RESTART = 1012


class PassedAnswer:
    """What the client of one request, or of one WebSocket, has been sent so far."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._is_socket = scope["type"] == "websocket"
        self._id = dict(scope["headers"]).get(REQUEST_ID)
        self._begun = self._ended = self._events = False

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": _one_id(message.get("headers", ()))}
            headers = {name.lower(): value for name, value in message["headers"]}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            self._id = headers.get(REQUEST_ID, self._id)
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
            body, given_id = _json(self._error()), [] if self._id is None else [(REQUEST_ID, self._id)]
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *given_id]
            headers.append((b"retry-after", b"%d" % RETRY_S))
            await self._send({"type": "http.response.start", "status": STATUS, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        elif self._events:
            event = {"type": "error", **self._error(), "status": STATUS, "retry_after_s": RETRY_S}
            await self._send({"type": "http.response.body", "body": b"event: error\ndata: %b\n\n" % _json(event)})
        # half an answer: the proxy hangs up

    def _error(self) -> dict[str, str | None]:
        """As the server words its errors."""
        return {
            "error": SENTENCE,
            "code": "replica_lost",
            "id": None if self._id is None else self._id.decode("latin-1"),
        }


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


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _one_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer without the id that Ray adds behind the replica's own."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.lower() != REQUEST_ID or all(other.lower() != REQUEST_ID for other, _ in kept):
            kept.append((name, value))
    return kept


def waited_s(headers: Iterable[tuple[bytes, bytes]], now_s: float, longest_s: float) -> float:
    """The seconds since a request came to the proxy, at most `longest_s`; 0 if the proxy does not say. `now_s`: Unix
    seconds. Whoever reaches a replica's own port may send any time."""
    found = next((value for name, value in headers if name == ARRIVED), None)
    try:
        return 0.0 if found is None else min(longest_s, max(0.0, now_s - float(found)))
    except ValueError:
        return 0.0


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(ProxyMark)]
