"""Ray Serve as the host of the application in tests: one replica of `deploy/ray_serve.py` behind Ray's own proxy.

The replica runs in another process, and its workers are still the test's: the two sockets that the server has of a
worker, and the memory that both share, go from process to process as descriptors. Ray's proxy knows one server at a
time, so tests that start one of their own come before those that share the module's.
"""

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.reduction import recv_handle, send_handle
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hosts import IN_PROCESS, free_port
from ray import serve

from deploy import ray_serve
from server.app import create_app
from server.engine import supervisor
from server.engine.messages import LoadPlan
from server.engine.worker_process import WorkerProcess
from server.settings import ROOT, Settings

NAME = "tested"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "clients", "tests")),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Launcher:
    """Starts workers in the process of the test, for a server in another one."""

    def __init__(self, launch: Callable[[LoadPlan], WorkerProcess]) -> None:
        self._launch = launch
        self._listener = Listener(family="AF_UNIX")
        self.address = str(self._listener.address)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, server: Connection) -> None:
        plan: LoadPlan = server.recv()
        arena_fd = recv_handle(server)
        worker = self._launch(replace(plan, arena_fd=arena_fd))
        os.close(arena_fd)
        server.send(worker.pid)
        send_handle(server, worker.connection.fileno(), None)
        worker.connection.close()
        with server, suppress(EOFError):
            while True:
                wait_s = server.recv()
                server.send(worker.kill() if wait_s is None else worker.gone(wait_s))
        worker.kill()


class RemoteWorker:
    """A worker that a `Launcher` has started, as the server sees it."""

    def __init__(self, address: str, plan: LoadPlan) -> None:
        self._launcher = Client(address, family="AF_UNIX")
        self._launcher.send(plan)
        send_handle(self._launcher, plan.arena_fd, None)
        self.pid: int = self._launcher.recv()
        self.connection = Connection(recv_handle(self._launcher))

    def kill(self) -> None:
        self._launcher.send(None)
        self._launcher.recv()

    def gone(self, wait_s: float = 0.0) -> bool:
        self._launcher.send(wait_s)
        gone: bool = self._launcher.recv()
        return gone


class TestedReplica(ray_serve.Replica):  # type: ignore[misc]
    """A replica with settings and workers of a test. It takes requests before it is warm, as our own command does."""

    async def __init__(self, settings: Settings, launcher: str, tick_s: float) -> None:
        supervisor.TICK_S = tick_s  # type: ignore[misc]
        launch = partial(RemoteWorker, launcher)
        ray_serve.load_settings = lambda _: settings  # type: ignore[assignment]
        ray_serve.create_app = partial(create_app, unloadable=print, launch=launch)
        await super().__init__()


class Elsewhere:
    """What is in the process of the replica: a test that looks at it is skipped."""

    def __getattr__(self, name: str) -> Any:
        pytest.skip(IN_PROCESS)


class RayHost:
    """The host that tests see."""

    app: Any = SimpleNamespace(state=SimpleNamespace(service=Elsewhere()))
    loop: Any = Elsewhere()

    def __init__(self, settings: Settings, launch: Callable[[LoadPlan], WorkerProcess]) -> None:
        self.port = proxy_port()
        self.up, self._ended = threading.Event(), threading.Event()
        self._deployment: Any = serve.deployment(
            TestedReplica,
            name=NAME,
            ray_actor_options={"num_cpus": 0.1},
            max_ongoing_requests=settings.max_connections,
            graceful_shutdown_timeout_s=1,
        ).bind(settings, Launcher(launch).address, supervisor.TICK_S)

    def run(self) -> None:
        serve.run(self._deployment, name=NAME)
        self.up.set()
        self._ended.wait()
        serve.delete(NAME)

    def interrupt(self) -> None:
        pytest.skip("Ray tells replicas to stop, not a signal")

    def stop(self) -> None:
        self._ended.set()


_port = 0


def proxy_port() -> int:
    """The port of Ray's proxy, which the first test starts."""
    global _port  # noqa: PLW0603 - there is one Ray in a process
    if not _port:
        os.environ.update(ENVIRONMENT)
        _port = free_port()
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
        atexit.register(ray.shutdown)
        serve.start(http_options={"host": "127.0.0.1", "port": _port})
    return _port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "started" in getattr(item, "fixturenames", ()))
