"""The service: the parts of a server, and the path that requests of every protocol take through them."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from server.access.identity import Caller
from server.access.keys import KeyRing
from server.catalog import Catalog, ServedModel
from server.engine.engine import Engine
from server.engine.job import Job
from server.engine.messages import JobSpec, LoadPlan, Stop
from server.engine.place import Place
from server.engine.worker_process import ChildProcess, WorkerProcess
from server.metrics import Metrics
from server.requests.admission import (
    ClientLimit,
    check_fresh,
    check_options,
    check_person,
    image_age_s,
    lasting_exit,
)
from server.requests.body import check_body
from server.requests.budget import Asked, Forecast, Traffic
from server.requests.budget_file import read_policies
from server.requests.codec import Codec, DecodedImage, copy_pixels
from server.requests.present_budgets import PresentBudgets
from server.requests.record import CodecWork, RequestRecord
from server.requests.region import expected_size, find_region
from server.requests.registry import RequestRegistry
from server.requests.request_log import log_request
from server.requests.reserve import AnswerReserve
from server.requests.sizes import ExpectedSizes
from server.requests.sockets import OpenSockets
from server.requests.statistics import ModelStatistics
from server.requests.tracing import Tracer, TraceRelay, collector_tracer
from server.scheduling.expected import Expected
from server.settings import Settings

T = TypeVar("T")
Read = Callable[[], Awaitable[bytes | memoryview]]
"""Receives the whole image file of a request. Raises ServerError."""


class Service:
    """The models, budgets, registry, limits, codec and engine of one server.

    `unloadable` and `launch` are handed to the engine.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        unloadable: Callable[[str], None],
        launch: Callable[[LoadPlan], WorkerProcess] = ChildProcess,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.keys = None if settings.keys is None else KeyRing(settings.keys, time.monotonic())
        policies = read_policies(settings, {model.name: model.config.exits for model in catalog})
        if self.keys is not None:
            policies = replace(policies, of_request=(*policies.of_request, self.keys))
        self._budgets = PresentBudgets(policies, self._traffic)
        self.metrics = Metrics({model.name: model.config.exits for model in catalog})
        self.metrics.show_limits(settings)
        self.tracer: Tracer = collector_tracer() if settings.traces else TraceRelay()
        self.statistics = {model.name: ModelStatistics() for model in catalog}
        self.registry = RequestRegistry(
            self.metrics, settings.max_open, settings.history, self._ended, settings.max_open_per_address
        )
        self.limit = ClientLimit(settings.client_rate, settings.client_burst)
        self.codec = Codec(settings)
        self._reserve = AnswerReserve()
        self.engine = Engine(settings, catalog, self.metrics, unloadable, launch, deepest=self._budgets.deepest)
        self._sizes = ExpectedSizes()
        self.sockets = OpenSockets(settings.max_sockets, settings.max_sockets_per_address, self.limit)
        self.metrics.watch(self.metrics.websockets, lambda: len(self.sockets))

    def start(self) -> None:
        self.engine.start()
        self.codec.start()

    def close(self) -> None:
        self.engine.close()
        self.codec.close()
        self.tracer.close()

    def _ended(self, record: RequestRecord) -> None:
        """Count, trace and log a request that has ended."""
        if record.model in self.statistics:
            self.statistics[record.model].count(record)
        self.tracer.end(record)
        if self.settings.access_log:
            log_request(record)

    # --- the way of a request ---

    async def predict(self, record: RequestRecord, read: Read, reply: Callable[[RequestRecord, Job], T]) -> T:
        """Answer a request once: run its job to the end, and let `reply` encode the newest exit. Raises ServerError."""
        async with self.job(record, read) as job:
            record.stop = await job.ended()
            record.check_answer(job)
            return await self.encode(record, lambda: reply(record, job), job.answerable_s)

    @asynccontextmanager
    async def job(self, record: RequestRecord, read: Read) -> AsyncIterator[Job]:
        """The job of a request, which runs inside the `async with` block and whose maps are valid there.

        Leaving the block ends the job. Raises ServerError if the request is refused, or given up before its job starts.
        """
        model = self.catalog.get(record.options.model)
        self._check(record, model)
        with ExitStack() as until_ended:

            async def receive() -> bytes | memoryview:
                body = await self._received(read)
                self.registry.seat(record)
                record.place = until_ended.enter_context(self._admit(record, model))
                return body

            job = await self._start(record, model, receive)
            try:
                yield job
            finally:
                self.engine.release(job)
                if self.keys is not None and record.caller.key is not None:
                    self.keys.spend(record.caller.key, job.macs, time.monotonic())

    def check_caller(self, record: RequestRecord) -> None:
        """Raises TooManyRequestsError if the caller sends too many requests, and UnavailableError if the server takes
        no requests now. Protocols whose options come with the image call this before they read the image."""
        self.limit.check(record.caller.network)
        self.engine.check_open()
        record.caller_checked = True

    def _check(self, record: RequestRecord, model: ServedModel) -> None:
        """Check what can be checked before the image is read, and set the budget. Raises ServerError, also if the
        request would get no place now."""
        if not record.caller_checked:
            self.check_caller(record)
        if self.keys is not None and record.caller.key is not None:
            asked = record.options.priority if "priority" in record.options.model_fields_set else None
            priority = self.keys.admit(record.caller.key, asked, time.monotonic())
            record.options = record.options.model_copy(update={"priority": priority})
        options = record.options
        check_options(options, model, calibrated=self.engine.facts[model.name].calibrated)
        record.asked = Asked(
            model=model.name,
            exits=model.config.exits,
            client=record.client,
            deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000,
            timeout_s=record.timeout_s,
            max_exit=options.max_exit,
        )
        record.age_s = image_age_s(options, record.arrived_s)
        self._set_budget(record)
        check_fresh(record.age_s + record.caller.waited_s, record.budget_s + record.age_s)
        now_s = time.monotonic()
        height, width = self._sizes.expected(model.name, record.sharer, model.config.size, now_s)
        self._set_reserve(record, height * width)
        self.engine.check(self._expected(record, model, now_s), now_s)

    def _admit(self, record: RequestRecord, model: ServedModel) -> Place:
        """A place at a worker, once the image is there. Raises UnavailableError."""
        now_s = time.monotonic()
        return self.engine.admit(self._expected(record, model, now_s), now_s)

    def _expected(self, record: RequestRecord, model: ServedModel, now_s: float) -> Expected:
        """What a worker would have to compute for a request, as far as it is known now."""
        size = self._sizes.expected(model.name, record.sharer, model.config.size, now_s)
        pixels, shape = size[0] * size[1], model.input_shape(*expected_size(record.options.roi, *size))
        prepare_s, delays_s = self.codec.prepare_s(pixels), self.codec.delays_s(pixels)
        required, deadline_s = record.options.required, record.compute_deadline_s
        return Expected(model.name, shape, required, deadline_s, record.sharer, prepare_s, delays_s)

    async def _start(self, record: RequestRecord, model: ServedModel, read: Read) -> Job:
        """Receive and decode the image, and hand the job to the engine. `read` leaves the place in the record."""
        async with record.preparing(), self.codec.decoded(await read()) as image:
            assert record.place is not None
            record.decode_s = image.decode_s
            self._spent(record, "decode", time.monotonic() - image.decode_s)
            record.job = job = await self._submit(record, model, record.place, image)
        return job

    async def _received(self, read: Read) -> bytes | memoryview:
        """Receive and check the image file. Only the caller holds it, so that its memory is free once it is decoded."""
        body = await read()
        check_body(body, self.settings.max_body_bytes)
        return body

    async def _submit(self, record: RequestRecord, model: ServedModel, place: Place, image: DecodedImage) -> Job:
        options = record.options
        height, width = image.pixels.shape[:2]
        if options.box is not None:
            check_person(options.box, height, width)
        self._sizes.saw(model.name, record.sharer, (height, width), time.monotonic())
        record.asked = replace(record.asked, pixels=height * width)
        self._set_budget(record)
        pixels = image.pixels
        if options.roi is not None:
            record.region = find_region(options.roi, height, width)
            pixels = pixels[record.region.computed]
        layout = model.layout(*pixels.shape[:2], extra=options.map is not None)
        offset = self.engine.take(layout, record.caller.network)
        try:
            await copy_pixels(pixels, layout.image(self.engine.arena.view[offset:]))
            record.check_wanted()
            self._set_reserve(record, height * width)
            record.check_time(time.monotonic())
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
                    required=options.required,
                    min_exit=options.min_exit or 1,
                    quality=options.quality,
                    extra=options.map,
                    box=options.box,
                    client=record.sharer,
                    priority=options.priority,
                ),
                place,
            )
        except BaseException:
            self.engine.arena.give(offset, layout.total_bytes)
            raise

    async def encode(self, record: RequestRecord, function: Callable[[], T], answerable_s: float | None = None) -> T:
        """Call `function`, which encodes a map for a client, and learn how long that takes from `answerable_s` on, when
        encoding could have begun; None: from now on."""
        began_s, pixels = time.monotonic(), record.asked.pixels or 0
        encoded = await self.codec.encode(record.encoding, pixels, function, extra=record.options.map is not None)
        self._spent(record, "encode", began_s)
        answer_s = record.codec_work[-1].ended_s - (began_s if answerable_s is None else answerable_s)
        self._reserve.learn(answer_s, record.encoding, pixels, alone=self.registry.is_alone(record))
        return encoded

    def _set_reserve(self, record: RequestRecord, pixels: int) -> None:
        """Set the seconds that encoding and sending a map of `pixels` are expected to take. They give the reserve."""
        record.answer_s = self._reserve.seconds(record.encoding, pixels, alone=self.registry.is_alone(record))

    def _spent(self, record: RequestRecord, name: str, began_s: float) -> None:
        """Note a part of a request's time that ends now: `decode` or `encode`."""
        work = CodecWork(name, began_s, time.monotonic())
        record.codec_work.append(work)
        histogram = self.metrics.decode if name == "decode" else self.metrics.encode
        histogram.labels(record.model).observe(work.ended_s - began_s)

    # --- budgets ---

    def _set_budget(self, record: RequestRecord) -> None:
        """Set what the request may spend, by what it asks for and by the traffic now. Raises InvalidError if it
        requires more."""
        budget = self._budgets.budget(record.asked, more=record.place is None)
        record.move_deadline(record.arrived_s - record.age_s + budget.seconds)
        record.max_exit = lasting_exit(budget, record.options)

    def _traffic(self) -> Traffic:
        return Traffic(self.engine.open_requests, self.engine.busy(time.monotonic()), time.time())

    def forecast(
        self, name: str | None, caller: Caller, deadline_ms: float | None, size: tuple[int, int] | None
    ) -> Forecast:
        """What a request of `caller` for the model `name` would get now. `size`: the height and width of its image;
        None stands for the last size that this client sent. Raises NotFoundError."""
        model = self.catalog.get(name)
        size = size or self._sizes.last(model.name, caller.network, model.config.size)
        pixels, exits, now_s = size[0] * size[1], model.config.exits, time.monotonic()
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        asked = Asked(model.name, exits, caller.name, deadline_s, pixels=pixels)
        budget = self._budgets.budget(asked, more=True)
        answer_s = self._reserve.seconds("application/json", pixels, alone=not self.engine.open_requests)
        prepare_s = self.codec.prepare_s(pixels)
        compute_deadline_s = now_s + budget.seconds - AnswerReserve.kept_s(answer_s, budget.seconds)
        shape, predicted_s = model.input_shape(*size), {}
        for exit_index in range(1, exits + 1):
            expected = Expected(model.name, shape, exit_index, compute_deadline_s, prepare_s=prepare_s)
            if (ready_s := self.engine.ready_s(expected, now_s)) is not None:
                predicted_s[exit_index] = ready_s + answer_s
        return Forecast(budget, predicted_s)

    # --- cancels and new deadlines ---

    def cancel(self, record: RequestRecord, stop: Stop = Stop.CANCELLED) -> None:
        """End a request, whether it has a job yet or not. `stop`: why, cancelled or disconnected."""
        record.give_up(stop)
        if record.job is not None:
            self.engine.finish(record.job, stop)

    def cancel_by_id(self, request_id: str, caller: Caller) -> RequestRecord:
        """Cancel every open request of `caller` that has this id. Returns the record of the caller's newest request
        with this id, which may have ended before. Raises NotFoundError if the caller has none."""
        newest = self.registry.find(request_id, caller)
        for record in self.registry.open_records(request_id, caller):
            self.cancel(record)
        return newest

    def move_deadline(self, record: RequestRecord, left_s: float) -> None:
        """Grant a request `left_s` seconds from now, be that more or less; other limits of its budget still hold."""
        now_s = time.monotonic()
        record.asked = replace(record.asked, deadline_s=now_s + left_s - record.arrived_s + record.age_s)
        self._set_budget(record)
        if record.job is not None:
            self.engine.move_deadline(record.job, record.compute_deadline_s)
        elif record.place is not None:
            record.place.move_deadline(record.compute_deadline_s, now_s)
