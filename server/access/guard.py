"""The guard: what is checked of every request and every WebSocket before the application sees it.

It identifies the caller and adds the security headers for browsers. It refuses requests that call the server by a
foreign name, that come from pages of other sites, or that lack an API key. It reads only the head of a request.
"""

import socket
import time
from collections import defaultdict

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.headers import (
    Headers,
    preflight_headers,
    secured,
    sharing_headers,
)
from server.access.identity import CALLER, SOMEBODY, Caller, token_digest
from server.access.keys import KeyRing
from server.access.origins import Origins
from server.access.proxies import TrustedProxies, parse_client_address, request_start_s
from server.errors import HeadersTooLargeError, InvalidError, NotFoundError, ServerError
from server.protocols.http import ARRIVED_S
from server.protocols.replies import error_reply
from server.settings import Settings

SUBPROTOCOL = "anytime"
KEY_SUBPROTOCOL = "anytime.key."
"""A browser cannot send a key in a header of a WebSocket. It offers two subprotocols instead: the first of these, which
the server chooses, and the second with the key behind it."""

OPEN_PATHS = ("/", "/health/live", "/health/ready", "/docs", "/openapi.json")
OPEN_FOLDERS = ("/static/", "/docs/")
"""Paths that need no key: the pages, their files, and the health checks of load balancers."""

ADMIN_PATHS = ("/metrics", "/docs", "/openapi.json")
ADMIN_FOLDERS = ("/docs/",)
"""Paths for operators. With `--admin` they are served on that address only, without a key."""

MAX_FIELDS, MAX_FIELD_BYTES = 128, 8192
"""The most header fields of a request, and the longest one or target: what a WebSocket's handshake may have, too. To
read some takes time that grows with the square of their length. Cookies are not read, and may be longer."""

Fields = defaultdict[bytes, list[str]]
"""The headers of a request: each name in small letters, with its values."""


