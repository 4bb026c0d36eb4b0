import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from server.access.identity import SOMEBODY, Caller
from server.engine.messages import Stop
from server.errors import (
    DisconnectedError,
    InvalidError,
    NoExitError,
    NotFoundError,
    RequestCancelledError,
    ServerError,
    TooManyRequestsError,
    UnavailableError,
)
from server.metrics import Metrics
from server.requests.record import RequestRecord
from server.requests.registry import RequestRegistry


def job(stop: Stop | None = None) -> Any:
    """A job that has reached exit 2."""
    return SimpleNamespace(latest=2, stop=stop)


def count(metrics: Metrics, **labels: str) -> float:
    found = metrics.registry.get_sample_value("anytime_requests_total", labels)
    assert found is not None and REGISTRY is not metrics.registry
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"model": 4})


@pytest.fixture
def registry(metrics: Metrics) -> RequestRegistry:
    return RequestRegistry(metrics, max_open=2, history=3)


def test_a_request_is_counted_once_as_it_ended(registry: RequestRegistry, metrics: Metrics) -> None:
    with registry.open("http", 0.0, "a") as record:
        assert len(registry) == 1 and not registry.idle.is_set()
        record.model, record.job, record.stop = "model", job(), Stop.DEADLINE
        assert record.to_json(1.0)["exit"] == 2
    assert len(registry) == 0 and registry.idle.is_set()
    assert record.job is None, "what is known of ended requests keeps no maps"
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
def test_whatever_ends_a_request_is_counted(
    registry: RequestRegistry, metrics: Metrics, error: BaseException, stop: str
) -> None:
    with pytest.raises(type(error)), registry.open("websocket", 0.0):
        raise error
    assert count(metrics, model="unknown", protocol="websocket", stop=stop) == 1
    assert len(registry) == 0


def test_a_fault_of_the_server_is_counted_logged_and_told_with_the_id(
    registry: RequestRegistry, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServerError, match=r"failed \(KeyError\)") as caught, registry.open("http", 0.0, "mine"):
        raise KeyError("secret")
    assert (caught.value.request_id, caught.value.status) == ("mine", 500)
    assert "request mine failed" in caplog.text and "secret" in caplog.text
    assert count(metrics, model="unknown", protocol="http", stop="error") == 1


