"""What Ray's proxies do beside passing requests on: they note the arrival, and word the loss of a replica."""

import json
import time
from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARRIVED = b"x-ray-arrived"
OWN = b"x-content-type-options"
"""A header that every answer of the server has, and none that Ray makes up."""

LOST = {
    "error": "the replica that had this request is gone; send it again",
    "code": "replica_lost",
}


class Marked:
    """ASGI middleware of a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        came = (ARRIVED, f"{time.time():.6f}".encode())
        scope["headers"] = [*(field for field in scope["headers"] if field[0] != ARRIVED), came]
        lost = False

        async def send_worded(message: Message) -> None:
            nonlocal lost
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                lost = message["status"] == 500 and OWN not in names
                if lost:
                    await _send_lost(send)
            if not lost:
                await send(message)

        await self._app(scope, receive, send_worded)


async def _send_lost(send: Send) -> None:
    body = json.dumps(LOST).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def arrived_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """When a request came to the proxy, in Unix seconds; None if the proxy does not say."""
    found = next((value for name, value in headers if name == ARRIVED), None)
    try:
        return None if found is None else float(found)
    except ValueError:
        return None


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(Marked)]
