"""Real servers for tests: on a free port, in a thread, with a worker that the test itself plays, or with a real one."""

import asyncio
import io
import json
import os
import queue
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from mmap import mmap
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import tiny
from hosts import HOST, HOSTS, Host
from numpy.typing import NDArray
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from models.checkpoint import save_directory
from models.network.configs import ModelConfig
from server.decoding.__main__ import serve
from server.decoding.messages import DecoderPlan
from server.engine.messages import (
    Cancel,
    Chosen,
    Command,
    Ended,
    Event,
    Exited,
    JobSpec,
    LoadPlan,
    ModelFacts,
    MoveDeadline,
    Ready,
    Stop,
    TrafficCap,
)
from server.engine.shared_memory import attach
from server.engine.worker_process import ChildProcess, WorkerProcess
from server.requests.service import Service
from server.scheduling.costs import StageCost
from server.settings import Settings

PATIENCE_S = 60.0
"""The longest wait for what must happen; only a test that fails reaches it."""
CONFIGS = (tiny.SEGMENTATION, tiny.POSE)
MACS = (10.0, 20.0, 30.0, 40.0)


class ScriptedWorker:
    """Plays the worker: hears commands and says events, both when the test wants to."""

    pid = os.getpid()

    def __init__(self, plan: LoadPlan) -> None:
        self.connection, self._own = Pipe()
        self._memory = attach(os.dup(plan.arena_fd), plan.arena_bytes)
        self._names = list(plan.models)
        self.killed = self.lingers = False

    def kill(self) -> None:
        """What the server calls to end a worker."""
        self.killed = True

    def gone(self, wait_s: float = 0.0) -> bool:
        """What the server asks until a worker that it ended is gone. It keeps its memory while `lingers` is set."""
        return not self.lingers

    def die(self) -> None:
        self._own.close()

    def say(self, event: Event) -> None:
        self._own.send(event)

    def say_ready(self, calibrated: bool = False) -> None:
        """Every stage takes 0.1 s at the size of `tiny.SEGMENTATION`."""
        chosen = Chosen("scripted", "the only one", "int8", "int8 is faster")
        facts = {
            name: ModelFacts(MACS, (0.1, 0.2, 0.3, 0.4), calibrated, chosen, stage_costs(name)) for name in self._names
        }
        self.say(Ready("cpu", "scripted", facts))

    def hear(self) -> Command:
        assert self._own.poll(PATIENCE_S), "the server said nothing"
        command: Command = self._own.recv()
        return command

    def hear_job(self) -> JobSpec:
        command = self.hear()
        assert isinstance(command, JobSpec)
        return command

    def hear_cancel(self) -> Cancel:
        command = self.hear()
        assert isinstance(command, Cancel)
        return command

    def hear_move(self) -> MoveDeadline:
        command = self.hear()
        assert isinstance(command, MoveDeadline)
        return command

    def hear_cap(self) -> int | None:
        command = self.hear()
        assert isinstance(command, TrafficCap)
        return command.max_exit

    def hears_nothing(self) -> bool:
        return not self._own.poll()

    def image(self, spec: JobSpec) -> NDArray[np.uint8]:
        """The image as it lies in shared memory."""
        return spec.layout.image(self._memory[spec.offset :]).copy()

    def reach(self, spec: JobSpec, exit_index: int, *, changed: bool = True, final: bool = False) -> None:
        """Finish an exit: its map is `labels(exit_index)`."""
        block = self._memory[spec.offset :]
        if spec.layout.joints:
            spec.layout.keypoints(block, exit_index)[:] = exit_index + 0.1
        else:
            spec.layout.labels(block, exit_index)[:] = labels(exit_index, spec.layout.height, spec.layout.width)
        if spec.layout.extra:
            spec.layout.extra_map(block, exit_index)[:] = exit_index % 2
        macs = round(MACS[exit_index - 1])
        self.say(Exited(spec.key, exit_index, 0.5 / exit_index, macs, 0.1, 0.0, 0.1, changed, final))

    def end(self, spec: JobSpec, stop: Stop = Stop.COMPLETE, error: str | None = None, **times_s: float) -> None:
        self.say(Ended(spec.key, stop, error, **times_s))

    def finish(self, spec: JobSpec, last: int = 4, stop: Stop = Stop.COMPLETE) -> None:
        """Reach all exits up to `last`, and end the job."""
        for exit_index in range(1, last + 1):
            self.reach(spec, exit_index)
        self.end(spec, stop)


class ThreadDecoder:
    """Plays a decoding process on a thread of the test, which starts at once."""

    def __init__(self, plan: DecoderPlan) -> None:
        self.connection, theirs = socket.socketpair()
        self.memory = mmap(-1, plan.memory_bytes)
        threading.Thread(target=self._run, args=(theirs, plan), daemon=True).start()

    def _run(self, connection: socket.socket, plan: DecoderPlan) -> None:
        with connection, suppress(OSError):
            serve(connection, self.memory, plan, lambda _: nullcontext())

    def kill(self) -> None:
        """A thread cannot be killed; it ends when it has decoded its image."""

    def wait(self) -> int:
        return -signal.SIGKILL


