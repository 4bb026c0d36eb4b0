"""The servers that host the application in tests: our own, plain uvicorn, hypercorn, and Ray Serve.

`ASGI_HOST=uvicorn`, `hypercorn` or `ray` runs every test of HTTP and WebSocket on that host in place of our own;
`tests/acceptance_hosts.py` does so for all of them.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import hypercorn.asyncio
import pytest
import uvicorn
from fastapi import FastAPI
from hypercorn.typing import ASGIFramework

from server.__main__ import Server, make_server
from server.app import create_app
from server.engine.messages import LoadPlan
from server.engine.worker_process import WorkerProcess
from server.settings import Settings

HOST = os.environ.get("ASGI_HOST", "own")

own_host_only = pytest.mark.skipif(HOST != "own", reason="needs what our own command adds to an ASGI host")
IN_PROCESS = "looks into the server or changes it, which Ray runs in another process"
same_process_only = pytest.mark.skipif(HOST == "ray", reason=IN_PROCESS)
host_limits_frames = pytest.mark.skipif(HOST == "ray", reason="needs a host whose limit of a frame can be set")
host_waits_for_readers = pytest.mark.skipif(HOST == "ray", reason="needs a host that takes no more than clients read")


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Host(Protocol):
    """A host that runs the application once `run` is called. `up` is set once it takes connections."""

    app: FastAPI
    loop: asyncio.AbstractEventLoop
    port: int
    up: threading.Event

    def run(self) -> None:
        """Run until it is stopped."""

    def interrupt(self) -> None:
        """Do what SIGTERM does; called from another thread."""

    def stop(self) -> None:
        """Stop without waiting for requests; called from another thread."""


class UvicornHost:
    """uvicorn, or our own subclass of its server."""

    def __init__(self, server: uvicorn.Server, app: FastAPI) -> None:
        self.server, self.app = server, app
        self.up = threading.Event()
        self._startup = server.startup
        server.startup = self._started  # type: ignore[method-assign]

    async def _started(self, sockets: list[socket.socket] | None = None) -> None:
        await self._startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.up.set()

    def run(self) -> None:
        self.server.run()

    def interrupt(self) -> None:
        self.loop.call_soon_threadsafe(self.server.handle_exit, signal.SIGTERM, None)

    def stop(self) -> None:
        self.server.should_exit = True


class HypercornHost:
    """hypercorn on its asyncio worker."""

    def __init__(self, app: ASGIFramework, frame_bytes: int) -> None:
        self.app = app
        self._config = hypercorn.Config()
        self._config.websocket_max_message_size = frame_bytes
        self.up = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._config.bind = [f"fd://{self._socket.detach()}"]
        self.up.set()
        await hypercorn.asyncio.serve(self.app, self._config, shutdown_trigger=self._ended.wait)

    def interrupt(self) -> None:
        self.loop.call_soon_threadsafe(self._ended.set)

    stop = interrupt


def own(settings: Settings, launch: Callable[[LoadPlan], WorkerProcess]) -> Host:
    server: Server = make_server(settings, launch)
    return UvicornHost(server, server.config.app)


def plain_uvicorn(settings: Settings, launch: Callable[[LoadPlan], WorkerProcess]) -> Host:
    app = create_app(settings, print, launch)
    frame_bytes = 2 * settings.max_body_bytes
    config = uvicorn.Config(app, port=0, log_level="error", ws_max_size=frame_bytes, ws_per_message_deflate=False)
    return UvicornHost(uvicorn.Server(config), app)


def hypercorn_host(settings: Settings, launch: Callable[[LoadPlan], WorkerProcess]) -> Host:
    return HypercornHost(create_app(settings, print, launch), 2 * settings.max_body_bytes)


def on_ray(settings: Settings, launch: Callable[[LoadPlan], WorkerProcess]) -> Host:
    from ray_host import RayHost  # noqa: PLC0415 - Ray is there for who asks for it

    return RayHost(settings, launch)


HOSTS = {"own": own, "uvicorn": plain_uvicorn, "hypercorn": hypercorn_host, "ray": on_ray}
