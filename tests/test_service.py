"""Cancels, new deadlines, and the reserve before a deadline. test_http.py and test_stream.py test whole requests."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import live
import numpy as np
import pytest
import tiny

from server.access.identity import SOMEBODY, Caller
from server.catalog import read_catalog
from server.engine.messages import JobSpec, Stop
from server.engine.shared_memory import Layout
from server.errors import NoExitError, NotFoundError
from server.protocols.options import RequestOptions
from server.requests.budget import Asked
from server.requests.codec import DecodedImage
from server.requests.record import RequestRecord
from server.requests.reserve import AnswerReserve
from server.requests.service import Service
from server.scheduling.expected import Expected

CLOCK = SimpleNamespace(monotonic=lambda: 12.0, time=lambda: 0.0)
ASKED = Asked("model", exits=4)
LONG = RequestOptions(deadline_ms=1000)


class FakeEngine:
    """Records the calls that it gets."""

    open_requests = 0

    def __init__(self) -> None:
        self.finished: list[tuple[Any, Stop]] = []
        self.moved: list[tuple[Any, float]] = []

    def busy(self, now_s: float) -> float:
        return 0.0

    def finish(self, job: Any, stop: Stop) -> None:
        self.finished.append((job, stop))

    def move_deadline(self, job: Any, compute_deadline_s: float) -> None:
        self.moved.append((job, compute_deadline_s))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    settings = live.settings(live.write_configs(tmp_path), max_deadline_ms=5000)
    found = Service(settings, read_catalog(settings.models), print)
    found.engine.close()
    found.engine = FakeEngine()  # type: ignore[assignment]
    return found


def test_cancelling_reaches_every_open_request_of_that_id(service: Service) -> None:
    job: Any = SimpleNamespace(latest=2, stop=None)
    with service.registry.open("http", 0.0, "a") as first, service.registry.open("http", 0.0, "a") as second:
        first.job = job
        assert service.cancel_by_id("a", SOMEBODY) is second
        assert first.given_up is second.given_up is Stop.CANCELLED
    assert service.engine.finished == [(job, Stop.CANCELLED)]  # type: ignore[attr-defined]
    assert service.cancel_by_id("a", SOMEBODY).stop is not None
    with pytest.raises(NotFoundError):
        service.cancel_by_id("b", SOMEBODY)


def test_a_job_hears_of_a_new_deadline_less_what_is_reserved(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.service.time", CLOCK)
    with service.registry.open("http", 10.0) as record:
        record.asked = ASKED
        record.job = job = SimpleNamespace(latest=0, stop=None)  # type: ignore[assignment]
        record.answer_s = 0.25
        service.move_deadline(record, 1.0)
        service.move_deadline(record, 1e6)
    assert record.deadline_s == 15.0  # at most 5 s after the arrival
    assert service.engine.moved == [(job, 12.75), (job, 14.75)]  # type: ignore[attr-defined]


class Clock:
    """The time of the service and of the test, which moves it."""

    now_s = 12.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 0.0


class AtOnceEngine(FakeEngine):
    """Runs every job to its end at once. `specs`: those that were submitted. `checked`: what was known by the heads."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.facts = defaultdict(lambda: SimpleNamespace(calibrated=False))
        self.specs: list[JobSpec] = []
        self.checked: list[Expected] = []
        self.arena: Any = SimpleNamespace(view=memoryview(bytearray(1 << 20)), give=lambda *_: None)

    def check_open(self) -> None:
        pass

    def check(self, expected: Expected, now_s: float) -> None:
        self.checked.append(expected)

    def admit(self, expected: Expected, now_s: float) -> Any:
        return nullcontext(SimpleNamespace(key=1))

    def take(self, layout: Layout, client: str) -> int:
        return 0

    def submit(self, spec: JobSpec, place: Any) -> Any:
        self.specs.append(spec)

        async def ended() -> Stop:
            return Stop.COMPLETE

        return SimpleNamespace(
            spec=spec, ended=ended, stop=Stop.COMPLETE, latest=4, macs=0, answerable_s=self._clock.now_s
        )

    def release(self, job: Any) -> None:
        pass