class Live:
    """A server that runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.loop = host.loop
        self.service: Service = host.app.state.service
        self.port = host.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        self.socket_url = f"ws://127.0.0.1:{self.port}/v1/stream"

    def predict(self, body: bytes | None = None, **query: object) -> httpx.Response:
        headers = {name: str(query.pop(name)) for name in ("Accept",) if name in query}
        return self.http.post("/v1/predict", params=query, content=photo() if body is None else body, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of a metric that have these labels."""
        lines = self.http.get("/metrics").text.splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = (line for line in lines if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(label in line for label in wanted))

    def connect(self, **options: Any) -> ClientConnection:
        """A WebSocket; use it in a `with` block."""
        return connect(self.socket_url, max_size=None, **options)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        wait_for(condition)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the server has done something by itself."""
    tick = threading.Event()
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not happen"
        tick.wait(0.01)


async def until(condition: Callable[[], Any]) -> None:
    """Let the event loop run until something has happened on it."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


class Later:
    """A call that runs in a thread of its own."""

    def __init__(self, function: Callable[[], httpx.Response]) -> None:
        self._result: queue.Queue[httpx.Response | Exception] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], httpx.Response]) -> None:
        try:
            self._result.put(function())
        except Exception as error:
            self._result.put(error)

    def result(self) -> httpx.Response:
        found = self._result.get(timeout=PATIENCE_S)
        self._thread.join(PATIENCE_S)
        if isinstance(found, Exception):
            raise found
        return found


@contextmanager
def serving(
    settings: Settings, launch: Callable[[LoadPlan], WorkerProcess] = ChildProcess, hosted_by: str = HOST
) -> Iterator[Live]:
    """Run a server in a thread, which decodes images in threads. It may be told to drain meanwhile."""
    with patch("server.requests.codec.ChildDecoder", ThreadDecoder):
        host = HOSTS[hosted_by](settings, launch)
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    try:
        assert host.up.wait(PATIENCE_S), "the server did not start"
        live = Live(host)
        try:
            yield live
        finally:
            live.http.close()
    finally:
        host.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextmanager
def scripted(
    folder: Path, hosted_by: str = HOST, **fields: object
) -> Iterator[tuple[Live, Callable[[], ScriptedWorker]]]:
    """A server whose workers the test plays, and a function that returns each as it is started."""
    started: queue.Queue[ScriptedWorker] = queue.Queue()

    def launch(plan: LoadPlan) -> ScriptedWorker:
        worker = ScriptedWorker(plan)
        started.put(worker)
        return worker

    silent = patch("server.engine.supervisor.TICK_S", 3600.0)  # the test does not play the answers to pings
    with silent, serving(settings(folder, **fields), launch, hosted_by) as live:
        yield live, lambda: started.get(timeout=PATIENCE_S)


def settings(folder: Path, **fields: object) -> Settings:
    small = {"shared_memory_bytes": 2**24, "threads": 1, "log_level": "error", "default_deadline_ms": 20_000}
    return Settings.model_validate({"port": 0, "models": folder, **small, **fields})


def write_configs(folder: Path, configs: tuple[ModelConfig, ...] = CONFIGS) -> Path:
    """Model directories without weights, for scripted workers."""
    for config in configs:
        (folder / config.name).mkdir()
        (folder / config.name / "config.json").write_text(json.dumps(config.to_json()))
    return folder


def write_models(folder: Path, configs: tuple[ModelConfig, ...] = CONFIGS) -> Path:
    for config in configs:
        save_directory(folder / config.name, tiny.network(config))
    return folder


@lru_cache
def labels(exit_index: int, height: int, width: int) -> NDArray[np.uint8]:
    """The map that a scripted worker answers with: three classes, different at every exit."""
    positions = np.arange(height * width).reshape(height, width)
    return ((positions // (10 * exit_index)) % 3).astype(np.uint8)


def stage_costs(model: str) -> tuple[StageCost, ...]:
    """What a scripted worker says of stages; costs at other shapes follow the area."""
    return tuple(StageCost(model, exit_index, tiny.SEGMENTATION.size, 0.1, 1.0, 0.5) for exit_index in range(1, 5))


def photo(height: int = 60, width: int = 90, kind: str = "PNG", seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiny.image(height, width, seed)).save(file, kind)
    return file.getvalue()


def decoded(encoding: str, data: bytes, held: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The map that a client makes of a binary frame, given the map that it holds."""
    if encoding == "raw":
        return np.frombuffer(data, np.uint8).reshape(held.shape)
    if encoding == "delta":
        return held ^ np.frombuffer(zlib.decompress(data), np.uint8).reshape(held.shape)
    return np.asarray(Image.open(io.BytesIO(data)))
