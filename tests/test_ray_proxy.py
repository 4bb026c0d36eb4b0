"""What Ray's proxies do beside passing requests on."""

import asyncio
import json
import time
from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive, Scope, Send

from deploy.ray_proxy import ARRIVED, SENTENCE, ProxyMark, waited_s
from server.errors import UnavailableError
from server.protocols.replies import error_message

LOST = {"error": SENTENCE, "code": "replica_lost", "id": None}
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
EVENTS: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PART: Message = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"b"}
CLOSED: Message = {"type": "websocket.close", "code": 1000}
OPEN: Message = {"type": "websocket.accept"}


def run(
    kind: str, replica_says: Sequence[Message], headers: Sequence[tuple[bytes, bytes]] = ((b"host", b"a"),)
) -> tuple[list[Message], Scope]:
    """What the client is sent, and the scope that the replica gets."""
    sent: list[Message] = []
    scope: Scope = {"type": kind, "headers": list(headers)}

    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        for message in replica_says:
            await send(message)

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(ProxyMark(replica)(scope, receive, send))
    return sent, scope


@pytest.mark.parametrize(
    ("kind", "said"),
    [("http", [START, LAST]), ("http", [EVENTS, PART, LAST]), ("websocket", [OPEN, CLOSED]), ("lifespan", [])],
)
def test_whole_answers_pass_as_they_are(kind: str, said: list[Message]) -> None:
    assert run(kind, said)[0] == said


def test_an_answer_says_its_id_once() -> None:
    """Ray adds the id of the proxy behind the replica's, and to answers that have none."""
    own, rays = (b"X-Request-Id", b"a"), (b"x-request-id", b"b")
    for said, passed in (([own, rays], [own]), ([rays], [rays])):
        sent, _ = run("http", [{**START, "headers": [*START["headers"], *said]}, LAST])
        assert sent[0]["headers"] == [*START["headers"], *passed]


def test_a_replica_that_says_nothing_is_lost() -> None:
    (start, body), _ = run("http", [])
    assert start["status"] == 503 and dict(start["headers"])[b"retry-after"] == b"1"
    assert json.loads(body["body"]) == LOST
    given = (b"x-request-id", b"mine")
    (start, body), _ = run("http", [], [given])
    assert given in start["headers"] and json.loads(body["body"]) == {**LOST, "id": "mine"}


def test_events_end_with_an_error_and_sockets_with_a_close() -> None:
    """The event has the fields of the server's own."""
    named = {**EVENTS, "headers": [*EVENTS["headers"], (b"X-Request-Id", b"made"), (b"x-request-id", b"rays")]}
    sent, _ = run("http", [named, PART])
    event, data, *rest = sent[-1]["body"].split(b"\n")
    assert (event, rest, sent[-1].get("more_body")) == (b"event: error", [b"", b""], None)
    assert json.loads(data.removeprefix(b"data: ")) == error_message(
        UnavailableError(SENTENCE, "replica_lost", 1.0), "made"
    )
    sent, _ = run("websocket", [OPEN])
    assert (sent[-1]["code"], sent[-1]["reason"]) == (1012, SENTENCE)


def test_half_an_answer_stays_half() -> None:
    assert run("http", [START, PART])[0] == [START, PART]


def test_the_proxy_says_when_a_request_came_and_no_client_can() -> None:
    before_s = time.time()
    _, scope = run("http", [START, LAST], [(ARRIVED, b"1"), (b"host", b"a")])
    assert [name for name, _ in scope["headers"]] == [b"host", ARRIVED]
    assert 0 <= waited_s(scope["headers"], time.time(), 30.0) <= time.time() - before_s + 0.001


@pytest.mark.parametrize(
    ("came", "found_s"),
    [
        (b"98.5", 1.5),
        (b"101", 0.0),  # the clocks differ
        (b"1", 30.0),
        (b"-inf", 30.0),
        (b"inf", 0.0),
        (b"nan", 0.0),
        (b"soon", 0.0),
    ],
)
def test_a_wait_at_the_proxy_is_no_longer_than_the_longest_deadline(came: bytes, found_s: float) -> None:
    """One endless wait would make the sums of the histograms endless."""
    assert waited_s([(ARRIVED, came)], now_s=100.0, longest_s=30.0) == found_s
    assert waited_s([], now_s=100.0, longest_s=30.0) == 0.0
