"""Requests that are refused by their head, before their image is read, against a worker that the tests play."""

import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPResponse

import live
import pytest
import tiny
from hosts import HOST, same_process_only
from live import Later, Live, ScriptedWorker, photo

from server.engine.messages import Stop
from server.engine.pool import _overloaded
from server.requests.sizes import ExpectedSizes
from server.scheduling.expected import Expected, Refusal

pytestmark = same_process_only

SEGMENTATION = tiny.SEGMENTATION.name
HEAD = b"POST /v1/predict?deadline_ms=60 HTTP/1.1\r\nHost: [::1]\r\nX-Request-Id: mine\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, ScriptedWorker]]:
    folder = live.write_configs(tmp_path_factory.mktemp("models"), (tiny.SEGMENTATION,))
    with live.scripted(folder) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()  # exit 1 takes 0.1 s
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        yield server, worker


@pytest.fixture
def server(started: tuple[Live, ScriptedWorker], monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A server with a job that has yet to reach its first exit. No further image may be decoded."""
    found, worker = started
    call = Later(found.predict)
    spec = worker.hear_job()
    monkeypatch.setattr("server.decoding.__main__.decode", None)
    yield found
    worker.end(spec, Stop.NO_EXIT)
    assert call.result().status_code == 504
    assert worker.hears_nothing() and found.metric("anytime_inflight_requests") == 0


def rejected(server: Live, protocol: str) -> float:
    return server.metric("anytime_requests_total", model=SEGMENTATION, protocol=protocol, stop="rejected")


@pytest.mark.skipif(HOST == "hypercorn", reason="needs a host that reads the body of a request that is answered")
@pytest.mark.parametrize("sent_bytes", [0, 10_000])
def test_a_refusal_comes_before_the_image_and_the_connection_goes_on(server: Live, sent_bytes: int) -> None:
    before, body = rejected(server, "http"), b"\xff" * 300_000
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        for _ in range(2):
            connection.sendall(HEAD % len(body) + body[:sent_bytes])
            reply = HTTPResponse(connection)
            reply.begin()
            found = json.loads(reply.read())
            assert (reply.status, found["code"], found["id"]) == (503, "overloaded", "mine")
            assert re.match(r"not begun: exit 1 takes 100 ms here, and \d+ ms are left; ", found["error"])
            assert reply.headers["x-request-id"] == "mine" and int(reply.headers["retry-after"]) >= 1
            connection.sendall(body[sent_bytes:])  # is read and dropped
    assert rejected(server, "http") == before + 2


def test_over_the_websocket_too(server: Live) -> None:
    before = rejected(server, "websocket")
    with server.connect() as connection:
        for name in "ab":
            connection.send(json.dumps({"type": "predict", "id": name, "deadline_ms": 60}))
            error = json.loads(connection.recv(live.PATIENCE_S))
            assert (error["type"], error["id"], error["code"], error["status"]) == ("error", name, "overloaded", 503)
            connection.send(photo())  # is dropped
    assert rejected(server, "websocket") == before + 2


def test_the_images_that_wait_for_a_decoder_count(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the head comes, and again when the image is there; `GET /v1/budget` tells, too."""
    deadline, queue = "deadline_ms=20000", "server.decoding.lane.Lane.queue_s"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        body = photo()
        head = HEAD.replace(b"deadline_ms=60", deadline.encode()) % len(body)
        connection.sendall(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        monkeypatch.setattr(queue, lambda lane, work_px: 100.0)
        connection.sendall(body)
        reply = HTTPResponse(connection)
        reply.begin()
        found = json.loads(reply.read())
    for refused in (found, server.predict(**dict([deadline.split("=")])).json()):
        assert refused["code"] == "overloaded" and re.search(r"exit 1 would be there in 100\d{3} ms", refused["error"])
    predicted = server.http.get(f"/v1/budget?{deadline}").json()["predicted"]
    assert all(each["ms"] > 100_000 for each in predicted)


@pytest.mark.parametrize(
    ("takes_s", "refusal", "sentence"),
    [
        (
            0.072,
            Refusal(wait_s=0.3, needs_s=0.372, left_s=0.06),
            "exit 2 takes 72 ms here, and 60 ms are left; give a later deadline_ms, a smaller image, or ask again in "
            "300 ms, when the waiting requests have been served",
        ),
        (
            0.02,
            Refusal(wait_s=0.03, needs_s=0.09, left_s=0.06),
            "exit 2 would be there in 90 ms, and 60 ms are left; ask again in 30 ms",
        ),
        (
            0.02,
            Refusal(wait_s=0.03, needs_s=0.05, left_s=0.06),
            "exit 2 would be there in 50 of 60 ms, but other requests come first; ask again in 30 ms",
        ),
    ],
)
def test_a_refusal_says_the_numbers_and_what_to_do(takes_s: float, refusal: Refusal, sentence: str) -> None:
    error = _overloaded(Expected("m", (64, 96), 2, 0.0), refusal, takes_s)
    assert (str(error), error.code, error.retry_after_s) == (f"not begun: {sentence}", "overloaded", refusal.wait_s)


def test_the_sizes_to_expect() -> None:
    sizes = ExpectedSizes()
    sizes.CLIENTS = 2  # type: ignore[misc]
    assert sizes.expected("m", "a", (9, 9), 0.0) == (9, 9)
    sizes.saw("m", "a", (1, 2), 0.0)
    sizes.saw("m", "b", (3, 4), 0.0)
    assert [sizes.expected("m", client, (9, 9), 1.0) for client in "abc"] == [(1, 2), (3, 4), (1, 2)]
    assert sizes.expected("other", "a", (9, 9), 1.0) == (9, 9)
    sizes.saw("m", "a", (5, 6), 1.0)
    sizes.saw("m", "c", (7, 8), 1.0)
    assert [sizes.expected("m", client, (9, 9), 2.0) for client in "abc"] == [(1, 2), (1, 2), (7, 8)]  # b is forgotten


def test_a_client_that_sends_large_images_is_still_expected_to_send_small_ones() -> None:
    sizes = ExpectedSizes()
    for size in [(10, 20), *[(3000, 4000)] * 100, (500, 1), (600, 1), (10, 20)]:
        sizes.saw("m", "a", size, 0.0)
    assert sizes.expected("m", "a", (99, 99), 0.0) == sizes.expected("m", "b", (99, 99), 0.0) == (10, 20)
    sizes.saw("m", "a", (3000, 4000), 0.0)
    assert sizes.last("m", "a", (9, 9)) == sizes.last("m", "b", (9, 9)) == (3000, 4000)
    for width in range(2, 2 + ExpectedSizes.SIZES):
        sizes.saw("m", "a", (500, width), 0.0)
    assert sizes.expected("m", "a", (99, 99), 0.0) == (500, 2)


def test_a_client_may_change_to_small_images_although_its_heads_are_refused() -> None:
    sizes = ExpectedSizes()
    sizes.saw("m", "a", (3000, 4000), 0.0)
    sizes.saw("m", "b", (2000, 3000), 9.0)
    assert sizes.expected("m", "a", (9, 9), 9.9) == (3000, 4000)
    assert sizes.expected("m", "a", (9, 9), 10.0) == sizes.expected("m", "new", (9, 9), 10.0) == (9, 9)
    assert sizes.expected("m", "a", (5000, 5000), 10.0) == (2000, 3000)
    assert sizes.last("m", "a", (9, 9)) == (3000, 4000)
