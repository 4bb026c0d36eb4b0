"""Starts a real server on the GPU and measures it as a client does.

It reports which executor the server runs, how long each exit takes, how late answers to deadlines are, what cameras
get, how many requests a second are answered in time under load, and how soon the server answers again after its worker
was killed.

Needs the packages that `python -m server` needs.
"""

import asyncio
import contextlib
import importlib.util
import io
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from models.gpu_day.load import offer
from models.gpu_day.served import MODEL, kill_worker, served, write_tiny
from models.gpu_day.stages import ROOT, MissingError

NEEDED = (
    "fastapi", "uvicorn", "uvloop", "httptools", "websockets", "pydantic", "prometheus_client", "multipart", "PIL",
    "safetensors", "simplejpeg", "zlib_ng", "pythonjsonlogger", "opentelemetry",
)  # fmt: skip
CAMERAS, FRAMES_PER_S, FILM_S = 16, 30, 8.0
RATES, LOAD_S = (60.0, 120.0, 240.0, 480.0, 960.0), 3.0
"""The load: requests a second, each for `LOAD_S` seconds."""
DEADLINES = 300
LATE_MS = 5.0
RESTART_S = 15.0
"""The most seconds from the death of a worker to the next answer; a new process needs seconds to start CUDA."""
FALL_BACK_S = 14.0
"""If no server is ready when only this time is left, it is replaced by one with the reference executor."""


@dataclass(frozen=True)
class Answer:
    """A reply over HTTP; `ms` from the request to its last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    ms: float


class Connection:
    """A minimal HTTP/1.1 client over one open connection. It shares the cores with the server, so it does little."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the server closed it first
            await self._writer.wait_closed()

    async def ask(self, path: str, body: bytes = b"", headers: str = "") -> Answer:
        reader, writer = self._reader, self._writer
        began_s = time.monotonic()
        method = "POST" if body else "GET"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        data = await reader.readexactly(int(found["content-length"]))
        return Answer(int(lines[0].split()[1]), found, data, 1000 * (time.monotonic() - began_s))

    async def json(self, path: str, body: bytes = b"") -> Any:
        return json.loads((await self.ask(path, body)).body)