def test_a_fault_holds_nothing_of_its_request(registry: RequestRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.registry.logger.exception", lambda *_: None)  # pytest keeps what is logged

    class Image:
        pass

    def fail() -> weakref.ref[Image]:
        image = Image()
        there = weakref.ref(image)
        try:
            with registry.open("http", 0.0, "mine"):
                raise KeyError(image)
        except ServerError:
            return there

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_errors_learn_the_id_of_their_request(registry: RequestRegistry) -> None:
    error = InvalidError("no", "no")
    with pytest.raises(InvalidError), registry.open("http", 0.0, "mine"):
        raise error
    assert error.request_id == "mine"


def test_only_so_many_may_be_open(registry: RequestRegistry, metrics: Metrics) -> None:
    with registry.open("http", 0.0) as late, registry.open("http", 0.0) as a, registry.open("http", 0.0) as b:
        registry.seat(a)
        registry.seat(b)
        with pytest.raises(UnavailableError, match="2 requests are open"), registry.open("http", 0.0, "c"):
            pass
        with pytest.raises(UnavailableError, match="2 requests are open"):
            registry.seat(late)
        assert len(registry) == 3
    assert count(metrics, model="unknown", protocol="http", stop="rejected") == 1
    with registry.open("http", 0.0) as record:
        registry.seat(record)  # the others have left


def test_one_address_may_have_so_many_whose_image_is_there(metrics: Metrics) -> None:
    registry = RequestRegistry(metrics, max_open=9, history=3, max_open_per_address=1)
    with (
        registry.open("http", 0.0, caller=Caller("a")) as first,
        registry.open("http", 0.0, caller=Caller("a")) as second,
    ):
        registry.seat(first)
        with registry.open("http", 0.0, caller=Caller("b")) as other:
            registry.seat(other)
        with pytest.raises(TooManyRequestsError, match=r"a has 1 open requests.*--max-open-per-address"):
            registry.seat(second)
    with registry.open("http", 0.0, caller=Caller("a")) as record:
        registry.seat(record)


@pytest.mark.parametrize("unfit", ["x" * 129, "tab\t", "ümlaut"])
def test_an_unfit_id_is_refused_and_counted(registry: RequestRegistry, metrics: Metrics, unfit: str) -> None:
    with pytest.raises(InvalidError, match="characters"), registry.open("http", 0.0, unfit):
        pass
    assert count(metrics, model="unknown", protocol="http", stop="invalid") == 1


def test_the_latest_that_ended_are_kept(registry: RequestRegistry) -> None:
    for name in "abcd":
        with registry.open("http", 0.0, name):
            pass
    assert registry.find("d", SOMEBODY).elapsed_s is not None
    with pytest.raises(NotFoundError):
        registry.find("a", SOMEBODY)


def test_invalid_requests_leave_no_record(registry: RequestRegistry) -> None:
    with registry.open("http", 0.0, "a"):
        pass
    for _ in range(3):
        with pytest.raises(InvalidError), registry.open("http", 0.0, "a"):
            raise InvalidError("no", "no")
    assert registry.find("a", SOMEBODY).stop is Stop.ERROR


def test_a_busy_client_drives_out_its_own_records_alone(registry: RequestRegistry) -> None:
    quiet, busy = Caller("192.0.2.1"), [Caller(f"2001:db8::{number}") for number in range(9)]  # one site
    with registry.open("http", 0.0, "a", quiet):
        pass
    for caller in busy:
        with registry.open("http", 0.0, "a", caller):
            pass
    assert registry.find("a", quiet).caller is quiet
    assert registry.find("a", busy[-1]).caller is busy[-1]
    with pytest.raises(NotFoundError):
        registry.find("a", busy[0])


def test_a_request_is_alone_if_no_other_was_seated_since_it_was(registry: RequestRegistry) -> None:
    with registry.open("http", 0.0) as first:
        assert registry.is_alone(first)
        registry.seat(first)
        assert registry.is_alone(first)
        with registry.open("http", 0.0) as second:
            assert registry.is_alone(first) and not registry.is_alone(second)
            registry.seat(second)
            assert not registry.is_alone(first) and not registry.is_alone(second)
        with registry.open("http", 0.0) as third:
            registry.seat(third)
            assert not registry.is_alone(third)
        assert not registry.is_alone(first)
    with registry.open("http", 0.0) as fourth:
        registry.seat(fourth)
        assert registry.is_alone(fourth)
    with registry.open("http", 0.0) as fifth:
        registry.seat(fifth)
        assert registry.is_alone(fifth)


def test_only_who_asked_finds_a_request(registry: RequestRegistry) -> None:
    first, second = Caller("192.0.2.1"), Caller("192.0.2.2")
    with registry.open("http", 0.0, "a", first) as chosen, registry.open("http", 0.0, None, first) as made:
        assert registry.open_records("a", first) == [chosen] and registry.open_records("a", second) == []
        for known in (chosen, made):
            assert registry.find(known.id, first) is known
        assert registry.find(made.id, second) is made
        with pytest.raises(NotFoundError, match="no request of yours is called 'a'"):
            registry.find("a", second)
        assert len(made.id) == 32
    with registry.open("http", 0.0, "a", second):
        pass
    assert (registry.find("a", first), registry.find("a", second).caller) == (chosen, second)


def test_a_request_that_is_not_listed_is_found_by_nobody(registry: RequestRegistry) -> None:
    with registry.open("websocket", 0.0, listed=False) as record:
        assert registry.open_records(record.id, SOMEBODY) == []
    with pytest.raises(NotFoundError):
        registry.find(record.id, SOMEBODY)


def test_only_an_answer_that_was_due_can_be_late(registry: RequestRegistry, metrics: Metrics) -> None:
    """A request that is refused, or whose client hangs up, counts neither as late nor as in time."""
    late = {"model": "model"}
    with registry.open("http", 0.0, model="model"):
        pass
    for error in (InvalidError("no", "no"), UnavailableError("no", "overloaded", 1.0), DisconnectedError("no", "no")):
        with pytest.raises(type(error)), registry.open("http", 0.0, model="model") as record:
            record.deadline_s = 1.0
            raise error
    assert metrics.registry.get_sample_value("anytime_deadline_overrun_seconds_count", late) == 0
    with registry.open("http", 0.0, model="model") as record:
        record.deadline_s = 1.0
    assert metrics.registry.get_sample_value("anytime_deadline_overrun_seconds_count", late) == 1


def test_without_time_to_compute_a_request_is_refused_with_where_its_time_went(registry: RequestRegistry) -> None:
    with registry.open("http", 10.0) as record:
        record.deadline_s, record.answer_s = 10.07, 0.02
        record.check_time(10.049)
        with pytest.raises(NoExitError, match=r"took 51 ms, encoding needs 20 ms, and the deadline is 70\.0 ms; "):
            record.check_time(10.051)


def test_the_newest_request_of_an_id_is_found_and_all_open_ones(registry: RequestRegistry) -> None:
    with registry.open("http", 0.0, "a") as first, registry.open("http", 0.0, "a") as second:
        assert registry.find("a", SOMEBODY) is second
        assert registry.open_records("a", SOMEBODY) == [first, second]
    assert registry.find("a", SOMEBODY).stop is not None and registry.open_records("a", SOMEBODY) == []


@pytest.mark.parametrize(
    ("end", "error", "sentence"),
    [
        (lambda record: record.give_up(Stop.CANCELLED), RequestCancelledError, "cancelled by its id"),
        (lambda record: record.give_up(Stop.DISCONNECTED), DisconnectedError, "hung up"),
        (lambda record: record.move_deadline(time.monotonic()), NoExitError, "not received and decoded after"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_what_is_done_before_the_job_ends_at_once(
    registry: RequestRegistry,
    end: Callable[[RequestRecord], None],
    error: type[ServerError],
    sentence: str,
    before: bool,
) -> None:
    async def wait() -> None:
        with registry.open("http", time.monotonic(), "a") as record:
            record.move_deadline(time.monotonic() + 3600)
            if before:
                end(record)
            async with record.preparing():
                loop = asyncio.get_running_loop()
                loop.call_soon(end, record)
                loop.call_soon(end, record)  # twice is once
                await loop.create_future()

    with pytest.raises(error, match=sentence):
        asyncio.run(wait())


def test_a_later_deadline_is_waited_for(registry: RequestRegistry) -> None:
    async def wait() -> None:
        with registry.open("http", time.monotonic(), "a") as record:
            record.move_deadline(time.monotonic() + 0.005)
            async with record.preparing():
                record.move_deadline(time.monotonic() + 3600)
                await asyncio.sleep(0.01)

    asyncio.run(wait())


def test_a_record_tells_what_ends_it(registry: RequestRegistry) -> None:
    with registry.open("http", 0.0, "a") as record:
        record.give_up(Stop.CANCELLED)
        assert (record.to_json(1.0)["state"], record.to_json(1.0)["stop"]) == ("ended", "cancelled")
    with registry.open("websocket", 0.0, "b") as record:
        record.job = job(Stop.COMPLETE)  # and the client is still reading
        record.give_up(Stop.CANCELLED)
        assert record.to_json(1.0)["stop"] == "complete"


def test_a_record_tells_of_itself(registry: RequestRegistry) -> None:
    with registry.open("http", 10.0, "a") as record:
        record.deadline_s = 10.5
        told = record.to_json(10.1)
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
    assert record.to_json(99.0)["state"] == "ended"