class Guard:
    """ASGI middleware around the application. `keys`: None if everyone may ask.

    `admin_port`: the port of the operators' own address, or None if they have none.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing | None) -> None:
        self._app = app
        self._keys = keys
        self.admin_port = None if settings.admin_address is None else settings.admin_address[1]
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._longest_wait_s = settings.max_deadline_ms / 1000  # no deadline lasts longer
        self._origins = Origins(
            settings.allowed_hosts, settings.allowed_origins, settings.listens_on, own_name=socket.gethostname()
        )
        self._vary: Headers = [(b"vary", b"Origin")] if self._origins.shares else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        fields = _fields(scope)
        origin = fields[b"origin"][0] if fields[b"origin"] else None
        shared = sharing_headers(origin) if origin is not None and self._origins.shares_with(origin) else []
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None

        async def send_marked(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message["headers"] = [*secured(message.get("headers", ())), *self._vary, *shared]
            elif message["type"] == "websocket.accept" and subprotocol is not None:
                message["subprotocol"] = subprotocol
            await send(message)

        try:
            _check_head(scope)
            scope[CALLER] = self._admit(scope, fields, origin)
        except ServerError as error:
            await _refuse(error, fields, scope, receive, send_marked)
            return
        if origin is not None and scope.get("method") == "OPTIONS" and fields[b"access-control-request-method"]:
            await Response(None, 204, preflight_headers())(scope, receive, send_marked)
            return
        await self._app(scope, receive, send_marked)

    def _admit(self, scope: Scope, fields: Fields, origin: str | None) -> Caller:
        """Identify the caller. Raises ServerError if the request is not allowed."""
        peer, _ = _peer(scope)
        address = self._address(scope, fields)
        host = self._origins.check_host(fields[b"host"], scope["http_version"])
        if origin is not None:
            if len(fields[b"origin"]) > 1:
                raise InvalidError(f"the Origin header comes {len(fields[b'origin'])} times; send one", "bad_origin")
            self._origins.check_origin(origin, host)
        key = None
        if self._needs_key(scope) and self._keys is not None:
            key = self._keys.identify(_key(scope, fields), time.monotonic())
        tokens = fields[b"x-request-token"]
        # The messages of a WebSocket, which come later, waited nowhere.
        waited_s = self._waited_s(peer, scope, fields) if scope["type"] == "http" else 0.0
        return Caller(address, key, token_digest(tokens[0]) if tokens else None, waited_s)

    def _waited_s(self, peer: str, scope: Scope, fields: Fields) -> float:
        """The seconds between the arrival of the request at a trusted proxy, which says when that was, and its arrival
        here. What it has waited here since, for its headers or for a turn, is not in them."""
        started = fields[b"x-request-start"]
        start_s = request_start_s(started[0]) if started and self._proxies.trusts(peer) else None
        if start_s is None:
            return 0.0
        here_s: float = time.monotonic() - scope[ARRIVED_S]
        return min(self._longest_wait_s, max(0.0, time.time() - start_s - here_s))

    def _needs_key(self, scope: Scope) -> bool:
        """Whether a request needs an API key on a server that has keys. Raises NotFoundError if its path is served on
        the operators' address only."""
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if self.admin_port is not None and (path in ADMIN_PATHS or path.startswith(ADMIN_FOLDERS)):
            if (scope.get("server") or ("", None))[1] != self.admin_port:
                raise NotFoundError(f"there is nothing at {path} here; operators have an address for it", "not_found")
            return False
        return not (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or scope.get("method") == "OPTIONS")

    def _address(self, scope: Scope, fields: Fields) -> str:
        """The client's address. If a trusted proxy forwards the client's address and scheme, they replace those of the
        ASGI scope."""
        peer, port = _peer(scope)
        if not self._proxies.trusts(peer):
            return peer
        address = self._proxies.client(peer, fields[b"x-forwarded-for"])
        scope["client"] = (address, port)
        scheme = fields[b"x-forwarded-proto"][-1:]
        if scheme in (["http"], ["https"]):
            scope["scheme"] = scheme[0] if scope["type"] == "http" else scheme[0].replace("http", "ws")
        return address


def _peer(scope: Scope) -> tuple[str, int]:
    """The address and the port at the other end of the connection; IPv4 addresses that come as IPv6 ones are IPv4."""
    host, port = scope.get("client") or (SOMEBODY.address, 0)
    return (parse_client_address(host) or host) if ":" in host else host, port


def _fields(scope: Scope) -> Fields:
    fields: Fields = defaultdict(list)
    for name, value in scope["headers"]:
        fields[name].append(value.decode("latin-1"))
    return fields


def _check_head(scope: Scope) -> None:
    """Raises HeadersTooLargeError if reading the head would take long."""
    fields = scope["headers"]
    if len(fields) > MAX_FIELDS:
        sentence = f"the request has {len(fields):,} header fields, and the limit is {MAX_FIELDS}; send fewer"
        raise HeadersTooLargeError(sentence, "headers_too_large")
    sizes = {"a header field": max((len(value) for name, value in fields if name != b"cookie"), default=0)}
    sizes["the target"] = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    for what, size_bytes in sizes.items():
        if size_bytes > MAX_FIELD_BYTES:
            sentence = f"{what} has {size_bytes:,} bytes, and the limit is {MAX_FIELD_BYTES:,}; send a shorter one"
            raise HeadersTooLargeError(sentence, "headers_too_large")


def _key(scope: Scope, fields: Fields) -> str | None:
    """The API key that the request carries, or None."""
    scheme, _, key = (fields[b"authorization"] or [""])[0].partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered: list[str] = scope.get("subprotocols", [])
    return next((name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), None)


async def _refuse(error: ServerError, fields: Fields, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": error.close_code})
        return
    given_ids = fields[b"x-request-id"]
    await error_reply(error, error.status, given_ids[0] if given_ids else None)(scope, receive, send)
