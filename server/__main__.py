"""python -m server: serve the models of a folder over HTTP and WebSocket.

`python -m server simulate` simulates it, `python -m server keys` makes API keys, and `python -m server settings` prints
its settings as a table.
"""

import asyncio
import ctypes
import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from server.access.command import main as keys
from server.app import create_app, drain
from server.catalog import read_catalog
from server.engine.messages import LoadPlan
from server.engine.worker_process import WorkerProcess
from server.errors import ServerError
from server.garbage import collect_seldom
from server.logs import configure_logging
from server.protocols.connection import HttpProtocol
from server.protocols.tls import TlsHandshake
from server.protocols.websocket import WebSocketProtocol
from server.rules import contradictions, this_machine
from server.settings import Settings, load_settings
from server.settings_table import main as tabulate
from server.simulation.command import main as simulate
from server.time_slices import take_short_time_slices

logger = logging.getLogger("anytime")


LINGER_S = 0.3
"""Seconds, after the open requests have ended, in which what still comes over open connections is refused in words. The
503 tells a client to close its connection; a request that is sent just as the server closes it is lost without an
answer."""


LISTENERS = 8
"""How many listeners share a socket of the public address. The event loop (libuv) accepts one connection of a listener
in each of its turns. Under load a turn takes milliseconds, so that 200 cameras would wait for a second."""


class Server(uvicorn.Server):
    """On the first signal it finishes the open requests before it exits; a second signal ends it at once."""

    failed = False
    _draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and self.started:
            self._draining = asyncio.create_task(self._finish())
        else:
            super().handle_exit(sig, frame)

    def fail(self, reason: str) -> None:
        """Exit with status 1: the models cannot be loaded."""
        logger.critical("the models cannot be loaded: %s", reason)
        self.failed = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 5 == 0:
            self.config.app.state.gate.peers.sweep(time.monotonic())  # type: ignore[union-attr]
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, also on the operators' own address."""
        await super().startup(sockets)
        if not self.started:
            return
        app, config, loop = self.config.app, self.config, asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        try:
            for listening in [each for server in self.servers for each in server.sockets]:
                for _ in range(LISTENERS - 1):
                    shared = socket.fromfd(listening.fileno(), listening.family, listening.type)
                    self.servers.append(await loop.create_server(protocol, sock=shared, backlog=config.backlog))
        except OSError as error:
            logger.warning("connections that come together will wait for one another: %s", error)
        address = app.state.service.settings.admin_address  # type: ignore[union-attr]
        if address is None:
            return
        try:
            server = await loop.create_server(protocol, *address, backlog=config.backlog)
        except OSError as error:
            logger.critical("--admin cannot listen: %s", error)
            self.failed = self.should_exit = True
            return
        self.servers.append(server)
        app.guard.admin_port = server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        logger.info("/metrics and /docs are at %s:%d", *server.sockets[0].getsockname()[:2])

    def _log_started_message(self, listeners: Sequence[socket.SocketType]) -> None:
        """uvicorn's, which names another scheme if it does not know of TLS."""
        scheme = "https" if self.config.app.state.service.settings.tls_key else "http"  # type: ignore[union-attr]
        host, port = listeners[0].getsockname()[:2]
        logger.info("running on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)

    async def _finish(self) -> None:
        try:
            await drain(self.config.app.state.service)  # type: ignore[union-attr]
            for server in self.servers:
                server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while self.server_state.connections:  # noqa: ASYNC110 - uvicorn tells nobody when one has ended
                        await asyncio.sleep(LINGER_S / 10)
        finally:
            self.should_exit = True


def make_server(settings: Settings, launch: Callable[[LoadPlan], WorkerProcess] | None = None) -> Server:
    """A server that does not run yet. `launch` starts its workers. Raises what `create_app` raises, and ValueError if
    the files of TLS do not belong together."""
    context = tls_context(settings.tls_certificate, settings.tls_key)
    app = create_app(settings, lambda reason: server.fail(reason), launch)  # noqa: PLW0108 - `server` is made below
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=HttpProtocol if context is None else partial(TlsHandshake, context),  # type: ignore[arg-type]
            ws=WebSocketProtocol,
            # A longer frame closes the socket unread. An image below this that is too large is answered with an error.
            ws_max_size=2 * settings.max_body_bytes,
            ws_per_message_deflate=False,  # PNG and delta are compressed already, and this would run on the event loop
            log_level=settings.log_level,
            log_config=None,  # `configure_logging` gives all loggers one format
            access_log=False,  # the request log knows more
            server_header=False,
            proxy_headers=False,  # the guard knows which proxies to trust; uvicorn would trust every local client
            timeout_graceful_shutdown=2,  # `drain` has waited for the requests before
        )
    )
    return server


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What HTTPS is served with; None if there are no files. Raises ValueError if they do not belong together."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--tls-certificate and --tls-key belong together; give both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise ValueError(f"--tls-certificate {certificate} and --tls-key {key}: {error}") from error
    return context


def keep_freed_memory() -> None:
    """Make glibc's allocator keep the memory of an image for the next one, up to 32 MiB a thread. Returning pages to
    the system and taking them again is half of the time of decoding a small image."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: once set, they no longer adapt
            libc.mallopt(option, 32 * 2**20)


def main() -> int:
    if sys.argv[1:2] == ["simulate"]:
        return simulate(sys.argv[2:])
    if sys.argv[1:2] == ["settings"]:
        return tabulate(sys.argv[2:])
    if sys.argv[1:2] == ["keys"]:
        return keys(sys.argv[2:])
    keep_freed_memory()
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    try:
        problems = contradictions(settings, read_catalog(settings.models, settings.default_model), this_machine())
        if problems:
            print("\n".join(f"python -m server: {problem}" for problem in problems), file=sys.stderr)
            return 2
        server = make_server(settings)
    except (ValueError, OSError, ServerError) as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 1
    collect_seldom()
    take_short_time_slices()
    try:
        server.run()
    except SystemExit:  # for example because the port is taken, which uvicorn has logged
        return 1
    return 1 if server.failed else 0


if __name__ == "__main__":
    sys.exit(main())
