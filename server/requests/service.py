"""One server's parts, and the way that every request takes through them, whichever protocol it came by."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.imaging.geometry import Box, check_box
from server.catalog import Catalog, ServedModel
from server.engine.engine import Engine
from server.engine.messages import Plan, Stop
from server.engine.shared_memory import Arena
from server.engine.worker_process import Link, ProcessLink
from server.errors import DisconnectedError, InvalidError, NoExitError, RequestCancelledError
from server.metrics import Metrics
from server.protocols.options import Ask
from server.requests.admission import ClientLimit, check_body, decode
from server.requests.budget import Budget, Quantile
from server.requests.job import Job, Order
from server.requests.registry import Entry, Ledger
from server.settings import Settings

T = TypeVar("T")


class Closable(Protocol):
    """An open WebSocket, which a server that drains closes."""

    async def close(self, code: int) -> None: ...


@dataclass(frozen=True)
class Accepted:
    """What is known of a request before its image has been read."""

    model: ServedModel
    budget: Budget


@dataclass(frozen=True)
class Picture:
    """A decoded image: uint8 (H, W, 3) RGB. `decode_s`: what that took; `usual_s`: when it would usually be done."""

    pixels: NDArray[np.uint8]
    decode_s: float
    usual_s: float


class Service:
    """What requests need: models, engine, ledger, limits, and threads that decode and encode."""

    SEND_S = 0.001
    """Kept back of each budget, beyond encoding, to hear of an exit and to hand over the answer."""
    ENCODE_S_PER_PX = 10e-9
    """Reckoned for encoding until it has been measured."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        unloadable: Callable[[str], None],
        launch: Callable[[Plan], Link] = ProcessLink,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = Metrics({model.name: model.config.exits for model in catalog})
        self.ledger = Ledger(self.metrics, settings.max_open, settings.history)
        self.limit = ClientLimit(settings.client_rate, settings.client_burst)
        self.arena = Arena(settings.shared_memory_bytes)
        self.engine = Engine(lambda: launch(self._plan()), self.arena, self.metrics, unloadable)
        # Apart, so that no answer that is due waits behind somebody's large image.
        self._decoders = ThreadPoolExecutor(settings.codec_threads, "decode")
        self._encoders = ThreadPoolExecutor(settings.codec_threads, "encode")
        self.streams: set[Closable] = set()
        self._encode_s: dict[tuple[str, int], Quantile] = {}
        self._decode_s: dict[int, Quantile] = {}
        self.metrics.worker_up.labels(settings.device).set(0)
        self.metrics.watch(self.metrics.websockets, lambda: len(self.streams))

    def close(self) -> None:
        self.engine.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self.arena.close()

    def _plan(self) -> Plan:
        settings = self.settings
        return Plan(
            models={model.name: str(model.directory.resolve()) for model in self.catalog},
            device=settings.device,
            executor=settings.executor,
            threads=settings.threads,
            known={name: facts.seconds for name, facts in self.engine.known.items()},
            decided={name: (facts.executor, facts.reason) for name, facts in self.engine.known.items()},
            traffic_cap=settings.traffic_levels,
            arena_fd=self.arena.fd,
            arena_bytes=self.arena.size_bytes,
            log_level=settings.log_level.upper(),
        )

    def accept(self, ask: Ask, entry: Entry, client: str, timeout_s: float | None = None) -> Accepted:
        """What is known before the image has been read. Fills in the entry's deadline.

        Raises ServerError where the request cannot be served.
        """
        model = self.catalog.get(ask.model)
        self.limit.check(client)
        self.engine.check_open()
        exits = model.config.exits
        for name, value in (("min_exit", ask.min_exit), ("max_exit", ask.max_exit)):
            if value is not None and value > exits:
                raise InvalidError(f"{name} is {value}; {model.name} has exits 1 to {exits}", "bad_parameter")
        ready = self.engine.ready
        if ask.quality is not None and ready is not None and not ready.models[model.name].calibrated:
            raise InvalidError(
                f"quality is {ask.quality:g}, but {model.name} is not calibrated for it; leave it out or use max_exit "
                "(whoever runs the server can calibrate the model: python -m models calibrate)",
                "not_calibrated",
            )
        if ask.box is not None and model.config.task != "pose":
            raise InvalidError(f"box is for pose; {model.name} does segmentation: leave it out", "bad_box")
        settings = self.settings
        deadline_ms = settings.default_deadline_ms if ask.deadline_ms is None else ask.deadline_ms
        budget = (
            Budget(entry.arrived_s, float("inf"), exits)
            .capped(settings.max_deadline_ms / 1000)
            .capped(deadline_ms / 1000, ask.max_exit)
            .capped(timeout_s)
        )
        entry.deadline_s = budget.deadline_s
        return Accepted(model, budget)

    async def begin(self, ask: Ask, known: Accepted, body: bytes, entry: Entry, encoding: str) -> Job:
        """Decode the image and start the request's job. Raises ServerError."""
        async with entry.preparing():
            picture = await self._decode(body)
            return await self._submit(ask, known, picture, entry, encoding)

    async def _decode(self, body: bytes) -> Picture:
        """See `admission.decode`. What is waited for no more before its turn has come is not decoded."""
        check_body(body, self.settings.max_body_bytes)
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        held, max_pixels = [body], self.settings.max_pixels
        del body
        try:
            pixels, turn_s = await loop.run_in_executor(
                self._decoders, lambda: _in_turn(lambda: decode(held.pop(), max_pixels))
            )
        except asyncio.CancelledError:
            # What stays in the decoders' queue until its turn must not hold the body, neither itself nor by the frames
            # that this error has passed.
            held.clear()
            raise asyncio.CancelledError from None
        usual = self._decode_s.setdefault(pixels.size.bit_length(), Quantile(0.9))
        now_s = time.monotonic()
        usual.add(now_s - turn_s)
        return Picture(pixels, now_s - began_s, began_s + usual.value)

    async def _submit(self, ask: Ask, known: Accepted, picture: Picture, entry: Entry, encoding: str) -> Job:
        height, width = picture.pixels.shape[:2]
        if ask.box is not None:
            _check_box(ask.box, height, width)
        layout = known.model.layout(height, width, extra=ask.extra is not None)
        offset = self.engine.take(layout)
        try:
            await _copy(picture.pixels, layout.image(self.arena.view[offset:]))
            entry.check()
            assert entry.deadline_s is not None  # it may have moved since
            order = Order(
                model=known.model,
                layout=layout,
                budget=replace(known.budget, deadline_s=entry.deadline_s),
                decode_s=picture.decode_s,
                usual_s=picture.usual_s,
                required=1 if ask.best_effort else ask.min_exit or 1,
                min_exit=ask.min_exit or 1,
                reserve_s=self._reserve_s(encoding, height * width),
                quality=ask.quality,
                extra=ask.extra,
                box=ask.box,
            )
            entry.job = job = self.engine.submit(order, offset)
        except BaseException:
            self.arena.give(offset, layout.total_bytes)
            raise
        return job

    async def encode(self, encoding: str, pixels: int, function: Callable[[], T]) -> T:
        """Run `function` on an encoding thread, and remember how long that takes for so many pixels."""
        result, turn_s = await asyncio.get_running_loop().run_in_executor(self._encoders, lambda: _in_turn(function))
        key, seconds = (encoding, pixels.bit_length()), time.monotonic() - turn_s
        self._encode_s.setdefault(key, Quantile(0.95)).add(seconds)
        return result

    def _reserve_s(self, encoding: str, pixels: int) -> float:
        known = self._encode_s.get((encoding, pixels.bit_length()))
        encode_s = self.ENCODE_S_PER_PX * pixels if known is None else known.value
        return self.SEND_S + encode_s


