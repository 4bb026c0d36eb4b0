"""The ASGI application: the routes, the lifetime of the service, the boundary for errors, and the demo page.

Any ASGI server can host it, for example `uvicorn --factory server.app:create_app`. `python -m server` hosts it with
uvicorn and the protocol classes of `server/protocols/connection.py` and `websocket.py`, whose limits the ASGI standard
leaves to the host.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

from fastapi import FastAPI, Request, WebSocket
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.status import HTTP_307_TEMPORARY_REDIRECT, WS_1001_GOING_AWAY
from starlette.types import Message, Receive, Scope, Send

from server.access.guard import Guard
from server.catalog import read_catalog
from server.descriptors import connection_room
from server.engine.messages import LoadPlan
from server.engine.worker_process import Reserve, WorkerProcess
from server.errors import NotFoundError, ServerError, unexpected
from server.logs import configure_logging
from server.protocols import budget, http, lookup, stream
from server.protocols.gate import make_gate
from server.protocols.hop import Hop, named_peers
from server.protocols.open_inference import routes as open_inference
from server.protocols.replies import error_reply
from server.requests.service import Service
from server.rules import contradictions, this_machine
from server.settings import ROOT, Settings, load_settings

logger = logging.getLogger("anytime.app")

ROUTERS = (http.router, lookup.router, budget.router, stream.router, open_inference.router)
PAGE = ROOT / "clients" / "web"

CLOSE_S = 2.0
"""The longest wait for the close handshakes of sockets, whose clients may not be reading."""


class Application(FastAPI):
    """FastAPI's application behind the guard. It notes when each request arrived, and calls the route of predictions
    directly.

    FastAPI's routing takes as much CPU as everything else that refusing a request costs. FastAPI still documents the
    route and refuses other methods on its path.
    """

    guard: Guard
    prefix = ""
    """The path prefix under which a proxy serves the application (`--root-path`); empty: none. The proxy may strip or
    keep it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.prefix and scope["type"] != "lifespan":
            scope["root_path"] = self.prefix
            if not f"{scope['path']}/".startswith(f"{self.prefix}/"):  # the proxy stripped it; ASGI wants it
                scope["path"] = self.prefix + scope["path"]
        if scope["type"] == "http":
            scope.setdefault(http.ARRIVED_S, time.monotonic())  # unless `HttpProtocol` noted the first byte
        await self.guard(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that the guard has admitted."""
        if scope["type"] == "http" and self._predicts(scope):
            await self._predict(scope, receive, send)
        else:
            await super().__call__(scope, receive, _with_own_redirects(send))

    def _predicts(self, scope: Scope) -> bool:
        """Whether the request is `POST /v1/predict`."""
        asked = scope["method"], scope["path"]
        return bool(asked == ("POST", scope.get("root_path", "") + http.PREDICT_PATH))

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        request = Request(scope, receive, send)
        try:
            response = await http.predict(request)
        except ServerError as error:  # the registry turns other exceptions into one
            response = await _server_error(request, error)
        await response(scope, receive, send)


class Page(StaticFiles):
    """The files of the demo page. Browsers cache them, and ask before each use whether they have changed."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response

    async def index(self, request: Request) -> Response:
        return await self.get_response("index.html", request.scope)

    async def docs(self, request: Request) -> Response:
        return await self.get_response("docs.html", request.scope)


def create_app(
    settings: Settings | None = None,
    unloadable: Callable[[str], None] | None = None,
    launch: Callable[[LoadPlan], WorkerProcess] | None = None,
) -> FastAPI:
    """Create the ASGI application. If `settings` is None, read them from the environment, and configure logging.

    Without `unloadable`, the start-up of the application waits until a worker can serve, and fails if the models cannot
    be loaded. With `unloadable`, it does not wait: requests are answered with 503 until a worker can serve, and
    `unloadable` is called with the reason if none ever can. `launch` starts a worker process. Raises ValueError or
    NotFoundError if the folder of models or the default model is wrong, and ValueError if settings that were read
    contradict each other, the models or the machine.
    """
    if settings is None:
        settings = _settings_of_environment()
    catalog = read_catalog(settings.models, settings.default_model)
    reserve = Reserve(settings.spare_workers)
    service = Service(settings, catalog, unloadable or logger.critical, launch or reserve)

    @asynccontextmanager
    async def lifespan(hosted: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            if unloadable is None:
                await service.engine.pool.loaded()
            yield
            if not service.engine.draining:
                await drain(service)
        finally:
            service.close()
            reserve.close()
            hosted.state.hop.close()

    app = Application(
        title="Anytime inference server",
        description="Dense prediction by a deadline: each request gets the best map that its time allows.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads scripts from another site
        redoc_url=None,
    )
    app.prefix = settings.root_path
    app.state.service = service
    app.state.hop = Hop(named_peers(settings.peers_address))
    app.guard = Guard(app.serve, settings, service.keys)
    app.state.gate = make_gate(settings, connection_room(settings))
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_websocket_route("/{path:path}", _no_socket)
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    if PAGE.is_dir():
        page = Page(directory=PAGE)
        app.mount("/static", page)
        app.add_api_route("/", page.index, include_in_schema=False)
        app.add_api_route("/docs", page.docs, include_in_schema=False)
        app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))
    return app


