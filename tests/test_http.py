"""HTTP, against a worker that the tests play."""

import asyncio
import base64
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import live
import numpy as np
import pytest
import tiny
from hosts import own_host_only, same_process_only
from live import Later, Live, ScriptedWorker, photo
from PIL import Image
from starlette.datastructures import Headers

from server.access.identity import Caller
from server.engine.messages import Stop
from server.errors import NotAcceptableError
from server.protocols.form import FormParser
from server.protocols.http import accepted_media_type
from server.protocols.options import QueryOptions

SEGMENTATION = tiny.SEGMENTATION.name
POSE = tiny.POSE.name
SETTINGS = {"max_open": 4, "max_body_bytes": 200_000, "max_pixels": 512 * 512}


def test_a_prediction_in_json(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", model=SEGMENTATION, protocol="http", stop="complete")
    call = Later(lambda: server.predict(model=SEGMENTATION, deadline_ms=15000, map="unsure"))
    spec = worker.hear_job()
    assert (worker.image(spec) == tiny.image()).all()
    assert spec.extra == "unsure" and spec.max_exit == 4 and spec.required == 1
    worker.finish(spec)
    reply = call.result()
    body = reply.json()
    assert reply.status_code == 200 and reply.headers["x-request-id"] == body["id"]
    assert (body["model"], body["task"], body["exit"], body["exits"]) == (SEGMENTATION, "segmentation", 4, 4)
    assert (body["final"], body["stop"], body["deadline_ms"], body["size"]) == (True, "complete", 15000, [60, 90])
    assert body["unsure"] == 0.125 and 0 < body["elapsed_ms"] < 15000
    assert set(body["timing"]) == {"decode_ms", "queue_ms", "compute_ms", "encode_ms"}
    assert body["timing"]["compute_ms"] == [100.0] * 4
    assert body["timing"]["decode_ms"] > 0
    assert body["mask"]["classes"] == ["sky", "road", "car"] and body["mask"]["palette"][1] == [128, 64, 128]
    image = Image.open(io.BytesIO(base64.b64decode(body["mask"]["data"])))
    assert (np.asarray(image) == live.labels(4, 60, 90)).all()
    extra = Image.open(io.BytesIO(base64.b64decode(body["map"]["data"])))
    assert body["map"]["kind"] == "unsure" and (np.asarray(extra) == 0).all()
    assert server.metric("anytime_requests_total", model=SEGMENTATION, protocol="http", stop="complete") == before + 1


def test_a_prediction_as_png_and_as_raw_labels(server: Live, worker: ScriptedWorker) -> None:
    for accept in ("image/png", "application/octet-stream"):
        call = Later(lambda accept=accept: server.predict(Accept=accept))
        worker.finish(worker.hear_job(), 2, Stop.DEADLINE)
        reply = call.result()
        assert reply.headers["content-type"] == accept
        found = {name: reply.headers[f"x-anytime-{name}"] for name in ("exit", "exits", "stop", "unsure", "size")}
        assert found == {"exit": "2", "exits": "4", "stop": "deadline", "unsure": "0.25", "size": "60x90"}
        assert float(reply.headers["x-anytime-elapsed-ms"]) > 0
        expected = live.labels(2, 60, 90)
        described = server.http.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["responses"]["200"]
        assert {name.lower() for name in described["headers"]} - {"x-anytime-meta"} <= set(reply.headers)
        if accept == "image/png":
            image = Image.open(io.BytesIO(reply.content))
            assert image.mode == "P" and (np.asarray(image) == expected).all()
            assert np.asarray(image.convert("RGB"))[expected == 2][0].tolist() == [64, 0, 128]
        else:
            assert reply.content == expected.tobytes()


def test_a_pose(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(model=POSE, box="10,5,40,50"))
    spec = worker.hear_job()
    assert spec.box == (10, 5, 40, 50) and spec.layout.joints == 16
    worker.finish(spec, 3, Stop.MAX_EXIT)
    body = call.result().json()
    assert np.array_equal(np.array(body["keypoints"], np.float32), np.full((16, 3), 3.1, np.float32))
    assert body["joints"][0] == "right ankle" and body["skeleton"][0] == [0, 1] and "mask" not in body


def test_a_box_much_larger_than_the_image_is_a_400(server: Live) -> None:
    reply = server.predict(model=POSE, box="0,0,1000,5")
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_box")
    assert "1000 wide and 5 high, the image 90x60; the limit is 270" in reply.json()["error"]


def test_a_form(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.http.post("/v1/predict", files={"image": ("photo.png", photo(), "image/png")}))
    spec = worker.hear_job()
    assert (worker.image(spec) == tiny.image()).all()
    worker.finish(spec)
    assert call.result().status_code == 200


def test_the_smallest_deadline_wins(server: Live, worker: ScriptedWorker) -> None:
    for header, query, expected in (("0.5", {"deadline_ms": 15000}, 500), ("9", {"deadline_ms": 400.5}, 400.5)):
        call = Later(
            lambda header=header, query=query: server.http.post(
                "/v1/predict", params=query, content=photo(), headers={"X-Request-Timeout-Seconds": header}
            )
        )
        worker.finish(worker.hear_job())
        assert call.result().json()["deadline_ms"] == expected


def test_a_huge_deadline_is_lowered_to_the_longest(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(deadline_ms=1e300))
    worker.finish(worker.hear_job())
    assert call.result().json()["deadline_ms"] == 30_000


def test_the_engine_answers_at_the_deadline_with_the_exit_it_has(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(deadline_ms=150))
    spec = worker.hear_job()
    worker.reach(spec, 1)
    worker.reach(spec, 2)
    body = call.result().json()
    assert (body["exit"], body["stop"], body["final"]) == (2, "deadline", False)
    assert worker.hear_cancel().key == spec.key
    wasted = server.metric("anytime_exits_wasted_total")
    worker.reach(spec, 3)
    worker.end(spec, Stop.CANCELLED)
    server.wait_for(lambda: server.metric("anytime_exits_wasted_total") == wasted + 1)


def test_without_an_exit_in_time_there_is_a_504(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", stop="no_exit")
    call = Later(lambda: server.predict(deadline_ms=100))
    spec = worker.hear_job()
    reply = call.result()
    assert (reply.status_code, reply.json()["code"]) == (504, "no_exit")
    sentence = r"no exit was there after \d+ of 100\.0 ms; encoding needs \d+ ms, and exit 1 takes \d+ ms here: "
    assert re.match(sentence, reply.json()["error"])
    worker.hear_cancel()
    worker.end(spec, Stop.CANCELLED)
    assert server.metric("anytime_requests_total", stop="no_exit") == before + 1


def test_min_exit_not_reached_is_a_504_unless_best_effort(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(min_exit=3))
    spec = worker.hear_job()
    assert spec.required == 3
    worker.finish(spec, 2, Stop.DEADLINE)
    reply = call.result()
    assert reply.status_code == 504 and reply.json()["code"] == "min_exit_not_reached"
    sentence = (
        r"only exit 2 was there after \d+ of 20000\.0 ms; encoding needs \d+ ms, and exit 3 takes \d+ ms here: give "
    )
    assert re.match(sentence, reply.json()["error"])
    call = Later(lambda: server.predict(min_exit=3, best_effort="true"))
    spec = worker.hear_job()
    assert (spec.required, spec.min_exit) == (1, 3)
    worker.finish(spec, 2, Stop.DEADLINE)
    assert call.result().json()["exit"] == 2


def test_what_the_worker_does_not_begin_is_told_with_both_times(server: Live, worker: ScriptedWorker) -> None:
    call = Later(server.predict)
    worker.end(worker.hear_job(), Stop.NO_EXIT, needs_s=0.072, left_s=0.06)
    reply = call.result()
    assert (reply.status_code, reply.json()["code"]) == (504, "no_exit")
    assert re.match(r"not begun after \d+ ms: exit 1 takes 72 ms here, and 60 ms were left; ", reply.json()["error"])


def test_a_model_that_fails_is_a_500_and_the_next_request_works(server: Live, worker: ScriptedWorker) -> None:
    call = Later(server.predict)
    worker.end(worker.hear_job(), Stop.ERROR, error="ValueError: no")
    reply = call.result()
    assert (reply.status_code, reply.json()["code"]) == (500, "model_failed")
    call = Later(server.predict)
    worker.finish(worker.hear_job())
    assert call.result().status_code == 200


def test_cancelling_by_id(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", stop="cancelled")
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": "mine"}))
    spec = worker.hear_job()
    worker.reach(spec, 1)
    found = server.http.get("/v1/requests/mine").json()
    assert (found["state"], found["model"], found["stop"]) == ("open", SEGMENTATION, None)
    assert server.http.delete("/v1/requests/mine").status_code == 200
    reply = call.result()
    assert (reply.status_code, reply.json()["code"], reply.json()["id"]) == (499, "cancelled", "mine")
    assert reply.headers["x-request-id"] == "mine"
    assert worker.hear_cancel().key == spec.key
    worker.end(spec, Stop.CANCELLED)
    assert server.http.get("/v1/requests/mine").json()["stop"] == "cancelled"
    assert server.http.delete("/v1/requests/mine").json()["state"] == "ended"
    assert server.metric("anytime_requests_total", stop="cancelled") == before + 1


def test_a_request_with_a_token_is_found_with_it_alone(server: Live, worker: ScriptedWorker) -> None:
    token = {"X-Request-Token": "a secret of its own"}
    headers = {**token, "X-Request-Id": "guarded"}
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers=headers))
    spec = worker.hear_job()
    for wrong in ({}, {"X-Request-Token": "the secret of another"}):
        for method in ("GET", "DELETE"):
            reply = server.http.request(method, "/v1/requests/guarded", headers=wrong)
            assert (reply.status_code, reply.json()["code"]) == (404, "unknown_request")
    assert server.http.get("/v1/requests/guarded", headers=token).json()["state"] == "open"
    assert server.http.delete("/v1/requests/guarded", headers=token).status_code == 200
    assert call.result().status_code == 499
    worker.hear_cancel()
    worker.end(spec, Stop.CANCELLED)


def test_cancelling_before_the_image_has_arrived(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nX-Request-Id: early\r\nContent-Length: 9\r\n\r\nh"
        )
        server.wait_for(lambda: server.metric("anytime_inflight_requests") == 1)
        assert server.http.delete("/v1/requests/early").status_code == 200
        assert connection.recv(100).startswith(b"HTTP/1.1 499")


def test_cancelling_while_the_image_is_decoded(server: Live, decoding: threading.Event) -> None:
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": "early"}))
    assert decoding.wait(live.PATIENCE_S)
    assert server.http.delete("/v1/requests/early").status_code == 200
    reply = call.result()
    assert (reply.status_code, reply.json()["code"]) == (499, "cancelled")


def test_a_deadline_is_kept_while_the_image_is_decoded(server: Live, decoding: threading.Event) -> None:
    reply = server.predict(deadline_ms=50)
    assert (reply.status_code, reply.json()["code"]) == (504, "no_exit")
    assert "was not received and decoded after" in reply.json()["error"]


def test_hanging_up_while_the_image_is_decoded(server: Live, decoding: threading.Event) -> None:
    before, body = server.metric("anytime_requests_total", stop="disconnected"), photo()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert decoding.wait(live.PATIENCE_S)
    server.wait_for(lambda: server.metric("anytime_requests_total", stop="disconnected") == before + 1)


@same_process_only
def test_a_cancel_in_the_last_moment_before_the_job_is_not_lost(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    service = server.service

    async def copying(*_: object) -> None:
        service.cancel_by_id("early", Caller("127.0.0.1"))

    monkeypatch.setattr("server.requests.service.copy_pixels", copying)
    reply = server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": "early"})
    assert (reply.status_code, reply.json()["code"]) == (499, "cancelled")


def test_any_printable_id_can_be_looked_up_and_cancelled(server: Live, worker: ScriptedWorker) -> None:
    name = "a/b?c#d%2F../e"
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": name}))
    spec = worker.hear_job()
    path = f"/v1/requests/{quote(name, safe='')}"
    assert server.http.get(path).json()["id"] == name
    assert server.http.delete(path).status_code == 200
    assert call.result().status_code == 499
    worker.hear_cancel()
    worker.end(spec, Stop.CANCELLED)


@same_process_only
def test_a_fault_of_the_server_is_a_500_with_the_id(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.decoding.__main__.decode", lambda *_: 1 / 0)
    reply = server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": "unlucky"})
    assert (reply.status_code, reply.json()["code"], reply.json()["id"]) == (500, "internal", "unlucky")
    assert reply.headers["x-request-id"] == "unlucky"


@own_host_only
def test_what_is_no_http_is_a_400(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"HELO example.org\r\n\r\n")
        status, _, rest = connection.recv(1000).partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["code"] == "bad_http"


@own_host_only
@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c"])
@pytest.mark.parametrize("cut", [10, 120, 2000], ids=["in the first line", "in the headers", "in the body"])
def test_who_asks_for_another_protocol_in_vain_is_served(
    server: Live, worker: ScriptedWorker, upgrade: bytes, cut: int
) -> None:
    body = photo(kind="BMP")
    head = b"POST /v1/predict?deadline_ms=20000 HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    head += b"Upgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: %d\r\n\r\n" % (upgrade, len(body))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        for _ in range(2):  # the connection goes on
            connection.sendall((head + body)[:cut])
            connection.sendall((head + body)[cut:])
            spec = worker.hear_job()
            worker.finish(spec, last=1, stop=Stop.MAX_EXIT)
            reply = HTTPResponse(connection)
            reply.begin()
            assert reply.status == 200 and json.loads(reply.read())["exit"] == 1


@own_host_only
def test_a_body_that_is_no_http_is_a_400(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


@own_host_only
def test_headers_without_an_end_are_a_431(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nX-Long: ")
        reply = b""
        with suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(b"x" * 65536)
        with suppress(ConnectionError):
            reply = connection.recv(1000)
        assert reply[:12] in (b"HTTP/1.1 431", b"")  # a reset may overtake the answer
    assert server.http.get("/health/live", headers={"Cookie": "x" * 60_000}).status_code == 200


@own_host_only
def test_trailers_without_an_end_are_refused_in_words(server: Live) -> None:
    """The client can read the refusal, although it goes on sending its trailers."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Long: "
        connection.sendall(head)
        for _ in range(100):
            connection.sendall(b"x" * 65536)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 431") and b"connection: close" in answer


def test_a_body_may_follow_a_header_in_parts(server: Live, worker: ScriptedWorker) -> None:
    body = photo(200, 300, "BMP")
    assert len(body) > 100_000
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\n")
        assert server.http.get("/health/live").status_code == 200  # so that the line has been read by itself
        connection.sendall(b"Host: [::1]\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        worker.finish(worker.hear_job())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_trace_goes_on_through_answers_and_refusals(server: Live, worker: ScriptedWorker) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers=headers))
    worker.finish(worker.hear_job())
    for reply, status in ((call.result(), 200), (server.http.post("/v1/predict?min_exit=9", headers=headers), 400)):
        assert reply.status_code == status
        version, found, span, flags = reply.headers["traceresponse"].split("-")
        assert (version, found, flags) == ("00", trace_id, "01") and span != "b7ad6b7169203331"


def test_an_unknown_request_is_a_404(server: Live) -> None:
    for method in ("GET", "DELETE"):
        reply = server.http.request(method, "/v1/requests/nobody")
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_request")


def test_hanging_up_cancels(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", stop="disconnected")
    body = photo()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        spec = worker.hear_job()
    assert worker.hear_cancel().key == spec.key
    worker.end(spec, Stop.CANCELLED)
    server.wait_for(lambda: server.metric("anytime_requests_total", stop="disconnected") == before + 1)


def test_hanging_up_before_the_image_has_arrived(server: Live) -> None:
    before = server.metric("anytime_requests_total", stop="disconnected")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1000\r\n\r\nhalf")
        server.wait_for(lambda: server.metric("anytime_inflight_requests") == 1)
    server.wait_for(lambda: server.metric("anytime_requests_total", stop="disconnected") == before + 1)


@own_host_only
def test_a_deadline_counts_from_the_first_byte_of_the_headers(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.protocols.connection.time", SimpleNamespace(monotonic=lambda: time.monotonic() - 10))
    reply = server.predict(deadline_ms=9_000)
    assert (reply.status_code, reply.json()["code"]) == (504, "no_exit")


def test_an_image_that_arrives_too_slowly_is_a_504(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/predict?deadline_ms=50 HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1000\r\n\r\nhalf"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 504")


BAD_QUERIES = [
    ("deadline_ms=-5", 400, "above 0"),
    ("deadline_ms=0", 400, "above 0"),
    ("deadline_ms=nan", 400, "finite"),
    ("deadline_ms=1e999", 400, "finite"),
    ("deadline_ms=soon", 400, "finite"),
    ("deadline_ms=", 400, "finite"),
    ("min_exit=0", 400, "from 1"),
    ("min_exit=1.5", 400, "from 1"),
    ("max_exit=5", 400, "exits 1 to 4"),
    ("min_exit=3&max_exit=2", 400, "larger"),
    ("quality=2", 400, "between 0 and 1"),
    ("quality=0.1", 400, "not calibrated"),
    ("map=depth", 400, "confidence, exit, unsure"),
    ("best_effort=perhaps", 400, "true or false"),
    ("box=1,2,3", 400, "x,y,width,height"),
    ("box=1,2,3,nan", 400, "finite"),
    ("box=1,2,30,40", 400, "pose"),
    (f"model={POSE}&box=95,0,10,10", 400, "outside of the 90x60 image"),
    ("deadline=100", 400, "deadline_ms"),
    ("model=nobody", 404, SEGMENTATION),
]


@pytest.mark.parametrize(("query", "status", "words"), BAD_QUERIES, ids=[query for query, _, _ in BAD_QUERIES])
def test_a_bad_query_says_what_would_be_right(server: Live, query: str, status: int, words: str) -> None:
    before = server.metric("anytime_requests_total", stop="invalid")
    reply = server.http.post(f"/v1/predict?{query}", content=photo())
    assert reply.status_code == status and words in reply.json()["error"]
    assert set(reply.json()) == {"error", "code", "id"} and reply.headers["x-request-id"] == reply.json()["id"]
    assert server.metric("anytime_requests_total", stop="invalid") == before + 1


def bomb() -> bytes:
    """A small PNG that says it is 20000x20000."""
    small = photo()
    header = b"IHDR" + struct.pack(">II", 20000, 20000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_bad_bodies(server: Live, worker: ScriptedWorker) -> None:
    for body, status, code in (
        (b"", 400, "empty_body"),
        (b"not an image at all", 415, "not_an_image"),
        (photo(kind="JPEG")[:-400], 400, "broken_image"),
        (photo(kind="PNG")[:200], 400, "broken_image"),
        (bomb(), 413, "image_too_large"),
        (b"\x00" * 200_001, 413, "body_too_large"),
        (photo(kind="GIF"), 415, "not_an_image"),
    ):
        reply = server.predict(body)
        assert (reply.status_code, reply.json()["code"]) == (status, code), body[:20]
    call = Later(server.predict)
    worker.finish(worker.hear_job())
    assert call.result().status_code == 200


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 200001\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_length_is_limited_while_it_is_read(server: Live) -> None:
    reply = server.http.post("/v1/predict", content=(b"\x00" * 50_000 for _ in range(5)))
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")


@same_process_only
def test_forms_stay_in_memory(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile._TemporaryFileWrapper", full)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr(
        "starlette.formparsers.MultiPartParser.spool_max_size", 1000
    )  # for a file that the test can send
    reply = server.http.post("/v1/predict", files={"image": ("a.png", bytes(100_000), "image/png")})
    assert (reply.status_code, reply.json()["code"]) == (415, "not_an_image")


def test_bad_forms(server: Live) -> None:
    reply = server.http.post("/v1/predict", files={"picture": ("a.png", photo(), "image/png")})
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_form")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"nonsense", b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--"):
        reply = server.http.post("/v1/predict", content=content, headers=broken)
        assert (reply.status_code, reply.json()["code"]) == (400, "bad_form")
    reply = server.http.post("/v1/predict", content=photo(), headers={"Content-Type": "multipart/form-data"})
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_form")
    cut = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + photo() + b"\r\n"
    reply = server.http.post("/v1/predict", content=cut, headers=broken)
    assert reply.json()["error"] == "the form is cut off: its last boundary is missing; send the whole of it"
    twice = [("image", ("a.png", photo(), "image/png"))] * 2
    sentence = "the form cannot be read: Too many files. Maximum number of files is 1; send one file, in field `image`"
    assert server.http.post("/v1/predict", files=twice).json()["error"] == sentence


def test_what_cannot_be_sent_is_a_406(server: Live) -> None:
    for query, accept in (({}, "text/html"), ({"model": POSE}, "image/png"), ({}, "image/png;q=0")):
        reply = server.predict(Accept=accept, **query)
        assert (reply.status_code, reply.json()["code"]) == (406, "not_acceptable")
    reply = server.predict(Accept="image/png", map="unsure")
    assert (
        reply.status_code == 406
        and "two maps can be application/json or text/event-stream: accept that" in reply.json()["error"]
    )


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("text/html, image/png;q=0.5, application/json;q=0.4", "image/png"),
        ("application/*;q=0.2, image/png;q=0.1", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("APPLICATION/OCTET-STREAM", "application/octet-stream"),
        ("application/json;q=nan, image/png", "image/png"),
    ],
)
def test_the_best_format_is_chosen(accept: str, expected: str) -> None:
    assert accepted_media_type(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=x", ",,,"])
def test_no_format_fits(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="can be application/json or image/png or"):
        accepted_media_type(accept)


def test_what_one_map_cannot_hold_is_json_where_that_is_accepted(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(Accept="image/png, application/json;q=0.5", map="unsure"))
    worker.finish(worker.hear_job())
    assert call.result().json()["map"]["kind"] == "unsure"


def test_several_accept_headers_are_one(server: Live, worker: ScriptedWorker) -> None:
    headers = [("Accept", "text/html"), ("Accept", "image/png")]
    call = Later(lambda: server.http.post("/v1/predict", content=photo(), headers=headers))
    worker.finish(worker.hear_job())
    assert call.result().headers["content-type"] == "image/png"


def test_a_bad_id_or_timeout_is_a_400(server: Live) -> None:
    for headers in ({"X-Request-Id": "x" * 200}, {"X-Request-Timeout-Seconds": "-1"}):
        assert server.http.post("/v1/predict", content=photo(), headers=headers).status_code == 400


def test_too_many_open_requests_are_refused(server: Live, worker: ScriptedWorker) -> None:
    calls = [Later(server.predict) for _ in range(4)]
    specs = [worker.hear_job() for _ in calls]
    assert server.metric("anytime_inflight_requests") == 4 and server.metric("anytime_queue_depth") == 4
    reply = server.predict()
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
    for spec in specs:
        worker.finish(spec)
    assert [call.result().status_code for call in calls] == [200] * 4


def test_a_request_takes_no_place_before_its_image_is_there(server: Live, worker: ScriptedWorker) -> None:
    head = b"POST /v1/predict?deadline_ms=20000 HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 100000\r\n\r\nabc"
    with ExitStack() as until_hung_up:
        for _ in range(5):
            until_hung_up.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(head)
        server.wait_for(lambda: server.metric("anytime_inflight_requests") == 5)
        assert server.metric("anytime_seated_requests") == 0  # what `--max-open` limits
        call = Later(server.predict)
        spec = worker.hear_job()
        assert server.metric("anytime_seated_requests") == 1
        worker.finish(spec)
        assert call.result().status_code == 200
    server.wait_for(lambda: server.metric("anytime_inflight_requests") == 0)


def test_paths_and_methods_that_are_not_there(server: Live) -> None:
    reply = server.http.get("/v1/nothing")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    reply = server.http.get("/v1/predict")
    assert (reply.status_code, reply.json()["code"], reply.headers["allow"]) == (405, "method_not_allowed", "POST")
    reply = server.http.post("/v1/requests/mine")
    assert reply.status_code == 405 and reply.headers["allow"] == "DELETE, GET" and "use DELETE, GET" in reply.text
    assert server.http.post("/docs").headers["allow"]


def test_models(server: Live) -> None:
    assert server.predict(deadline_ms=0.1).status_code == 504
    listed = server.http.get("/v1/models").json()
    assert listed["default"] == SEGMENTATION and [model["name"] for model in listed["models"]] == [POSE, SEGMENTATION]
    found = server.http.get(f"/v1/models/{SEGMENTATION}").json()
    learnt, without_answer = found.pop("learnt"), found.pop("without_answer")
    assert found == listed["models"][1]
    assert found["task"] == "segmentation" and found["classes"] == ["sky", "road", "car"]
    assert found["exits"][3] == {"exit": 4, "gmacs": 0.0, "seconds": 0.4}
    (cost,) = [cost for cost in learnt if cost["shape"] == list(tiny.SEGMENTATION.size)]
    assert cost["device"] == "cpu" and [found["exit"] for found in cost["exits"]] == [1, 2, 3, 4]
    assert all(0 < found["seconds"] < found["safe_seconds"] for found in cost["exits"])
    counted = {
        stop: server.metric("anytime_requests_total", model=SEGMENTATION, stop=stop) for stop in ("rejected", "no_exit")
    }
    assert without_answer == counted and counted["no_exit"] > 0
    assert server.http.get(f"/v1/models/{POSE}").json()["skeleton"][0] == [0, 1]
    assert (found["precision"], found["precision_reason"]) == ("int8", "int8 is faster")
    assert found["max_batch"] == 1
    assert server.http.get("/v1/models/nobody").status_code == 404


def test_health_names_device_and_executor(server: Live) -> None:
    assert server.http.get("/health/live").status_code == 200
    body = server.http.get("/health/ready").json()
    assert (body["ready"], body["device"], body["executor"]) == (True, "cpu", "scripted")
    assert body["chosen"][POSE] == {
        "executor": "scripted",
        "reason": "the only one",
        "precision": "int8",
        "precision_reason": "int8 is faster",
    }
    assert server.metric("anytime_worker_up", device="cpu") == 1
    assert server.metric("anytime_executor_info", model=POSE, device="cpu", executor="scripted") == 1
    assert server.metric("anytime_precision_info", model=POSE, precision="int8") == 1


def test_docs_describe_every_parameter(server: Live) -> None:
    assert server.http.get("/docs").status_code == 200
    paths = server.http.get("/openapi.json").json()["paths"]
    described = paths["/v1/predict"]["post"]
    parameters = {parameter["name"]: parameter for parameter in described["parameters"]}
    headers = {"X-Request-Id", "X-Request-Timeout-Seconds", "X-Request-Token"}
    assert set(parameters) == headers | set(QueryOptions.model_fields)
    assert parameters["deadline_ms"]["schema"] == {"type": "number", "exclusiveMinimum": 0}
    assert parameters["map"]["schema"] == {"type": "string", "enum": ["confidence", "exit", "unsure"]}
    assert (parameters["box"]["in"], parameters["box"]["schema"]) == ("query", {"type": "string"})
    assert parameters["classes"]["schema"] == {"type": "string"}
    assert all(parameter["description"] for parameter in parameters.values())
    answers = described["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "image/png", "application/octet-stream", "text/event-stream"}
    assert answers["application/json"]["schema"] == {"$ref": "#/components/schemas/PredictionBody"}
    assert "422" not in json.dumps(paths)


def test_every_series_is_there_from_the_start(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path)) as (fresh, next_worker):
        next_worker()
        text = fresh.http.get("/metrics").text
        for name in (
            'anytime_requests_total{model="tiny-pose",protocol="websocket",stop="disconnected"} 0.0',
            'anytime_exits_reached_total{exit="0",model="tiny-pose",stop="no_exit"} 0.0',
            'anytime_time_to_exit_seconds_count{exit="4",model="tiny-pose"} 0.0',
            'anytime_deadline_overrun_seconds_bucket{le="0.002",model="tiny-pose"} 0.0',
            'anytime_unsure_ratio_count{exit="1",model="tiny-pose"} 0.0',
            'anytime_macs_saved_total{model="tiny-pose"} 0.0',
            "anytime_websocket_connections 0.0",
            'anytime_worker_up{device="auto"} 0.0',
        ):
            assert name in text


def test_before_the_worker_is_ready_nothing_is_served(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path)) as (fresh, next_worker):
        next_worker()
        assert fresh.http.get("/health/live").status_code == 200
        assert fresh.http.get("/health/ready").status_code == 503
        reply = fresh.predict()
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "starting", "5")
        assert fresh.http.get("/v1/models").json()["models"][0]["exits"][0]["seconds"] is None


def test_a_dead_worker_is_replaced_and_everyone_is_answered(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path)) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        calls = [Later(lambda: server.predict(model=SEGMENTATION)) for _ in range(2)]
        first, _ = worker.hear_job(), worker.hear_job()
        worker.reach(first, 1)
        picky = Later(lambda: server.predict(model=SEGMENTATION, min_exit=2))
        worker.reach(worker.hear_job(), 1)
        server.wait_for(lambda: server.metric("anytime_queue_depth") == 1)
        worker.die()
        refused = picky.result()
        assert refused.status_code == 503 and "lost before exit 2" in refused.json()["error"]
        replies = sorted((call.result() for call in calls), key=lambda reply: reply.status_code)
        assert [reply.status_code for reply in replies] == [200, 503]
        assert (replies[0].json()["exit"], replies[0].json()["stop"]) == (1, "deadline")
        assert (replies[1].json()["code"], replies[1].headers["retry-after"]) == ("worker_lost", "5")
        assert server.metric("anytime_worker_up", device="cpu") == 0
        worker = next_worker()
        assert server.http.get("/health/ready").status_code == 503
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        call = Later(lambda: server.predict(model=SEGMENTATION))
        worker.finish(worker.hear_job())
        assert call.result().status_code == 200
        assert server.metric("anytime_worker_restarts_total") == 1
        assert server.metric("anytime_executor_info", model=SEGMENTATION) == 1
        assert server.metric("anytime_shared_memory_bytes") == 0


def test_without_memory_for_another_image_requests_are_refused(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path), shared_memory_bytes=2**20) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        call = Later(lambda: server.predict(photo(300, 400), model=SEGMENTATION))
        spec = worker.hear_job()
        reply = server.predict(photo(300, 400), model=SEGMENTATION)
        assert (reply.status_code, reply.json()["code"]) == (429, "client_limit")
        assert "more than half of the 1,048,576 bytes for all open requests" in reply.json()["error"]
        reply = server.predict(photo(500, 600), model=SEGMENTATION)
        assert (reply.status_code, reply.json()["code"]) == (413, "image_too_large")
        assert "the limit is 1,048,576 for all open requests together" in reply.json()["error"]
        worker.finish(spec)
        assert call.result().status_code == 200


def test_a_client_that_is_too_fast_is_told_to_wait(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path), client_rate=0.01, client_burst=1) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        call = Later(server.predict)
        worker.finish(worker.hear_job())
        assert call.result().status_code == 200
        reply = server.predict()
        assert (reply.status_code, reply.json()["code"]) == (429, "client_limit")
        assert 90 <= int(reply.headers["retry-after"]) <= 100


def test_quality_goes_to_a_calibrated_model(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path)) as (server, next_worker):
        worker = next_worker()
        worker.say_ready(calibrated=True)
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        call = Later(lambda: server.predict(quality=0.05))
        spec = worker.hear_job()
        assert spec.quality == 0.05
        worker.finish(spec, 2, Stop.QUALITY)
        assert call.result().json()["stop"] == "quality"


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "zlib", "utf-16"])
def test_a_form_cannot_choose_how_its_texts_are_decoded(charset: str) -> None:
    """Decoding a megabyte of Punycode would take ten seconds, in which nobody is served."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield b'--b\r\nContent-Disposition: form-data; name="a-"\r\n\r\nab-aa\r\n--b--\r\n'

    headers = Headers({"content-type": f"multipart/form-data; boundary=b; charset={charset}"})
    assert dict(asyncio.run(FormParser(headers, body(), max_files=1, max_fields=1).parse())) == {"a-": "ab-aa"}