def _in_turn(function: Callable[[], T]) -> tuple[T, float]:
    """Its result, and when its turn on a thread had come: what requests of a burst wait for theirs says nothing of the
    next one."""
    turn_s = time.monotonic()
    return function(), turn_s


async def _copy(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Copy an image, and let others have the event loop after each megabyte."""
    rows = max(1, 2**20 // (3 * image.shape[1]))
    for top in range(0, len(image), rows):
        if top:
            await asyncio.sleep(0)
        np.copyto(target[top : top + rows], image[top : top + rows])


def check_answer(job: Job) -> None:
    """Raises the error of a job that ended without an answer."""
    budget_ms = 1000 * (job.deadline_s - job.order.budget.arrived_s)
    if job.stop is Stop.DISCONNECTED:
        raise DisconnectedError("the client hung up", "disconnected")
    if job.stop is Stop.CANCELLED:
        raise RequestCancelledError(f"the request was cancelled by its id, at exit {job.latest}", "cancelled")
    if job.stop is Stop.NO_EXIT or not job.exits:
        raise NoExitError(f"no exit was reached within {budget_ms:.1f} ms; give a later deadline_ms", "no_exit")
    if job.latest < job.order.required:
        raise NoExitError(
            f"exit {job.latest} was reached within {budget_ms:.1f} ms, and min_exit is {job.order.required}; give a "
            "later deadline_ms, or best_effort=true to get what there is",
            "min_exit_not_reached",
        )


def _check_box(box: Box, height: int, width: int) -> None:
    """Raises InvalidError on a box that `geometry.check_box` refuses."""
    try:
        check_box(box, height, width)
    except ValueError as error:
        raise InvalidError(str(error), "bad_box") from error