class Answering:
    """A service whose images are decoded and whose jobs end at once; encoding takes as long as the test wants."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.service = service
        self.threads: list[threading.Thread] = []
        """Which thread encoded each answer."""
        self.decode_s = 0.0
        self.engine = AtOnceEngine(self.clock)
        service.engine = self.engine  # type: ignore[assignment]
        for name in ("service", "record"):
            monkeypatch.setattr(f"server.requests.{name}.time", self.clock)
        monkeypatch.setattr(service.codec, "decoded", self._decoded)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Another request is seated in the `with` block."""
        with self.service.registry.open("http", self.clock.now_s) as record:
            self.service.registry.seat(record)
            yield

    @asynccontextmanager
    async def _decoded(self, body: bytes) -> AsyncIterator[DecodedImage]:
        self.clock.now_s += self.decode_s
        yield DecodedImage(np.zeros((64, 96, 3), np.uint8), self.decode_s, self.clock.now_s)

    async def answer(self, encode_s: float, options: RequestOptions = LONG, *, company: bool = False) -> float:
        """Serve a request whose encoding takes that long. Returns the reserve that it had, in seconds. `company`:
        another request comes and ends meanwhile."""

        async def read() -> bytes:
            return b"an image"

        def reply(*_: Any) -> None:
            if company:
                with self.beside():
                    pass
            self.threads.append(threading.current_thread())
            self.clock.now_s += encode_s

        with self.service.registry.open("http", self.clock.now_s) as record:
            record.encoding = "image/png"
            record.options = options
            await self.service.predict(record, read, reply)
            return record.reserve_s


def test_a_request_is_attempted_although_an_answer_before_took_longer_than_its_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one slow answer, the reserve is cut to half of the budget. Fast answers then shorten it further."""
    answering = Answering(service, monkeypatch)

    async def scenario() -> list[float]:
        await answering.answer(0.06)
        return [await answering.answer(0.002, RequestOptions(deadline_ms=50)) for _ in range(11)]

    reserves_s = asyncio.run(scenario())
    assert reserves_s[0] == pytest.approx(0.025)
    assert reserves_s[-1] == pytest.approx(AnswerReserve.SEND_S + 0.002)
    first = answering.engine.specs[1]
    assert first.compute_deadline_s - first.arrived_s == pytest.approx(0.025)


def test_the_reserve_is_learnt_from_the_time_when_an_answer_could_have_been_encoded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends 4 ms before the front end notices."""
    answering = Answering(service, monkeypatch)

    def notice_late(record: RequestRecord, job: Any) -> None:
        answering.clock.now_s += 0.004

    async def scenario() -> float:
        with monkeypatch.context() as late:
            late.setattr(RequestRecord, "check_answer", notice_late)
            await answering.answer(0.002)
        return await answering.answer(0.002)

    assert asyncio.run(scenario()) == pytest.approx(AnswerReserve.SEND_S + 0.006)


