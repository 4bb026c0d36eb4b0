"""Cancels and new deadlines. test_http.py and test_stream.py test whole requests."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import live
import pytest

from server.access.identity import SOMEBODY
from server.catalog import read_catalog
from server.engine.messages import Stop
from server.errors import NotFoundError
from server.requests.budget import Asked
from server.requests.service import Service

CLOCK = SimpleNamespace(monotonic=lambda: 12.0, time=lambda: 0.0)
ASKED = Asked("model", exits=4)


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
        record.reserve_s = 0.25
        service.move_deadline(record, 1.0)
        service.move_deadline(record, 1e6)
    assert record.deadline_s == 15.0  # at most 5 s after the arrival
    assert service.engine.moved == [(job, 12.75), (job, 14.75)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("began_alone", "ends_alone"), [(True, True), (True, False), (False, True)])
def test_the_last_answer_of_a_crowd_is_learnt_from_as_one_of_the_crowd(
    service: Service, monkeypatch: pytest.MonkeyPatch, began_alone: bool, ends_alone: bool
) -> None:
    kinds = []

    async def encode(*_: Any, alone: bool, due_s: float) -> None:
        kinds.append(alone)

    monkeypatch.setattr(service.codec, "encode", encode)
    with service.registry.open("http", 0.0) as record, service.registry.open("http", 0.0) as other:
        service.registry.seat(record)
        if not began_alone:
            service.registry.seat(other)
        service._set_reserve(record, 100)
        if not ends_alone:
            service.registry.seat(other)
        elif other.seated:
            service.registry._leave_seat(other)
        asyncio.run(service.encode(record, SimpleNamespace(), lambda: None, due_s=0.0))  # type: ignore[arg-type]
    assert kinds == [began_alone and ends_alone]


def test_a_deadline_is_moved_before_there_is_a_job(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.service.time", CLOCK)
    with service.registry.open("http", 10.0) as record:
        record.asked = ASKED
        service.move_deadline(record, 1.0)
    assert record.deadline_s == 13.0 and service.engine.moved == []  # type: ignore[attr-defined]
