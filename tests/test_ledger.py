import asyncio
import gc
import time
import weakref
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY

from server.engine.messages import Stop
from server.errors import (
    DisconnectedError,
    InvalidError,
    NoExitError,
    NotFoundError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
)
from server.metrics import Metrics
from server.requests.registry import Entry, Ledger


class FakeJob:
    latest = 2
    stop: Stop | None = None
    deadline_s = 0.0

    def cancel(self, stop: Stop) -> None:
        self.stop = self.stop or stop

    def move(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s


def count(metrics: Metrics, **labels: str) -> float:
    found = metrics.registry.get_sample_value("anytime_requests_total", labels)
    assert found is not None and REGISTRY is not metrics.registry
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"model": 4})


@pytest.fixture
def ledger(metrics: Metrics) -> Ledger:
    return Ledger(metrics, max_open=2, kept=3)


def test_a_request_is_counted_once_as_it_ended(ledger: Ledger, metrics: Metrics) -> None:
    with ledger.entry("a", "http", 0.0) as entry:
        assert len(ledger) == 1 and not ledger.idle.is_set()
        entry.model, entry.job, entry.stop = "model", FakeJob(), Stop.DEADLINE
        assert entry.to_json(1.0)["exit"] == 2
    assert len(ledger) == 0 and ledger.idle.is_set()
    assert count(metrics, model="model", protocol="http", stop="deadline") == 1
    reached = {"model": "model", "exit": "2", "stop": "deadline"}
    assert metrics.registry.get_sample_value("anytime_exits_reached_total", reached) == 1


@pytest.mark.parametrize(
    ("error", "stop"),
    [
        (InvalidError("no", "no"), "invalid"),
        (UnavailableError("no", "no"), "rejected"),
        (asyncio.CancelledError(), "disconnected"),
    ],
)
def test_whatever_ends_a_request_is_counted(ledger: Ledger, metrics: Metrics, error: BaseException, stop: str) -> None:
    with pytest.raises(type(error)), ledger.entry(None, "websocket", 0.0):
        raise error
    assert count(metrics, model="unknown", protocol="websocket", stop=stop) == 1
    assert len(ledger) == 0


def test_a_fault_of_the_server_is_counted_logged_and_told_with_the_id(
    ledger: Ledger, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServerError, match=r"failed \(KeyError\)") as caught, ledger.entry("mine", "http", 0.0):
        raise KeyError("secret")
    assert (caught.value.request_id, caught.value.status) == ("mine", 500)
    assert "request mine failed" in caplog.text and "secret" in caplog.text
    assert count(metrics, model="unknown", protocol="http", stop="error") == 1


def test_a_fault_holds_nothing_of_its_request(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.registry.logger.exception", lambda *_: None)  # pytest keeps what is logged

    class Image:
        pass

    def fail() -> weakref.ref[Image]:
        image = Image()
        there = weakref.ref(image)
        try:
            with ledger.entry("mine", "http", 0.0):
                raise KeyError(image)
        except ServerError:
            return there

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_errors_learn_the_id_of_their_request(ledger: Ledger) -> None:
    error = InvalidError("no", "no")
    with pytest.raises(InvalidError), ledger.entry("mine", "http", 0.0):
        raise error
    assert error.request_id == "mine"


def test_only_so_many_may_be_open(ledger: Ledger, metrics: Metrics) -> None:
    with ledger.entry("a", "http", 0.0), ledger.entry("b", "http", 0.0):
        with pytest.raises(UnavailableError, match="2 requests are open"), ledger.entry("c", "http", 0.0):
            pass
        assert len(ledger) == 2
    assert count(metrics, model="unknown", protocol="http", stop="rejected") == 1


@pytest.mark.parametrize("unfit", ["x" * 129, "tab\t", "ümlaut"])
def test_an_unfit_id_is_refused_and_counted(ledger: Ledger, metrics: Metrics, unfit: str) -> None:
    with pytest.raises(InvalidError, match="characters"), ledger.entry(unfit, "http", 0.0):
        pass
    assert count(metrics, model="unknown", protocol="http", stop="invalid") == 1


def test_the_latest_that_ended_are_kept(ledger: Ledger) -> None:
    for name in "abcd":
        with ledger.entry(name, "http", 0.0):
            pass
    assert ledger.find("d").elapsed_s is not None
    with pytest.raises(NotFoundError):
        ledger.find("a")


def test_cancelling_reaches_every_open_request_of_that_id(ledger: Ledger) -> None:
    job = FakeJob()
    with ledger.entry("a", "http", 0.0) as first, ledger.entry("a", "http", 0.0) as second:
        first.job = job
        assert ledger.cancel("a") is second
    assert job.stop is first.given_up is second.given_up is Stop.CANCELLED
    assert ledger.cancel("a").stop is not None


@pytest.mark.parametrize(
    ("end", "error", "sentence"),
    [
        (lambda entry: entry.cancel(), RequestCancelledError, "cancelled by its id"),
        (lambda entry: entry.cancel(Stop.DISCONNECTED), DisconnectedError, "hung up"),
        (lambda entry: entry.move(time.monotonic()), NoExitError, "not received and decoded within"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_what_is_done_before_the_job_ends_at_once(
    ledger: Ledger, end: Callable[[Entry], None], error: type[ServerError], sentence: str, before: bool
) -> None:
    async def wait() -> None:
        with ledger.entry("a", "http", time.monotonic()) as entry:
            entry.move(time.monotonic() + 3600)
            if before:
                end(entry)
            async with entry.preparing():
                loop = asyncio.get_running_loop()
                loop.call_soon(end, entry)
                loop.call_soon(end, entry)  # twice is once
                await loop.create_future()

    with pytest.raises(error, match=sentence):
        asyncio.run(wait())


def test_a_later_deadline_is_waited_for(ledger: Ledger) -> None:
    async def wait() -> None:
        with ledger.entry("a", "http", time.monotonic()) as entry:
            entry.move(time.monotonic() + 0.005)
            async with entry.preparing():
                entry.move(time.monotonic() + 3600)
                await asyncio.sleep(0.01)

    asyncio.run(wait())


def test_a_job_hears_of_a_new_deadline(ledger: Ledger) -> None:
    with ledger.entry("a", "http", 0.0) as entry:
        entry.job = job = FakeJob()
        entry.move(7.0)
    assert job.deadline_s == 7.0


def test_an_entry_tells_what_ends_it(ledger: Ledger) -> None:
    with ledger.entry("a", "http", 0.0) as entry:
        entry.cancel()
        assert (entry.to_json(1.0)["state"], entry.to_json(1.0)["stop"]) == ("ended", "cancelled")
    with ledger.entry("b", "websocket", 0.0) as entry:
        entry.job = FakeJob()
        entry.job.stop = Stop.COMPLETE  # and the client is still reading
        entry.cancel()
        assert entry.to_json(1.0)["stop"] == "complete"


def test_an_entry_tells_of_itself(ledger: Ledger) -> None:
    with ledger.entry("a", "http", 10.0) as entry:
        entry.deadline_s = 10.5
        told = entry.to_json(10.1)
    assert told == {
        "id": "a",
        "state": "open",
        "protocol": "http",
        "model": "unknown",
        "exit": 0,
        "stop": None,
        "deadline_ms": 500.0,
        "elapsed_ms": 100.0,
    }
    assert entry.to_json(99.0)["state"] == "ended"