def test_a_further_map_is_encoded_on_a_thread(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(service, monkeypatch)

    async def scenario() -> None:
        await answering.answer(0.002)
        await answering.answer(0.002, RequestOptions(map="confidence"))

    asyncio.run(scenario())
    assert [thread is threading.current_thread() for thread in answering.threads] == [True, False]


def test_the_last_answer_of_a_crowd_is_learnt_from_as_one_of_the_crowd(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = Answering(service, monkeypatch)

    async def scenario() -> tuple[float, float]:
        await answering.answer(0.002)
        await answering.answer(0.02, company=True)
        with answering.beside():
            beside_s = await answering.answer(0.002)
        return await answering.answer(0.002), beside_s

    alone_s, beside_s = asyncio.run(scenario())
    assert alone_s == pytest.approx(AnswerReserve.SEND_S + 0.002)
    assert beside_s == pytest.approx(AnswerReserve.SEND_S + 0.02)


def test_a_deadline_is_moved_before_there_is_a_job(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.service.time", CLOCK)
    with service.registry.open("http", 10.0) as record:
        record.asked = ASKED
        service.move_deadline(record, 1.0)
    assert record.deadline_s == 13.0 and service.engine.moved == []  # type: ignore[attr-defined]


def test_a_new_deadline_counts_from_now_also_for_an_old_image(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image was 2 s old on arrival. Its request waits for its place, which hears of the deadline, too."""
    monkeypatch.setattr("server.requests.service.time", CLOCK)
    moved: list[tuple[float, float]] = []
    with service.registry.open("http", 10.0) as record:
        record.asked, record.age_s, record.answer_s = ASKED, 2.0, 0.25
        record.place = SimpleNamespace(move_deadline=lambda *times_s: moved.append(times_s))  # type: ignore[assignment]
        service.move_deadline(record, 0.5)
    assert record.deadline_s == 12.5 and moved == [(12.25, 12.0)]


@pytest.mark.parametrize("access_log", [True, False])
def test_requests_are_logged_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access_log: bool
) -> None:
    logged: list[RequestRecord] = []
    monkeypatch.setattr("server.requests.service.log_request", logged.append)
    settings = live.settings(live.write_configs(tmp_path), access_log=access_log)
    service = Service(settings, read_catalog(settings.models), print)
    service.engine.close()
    with service.registry.open("http", 0.0) as record:
        pass
    assert logged == [record] * access_log


def test_a_request_is_checked_with_what_is_known_by_its_head(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(service, monkeypatch)
    monkeypatch.setattr(service.codec, "prepare_s", lambda pixels: 0.5)
    monkeypatch.setattr(service.codec, "delays_s", lambda pixels: 0.25)

    async def scenario() -> None:
        for _ in range(2):
            await answering.answer(0.02)

    asyncio.run(scenario())
    _, expected = answering.engine.checked
    assert (expected.prepare_s, expected.delays_s) == (0.5, 0.25)
    assert expected.deadline_s == pytest.approx(12.02 + 1.0 - AnswerReserve.SEND_S - 0.02)


def test_an_image_that_was_decoded_too_late_is_not_computed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(service, monkeypatch)
    answering.decode_s = 0.9992
    with pytest.raises(NoExitError, match="not begun: receiving and decoding took 999 ms"):
        asyncio.run(answering.answer(0.002))
    assert answering.engine.specs == []


class ForecastEngine(FakeEngine):
    """Would reach each exit a tenth of a second after the one before. `asked`: what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Expected] = []

    def ready_s(self, expected: Expected, now_s: float) -> float:
        self.asked.append(expected)
        return 0.1 * expected.required


def test_a_forecast_is_what_this_client_would_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline is that of its address; its size the last one that its network sent."""
    monkeypatch.setattr("server.requests.service.time", CLOCK)
    folder = live.write_configs(tmp_path, (tiny.SEGMENTATION,))
    (tmp_path / "budget.toml").write_text('[clients."2001:db8::1"]\ndefault_deadline_ms = 100\n')
    settings = live.settings(folder, budget=tmp_path / "budget.toml")
    service = Service(settings, read_catalog(settings.models), print)
    service.engine.close()
    service.engine = engine = ForecastEngine()  # type: ignore[assignment]
    caller = Caller("2001:db8::1")
    for size in ((60, 90), (600, 900)):
        service._sizes.saw(tiny.SEGMENTATION.name, caller.network, size, CLOCK.monotonic())
    for answer_s, alone in ((0.01, True), (0.04, False)):
        service._reserve.learn(answer_s, "application/json", 600 * 900, alone=alone)
    for open_requests, answer_s in ((0, 0.011), (1, 0.041)):
        engine.open_requests = open_requests
        found = service.forecast(None, caller, None, None)
        assert found.budget.seconds == 0.1
        assert found.predicted_s == pytest.approx({index: 0.1 * index + answer_s for index in range(1, 5)})
        assert {expected.shape for expected in engine.asked} == {(608, 928)}
        assert engine.asked[-1].deadline_s == pytest.approx(12.1 - answer_s)


def test_a_request_that_comes_counts_as_open_in_its_own_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "budget.toml").write_text("[[traffic]]\nopen_requests = 1\nmax_deadline_ms = 200\n")
    settings = live.settings(live.write_configs(tmp_path), budget=tmp_path / "budget.toml")
    service = Service(settings, read_catalog(settings.models), print)
    service.engine.close()
    answering = Answering(service, monkeypatch)
    asyncio.run(answering.answer(0.002))
    assert answering.engine.checked[0].deadline_s == pytest.approx(12.2, abs=0.01)