def live(deadline: float, line: Callable[[str], None], device: str) -> bool:
    """Whether the server kept its deadlines and served again in time after the loss of its worker."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(f"no {', '.join(missing)}, so no server can be started")
    with tempfile.TemporaryDirectory() as folder:
        if device == "cpu":
            write_tiny(Path(folder) / MODEL)
        else:
            (Path(folder) / MODEL).symlink_to(ROOT / "models" / "zoo" / MODEL)
        for executor in ("auto", "reference"):
            with served(Path(folder), device, executor) as (process, port):
                line(f"a server with --executor {executor} listens")
                kill = partial(kill_worker, process.pid)
                visit = Visit(port, deadline, line, small=device == "cpu", ended=process.poll, kill=kill)
                patience_s = deadline - time.monotonic() - (FALL_BACK_S if executor == "auto" else 0)
                if asyncio.run(visit.ready(max(patience_s, 1.0))):
                    return asyncio.run(visit.all())
        line("no server was ready in time")
        return False


class Visit:
    """The tests of one server. `small`: few requests and a small image. `ended` returns the status that the server
    ended with, or None while it runs; `kill` kills its worker."""

    def __init__(
        self,
        port: int,
        deadline: float,
        line: Callable[[str], None],
        *,
        small: bool,
        ended: Callable[[], int | None],
        kill: Callable[[], None],
    ) -> None:
        self.port, self.deadline, self.line, self.small = port, deadline, line, small
        self.ended, self.kill = ended, kill
        self.photo = photo(96, 64) if small else photo(480, 360)

    async def ready(self, within_s: float) -> bool:
        began_s = time.monotonic()
        said = "nothing yet"
        while time.monotonic() - began_s < within_s and self.ended() is None:
            answer = await self._ask_once("/health/ready")
            said = answer.body.decode()
            if answer.status == 200:
                self.line(f"ready after {time.monotonic() - began_s:.1f} s: {said}")
                return True
            await asyncio.sleep(0.05)
        self.line(f"not ready after {time.monotonic() - began_s:.1f} s, it says {said}")
        return False

    async def _ask_once(self, path: str, body: bytes = b"") -> Answer:
        async with Connection(self.port) as connection:
            return await connection.ask(path, body)

    async def all(self) -> bool:
        async with Connection(self.port) as connection:
            times_ms = await self.exits(connection)
            kept = await self.deadlines(connection, times_ms)
        await self.cameras()
        rates, load_s = (RATES[:1], 0.5) if self.small else (RATES, LOAD_S)
        await offer(self.port, rates, load_s, self.deadline - RESTART_S, self.line)
        return await self.loss() and kept

    async def exits(self, connection: Connection) -> list[float]:
        """Median milliseconds from a request for each exit to its answer."""
        times_ms, computed_ms = [], []
        count = len((await connection.json(f"/v1/models/{MODEL}"))["exits"])
        for exit_index in range(1, count + 1):
            path = f"/v1/predict?model={MODEL}&deadline_ms=30000&max_exit={exit_index}"
            answers = [await connection.ask(path, self.photo) for _ in range(3 if self.small else 20)]
            times_ms.append(statistics.median(answer.ms for answer in answers))
            computed = [sum(json.loads(answer.body)["timing"]["compute_ms"]) for answer in answers]
            computed_ms.append(statistics.median(computed))
        self.line(f"ms to the answer of each exit {_round(times_ms)}, of which computing {_round(computed_ms)}")
        return times_ms

    async def deadlines(self, connection: Connection, times_ms: list[float]) -> bool:
        """Sends requests with growing deadlines, each several times. Returns whether the median exit never falls and
        99 % of the answers are at most `LATE_MS` late."""
        repeats = 5
        count = (20 if self.small else DEADLINES) // repeats
        exits: list[int] = []
        medians, late_ms = [], []
        for deadline_ms in np.linspace(max(times_ms[0] - 2, 1), times_ms[-1] + 15, count).round(2).tolist():
            path = f"/v1/predict?model={MODEL}&deadline_ms={deadline_ms}"
            found = [await connection.ask(path, self.photo, "Accept: image/png\r\n") for _ in range(repeats)]
            reached = [int(answer.headers.get("x-anytime-exit", 0)) for answer in found]
            late_ms += [answer.ms - deadline_ms for answer, index in zip(found, reached, strict=True) if index]
            exits += reached
            medians.append(statistics.median_low(reached))
        falls = sum(after < before for before, after in itertools.pairwise(medians))
        if not late_ms:
            self.line(f"{len(exits)} deadlines: none got an exit")
            return False
        high = float(np.percentile(late_ms, 99))
        self.line(
            f"{len(exits)} deadlines: exits {_counted(exits)}, the median exit falls {falls} times; "
            f"ms after the deadline: median {statistics.median(late_ms):.2f}, p99 {high:.2f}, worst {max(late_ms):.2f}"
        )
        return not falls and high <= LATE_MS

    async def cameras(self) -> None:
        """Streams from several cameras at once. Each sends its newest frame as soon as the one before has ended, so
        the frames in between are overtaken."""
        cameras, film_s = (2, 0.5) if self.small else (CAMERAS, FILM_S)
        film_s = min(film_s, self.deadline - time.monotonic() - RESTART_S)
        if film_s < 0.5:
            self.line("cameras: no time left")
            return
        films = await asyncio.gather(*(self._camera(film_s, number) for number in range(cameras)))
        answered = [exit_index for film in films for exit_index in film.exits]
        first_ms = [ms for film in films for ms in film.first_ms]
        overtaken = sum(film.overtaken for film in films)
        asked, served = len(answered) / film_s, sum(exit_index > 0 for exit_index in answered) / film_s
        self.line(
            f"{cameras} cameras at {FRAMES_PER_S} frames a second for {film_s:.1f} s: {asked:.0f} frames a second were "
            f"asked for, {served:.0f} got an exit, {overtaken} were overtaken; by last exit {_counted(answered)}; "
            f"ms from a frame to its first exit: {_high(first_ms)}"
        )

    async def _camera(self, film_s: float, number: int) -> "Film":
        from websockets.asyncio.client import connect  # noqa: PLC0415 - optional

        film = Film([], [])
        began_s = time.monotonic() + number / (CAMERAS * FRAMES_PER_S)
        async with connect(f"ws://127.0.0.1:{self.port}/v1/stream", max_size=None) as socket:
            frame = -1
            while True:
                now_s = time.monotonic()
                newest = int((now_s - began_s) * FRAMES_PER_S)
                if newest <= frame:
                    await asyncio.sleep(began_s + (frame + 1) / FRAMES_PER_S - now_s)
                    continue
                if now_s - began_s >= film_s:
                    return film
                film.overtaken += newest - frame - 1 if frame >= 0 else 0
                frame = newest
                taken_s = began_s + frame / FRAMES_PER_S
                name, cancelled, reached = f"{number}-{frame}", False, 0
                await socket.send(json.dumps({"type": "predict", "id": name, "model": MODEL, "deadline_ms": 100}))
                await socket.send(self.photo)
                async for text in socket:
                    if isinstance(text, bytes):
                        continue
                    told = json.loads(text)
                    if told["type"] == "exit":
                        if not reached:
                            film.first_ms.append(1000 * (time.monotonic() - taken_s))
                        reached = told["exit"]
                        if time.monotonic() > taken_s + 1 / FRAMES_PER_S and not cancelled:
                            cancelled = True
                            await socket.send(json.dumps({"type": "cancel", "id": name}))
                    elif told["type"] == "end" or (told["type"] == "error" and not told.get("open")):
                        break
                film.exits.append(reached)

    async def loss(self) -> bool:
        """Kills the worker while requests are open; all of them must be answered. Returns whether the next request
        succeeds within `RESTART_S`."""
        asked = [
            asyncio.create_task(self._ask_once(f"/v1/predict?model={MODEL}&deadline_ms=30000", self.photo))
            for _ in range(4)
        ]
        await asyncio.sleep(0)
        self.kill()
        killed_s = time.monotonic()
        answers = Counter([(await answer).status for answer in asked])
        while self.deadline - time.monotonic() > 1:
            answer = await self._ask_once(f"/v1/predict?model={MODEL}&deadline_ms=30000", self.photo)
            if answer.status == 200:
                back_s = time.monotonic() - killed_s
                self.line(f"worker killed: {dict(answers)}, the next answer came after {back_s:.2f} s")
                return back_s <= RESTART_S
            await asyncio.sleep(0.05)
        self.line(f"worker killed: {dict(answers)}, no service {time.monotonic() - killed_s:.1f} s later")
        return False


@dataclass
class Film:
    """What a camera received. `exits`: the last exit of each frame that was sent, 0 for none. `first_ms`: milliseconds
    from each frame to its first exit. `overtaken`: the number of frames that were not sent."""

    exits: list[int]
    first_ms: list[float]
    overtaken: int = 0


def photo(width: int, height: int) -> bytes:
    """A JPEG with regions and edges."""
    from PIL import Image  # noqa: PLC0415 - optional

    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _round(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


def _counted(exits: list[int]) -> dict[int, int]:
    return dict(sorted(Counter(exits).items()))


def _high(values: list[float]) -> str:
    if not values:
        return "none"
    median, high = np.percentile(values, (50, 99))
    return f"median {median:.1f}, p99 {high:.1f}"