def _settings_of_environment() -> Settings:
    """The settings for an application that another program hosts, which owns the other loggers and the address. Raises
    ValueError if they contradict each other, the models or the machine."""
    settings = load_settings([])
    configure_logging(settings.log_level, settings.log_format, "anytime")
    machine = replace(this_machine(), listen=lambda host, port: None)
    problems = contradictions(settings, read_catalog(settings.models, settings.default_model), machine)
    if problems:
        raise ValueError("; ".join(problems))
    return settings


def _with_own_redirects(send: Send) -> Send:
    """The framework redirects between a path with and without a slash at its end, to a URL with the scheme and the host
    that it sees. Behind a proxy these may be other ones, so the browser gets the path alone."""

    async def send_path(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == HTTP_307_TEMPORARY_REDIRECT:
            headers = MutableHeaders(scope=message)
            parts = urlsplit(headers["location"])
            path = "/" + parts.path.lstrip("/")  # two slashes would begin the name of a host
            headers["location"] = urlunsplit(("", "", path, parts.query, ""))
        await send(message)

    return send_path


async def drain(service: Service) -> None:
    """Refuse new requests, wait for the open ones as long as the settings allow, and close the sockets."""
    service.engine.draining = True
    try:
        async with asyncio.timeout(service.settings.drain_ms / 1000):
            await service.registry.idle.wait()
    except TimeoutError:
        logger.warning("%d requests were still open when the time to drain was over", len(service.registry))
    closing = asyncio.gather(*(socket.close(WS_1001_GOING_AWAY) for socket in service.sockets), return_exceptions=True)
    with suppress(TimeoutError):  # a client that does not read does not answer the close
        await asyncio.wait_for(closing, CLOSE_S)


async def _server_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError)
    return _refuse(request, error, error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer the errors that FastAPI raises: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    headers = dict(error.headers or {})
    if error.status_code == 405:  # FastAPI names the methods of the path's first route only
        headers["Allow"] = ", ".join(sorted(_methods(request))) or headers.get("Allow", "")
    sentence = {
        404: f"there is nothing at {request.url.path[:200]}; GET /docs lists what there is",
        405: f"{request.method} is not for {request.url.path[:200]}; use {headers.get('Allow')}",
    }.get(error.status_code, str(error.detail))
    return _refuse(request, ServerError(sentence, code), error.status_code, headers)


async def _no_socket(socket: WebSocket) -> None:
    """Refuse a handshake at an unknown path."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        error = NotFoundError(f"there is no WebSocket at {socket.url.path[:200]}; connect to /v1/stream", "not_found")
        await socket.send_denial_response(_refuse(socket, error, error.status))
    else:
        await socket.close()


def _methods(request: Request) -> set[str]:
    """The methods of the routes that match the path of `request`."""
    routes = (route for router in ROUTERS for route in router.routes)
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in getattr(route, "methods", ())}


async def _fault(request: Request, error: Exception) -> Response:
    return _refuse(request, unexpected(error), 500)


def _refuse(
    request: HTTPConnection, error: ServerError, status: int, headers: dict[str, str] | None = None
) -> Response:
    return error_reply(error, status, request.headers.get("x-request-id"), headers)
