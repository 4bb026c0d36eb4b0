"""The parts of a server, and the path that the requests of all protocols take through them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from fastapi import WebSocket
from numpy.typing import NDArray

from server.catalog import Catalog, ServedModel
from server.engine.engine import Engine
from server.engine.job import Job
from server.engine.messages import JobSpec, LoadPlan, Stop
from server.engine.place import Place
from server.engine.worker_process import ChildProcess, WorkerProcess
from server.metrics import Metrics
from server.protocols.options import RequestOptions
from server.requests.admission import ClientLimit, check_body, check_options, check_person, decode
from server.requests.budget import Budget
from server.requests.registry import RequestRecord, RequestRegistry
from server.scheduling.backlog import Expected
from server.scheduling.costs import Shape
from server.scheduling.quantile import Quantile
from server.settings import Settings

T = TypeVar("T")
Read = Callable[[], Awaitable[bytes]]
"""Receives the whole image file of a request. Raises ServerError."""


@dataclass(frozen=True)
class DecodedImage:
    """An image, and how long it took.

    `pixels`: uint8 (H, W, 3) RGB. `decode_s`: seconds from the whole body to the pixels. `usual_end_s`: when the image
    would have been decoded if it had taken as long as images of its size usually do.
    """

    pixels: NDArray[np.uint8]
    decode_s: float
    usual_end_s: float


class Service:
    """The models, registry, limits and engine of one server, and the threads that decode and encode.

    `unloadable` and `launch` are handed to the engine.
    """

    SEND_S = 0.001
    """Reserved before each deadline, besides encoding: to hear of an exit and to hand over the answer."""
    ENCODE_S_PER_PX = 10e-9
    """Reserved for encoding until it has been measured."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        unloadable: Callable[[str], None],
        launch: Callable[[LoadPlan], WorkerProcess] = ChildProcess,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = Metrics({model.name: model.config.exits for model in catalog})
        self.registry = RequestRegistry(self.metrics, settings.max_open, settings.history)
        self.limit = ClientLimit(settings.client_rate, settings.client_burst)
        self.engine = Engine(settings, catalog, self.metrics, unloadable, launch)
        self.sockets: set[WebSocket] = set()
        """The open WebSockets."""
        # Two pools, so that no answer that is due waits behind a large image.
        self._decoders = ThreadPoolExecutor(settings.codec_threads, "decode")
        self._encoders = ThreadPoolExecutor(settings.codec_threads, "encode")
        self._shapes: dict[str, Shape] = {}
        """The last image's shape, by model: what the next request is expected to bring."""
        self._decode_s: dict[int, Quantile] = {}
        self._encode_s: dict[tuple[str, int], Quantile] = {}
        self.metrics.watch(self.metrics.websockets, lambda: len(self.sockets))

    def close(self) -> None:
        self.engine.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    # --- the way of a request ---

    async def predict(self, record: RequestRecord, read: Read, reply: Callable[[RequestRecord, Job], T]) -> T:
        """Answer a request once: run its job to the end, and let `reply` encode the newest exit on an encoding thread.
        Raises ServerError."""
        async with self.job(record, read) as job:
            record.stop = await job.ended()
            record.check_answer(job)
            return await self.encode(record, job, lambda: reply(record, job))

    @asynccontextmanager
    async def job(self, record: RequestRecord, read: Read) -> AsyncIterator[Job]:
        """The job of a request, which runs inside the `async with` block and whose maps are valid there.

        Leaving the block ends the job. Raises ServerError if the request is refused, or given up before its job starts.
        """
        model = self.catalog.get(record.options.model)
        with self._admit(record, model) as record.place:
            job = await self._start(record, model, record.place, read)
            try:
                yield job
            finally:
                self.engine.release(job)

    def _admit(self, record: RequestRecord, model: ServedModel) -> Place:
        """Check what can be checked before the image is read, set the deadline, and take a place at a worker. Raises
        ServerError."""
        options, settings = record.options, self.settings
        self.limit.check(record.client)
        self.engine.check_open()
        check_options(options, model, calibrated=self.engine.facts[model.name].calibrated)
        deadline_ms = settings.default_deadline_ms if options.deadline_ms is None else options.deadline_ms
        budget = (
            Budget(record.arrived_s, float("inf"), model.config.exits)
            .capped(settings.max_deadline_ms / 1000)
            .capped(deadline_ms / 1000, options.max_exit)
            .capped(record.timeout_s)
        )
        record.deadline_s, record.max_exit = budget.deadline_s, budget.max_exit
        shape = self._shapes.get(model.name) or model.input_shape(*model.config.size)
        expected = Expected(model.name, shape, _required(options), record.deadline_s, client=record.client)
        return self.engine.admit(expected, time.monotonic())

    async def _start(self, record: RequestRecord, model: ServedModel, place: Place, read: Read) -> Job:
        """Receive and decode the image, and hand the job to the engine."""
        async with record.preparing():
            image = await self._decode(await read())
            record.decode_s = image.decode_s
            record.job = job = await self._submit(record, model, place, image)
        return job

    async def _decode(self, body: bytes) -> DecodedImage:
        """See `admission.decode`. A request that is given up while it waits for a decoder thread is not decoded."""
        check_body(body, self.settings.max_body_bytes)
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        held, max_pixels = [body], self.settings.max_pixels
        del body
        try:
            pixels, started_s = await loop.run_in_executor(
                self._decoders, lambda: _timed(lambda: decode(held.pop(), max_pixels))
            )
        except asyncio.CancelledError:
            # The call stays in the decoders' queue. Neither it nor the frames of this error may keep the body alive.
            held.clear()
            raise asyncio.CancelledError from None
        now_s = time.monotonic()
        usual = self._decode_s.setdefault(pixels.size.bit_length(), Quantile(0.9))
        usual.add(now_s - started_s)
        return DecodedImage(pixels, now_s - began_s, began_s + usual.value)

    async def _submit(self, record: RequestRecord, model: ServedModel, place: Place, image: DecodedImage) -> Job:
        options = record.options
        height, width = image.pixels.shape[:2]
        if options.box is not None:
            check_person(options.box, height, width)
        self._shapes[model.name] = model.input_shape(height, width)
        layout = model.layout(height, width, extra=options.map is not None)
        offset = self.engine.take(layout)
        try:
            await _copy(image.pixels, layout.image(self.engine.arena.view[offset:]))
            record.check_wanted()
            record.reserve_s = self._reserve_s(record.encoding, layout.pixels)
            return self.engine.submit(
                JobSpec(
                    key=place.key,
                    model=model.name,
                    offset=offset,
                    layout=layout,
                    arrived_s=record.arrived_s,
                    compute_deadline_s=record.compute_deadline_s,
                    usual_start_s=image.usual_end_s,
                    max_exit=record.max_exit,
                    required=_required(options),
                    min_exit=options.min_exit or 1,
                    quality=options.quality,
                    extra=options.map,
                    box=options.box,
                ),
                place,
            )
        except BaseException:
            self.engine.arena.give(offset, layout.total_bytes)
            raise

    async def encode(self, record: RequestRecord, job: Job, function: Callable[[], T]) -> T:
        """Call `function` on an encoding thread, and learn how long the encoding of such maps takes."""
        result, started_s = await asyncio.get_running_loop().run_in_executor(self._encoders, lambda: _timed(function))
        key = record.encoding, job.spec.layout.pixels.bit_length()
        self._encode_s.setdefault(key, Quantile(0.95)).add(time.monotonic() - started_s)
        return result

    def _reserve_s(self, encoding: str, pixels: int) -> float:
        """The part of the time before a deadline that encoding and sending a map of `pixels` need."""
        measured = self._encode_s.get((encoding, pixels.bit_length()))
        return self.SEND_S + (self.ENCODE_S_PER_PX * pixels if measured is None else measured.value)

    # --- cancels and new deadlines ---

    def cancel(self, record: RequestRecord, stop: Stop = Stop.CANCELLED) -> None:
        """End a request, whether it has a job yet or not. `stop`: why, cancelled or disconnected."""
        record.give_up(stop)
        if record.job is not None:
            self.engine.finish(record.job, stop)

    def cancel_by_id(self, request_id: str) -> RequestRecord:
        """Cancel the open requests with that id. Returns the newest request of that id, open or ended. Raises
        NotFoundError if there is none."""
        newest = self.registry.find(request_id)
        for record in self.registry.open_records(request_id):
            self.cancel(record)
        return newest

    def move_deadline(self, record: RequestRecord, left_s: float) -> None:
        """Set the deadline to `left_s` seconds from now, sooner or later, but not beyond the longest deadline."""
        latest_s = record.arrived_s + self.settings.max_deadline_ms / 1000
        record.move_deadline(min(latest_s, time.monotonic() + left_s))
        if record.job is not None:
            self.engine.move_deadline(record.job, record.compute_deadline_s)
        elif record.place is not None:
            record.place.move_deadline(record.compute_deadline_s, time.monotonic())


def _required(options: RequestOptions) -> int:
    """The first exit that is worth an answer."""
    return 1 if options.best_effort else options.min_exit or 1


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result, and when the call began. Time spent waiting for a thread is left out: it tells of the burst, not of
    the image."""
    started_s = time.monotonic()
    return function(), started_s


async def _copy(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Copy an image, and yield to the event loop after each megabyte."""
    rows = max(1, 2**20 // (3 * image.shape[1]))
    for top in range(0, len(image), rows):
        if top:
            await asyncio.sleep(0)
        np.copyto(target[top : top + rows], image[top : top + rows])
