"""What a client may ask of an answer: events, classes, run lengths, its own text, and a deadline from the capture."""

import base64
import io
import json
import re
import socket
import time
import zlib

import live
import numpy as np
import pytest
import tiny
from live import Later, Live, ScriptedWorker, photo
from PIL import Image
from test_rle import decoded

from server.engine.messages import Stop

SEGMENTATION = tiny.SEGMENTATION.name
POSE = tiny.POSE.name
EVENTS = "text/event-stream"


def events(text: str) -> list[dict[str, object]]:
    """The data of every event, whose name must be its type."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        message = json.loads(data.removeprefix("data: "))
        assert name == f"event: {message['type']}"
        found.append(message)
    return found


def mask_of(message: dict[str, object]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(message["mask"]["data"]))))


def test_every_exit_is_an_event(server: Live, worker: ScriptedWorker) -> None:
    with server.http.stream(
        "POST", "/v1/predict", params={"meta": "frame 7"}, content=photo(), headers={"Accept": EVENTS}
    ) as reply:
        lines = reply.iter_lines()
        spec = worker.hear_job()
        assert reply.headers["content-type"].startswith(EVENTS) and "content-length" not in reply.headers
        assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-store", "no")
        accepted = json.loads([next(lines) for _ in range(3)][1].removeprefix("data: "))
        for exit_index in (1, 2):
            worker.reach(spec, exit_index)
            _, data, _ = [next(lines) for _ in range(3)]
            message = json.loads(data.removeprefix("data: "))
            assert (message["exit"], message["final"], message["encoding"]) == (exit_index, False, "json")
            assert (mask_of(message) == live.labels(exit_index, 60, 90)).all() and message["elapsed_ms"] > 0
            assert (message["id"], message["meta"]) == (accepted["id"], "frame 7")
        worker.end(spec, Stop.DEADLINE)
        (end,) = events("\n".join(lines) + "\n")
    assert accepted["classes"] == ["sky", "road", "car"] and accepted["meta"] == "frame 7"
    assert (end["type"], end["exit"], end["stop"], end["skipped"]) == ("end", 2, "deadline", [])


def test_a_pose_comes_as_events_too(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(model=POSE, Accept=EVENTS))
    worker.finish(worker.hear_job(), 4)
    found = events(call.result().text)
    assert found[-2]["keypoints"] == pytest.approx(np.full((16, 3), 4.1)) and found[-1]["stop"] == "complete"


def test_what_is_refused_before_the_first_event_is_an_error_of_http(server: Live) -> None:
    reply = server.predict(b"no image", Accept=EVENTS)
    assert (reply.status_code, reply.json()["code"]) == (415, "not_an_image")
    assert server.predict(min_exit=9, Accept=EVENTS).status_code == 400


def test_what_fails_later_is_the_last_event(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", stop="no_exit")
    call = Later(lambda: server.predict(min_exit=3, deadline_ms=15000, Accept=EVENTS))
    spec = worker.hear_job()
    worker.reach(spec, 1)
    worker.end(spec, Stop.DEADLINE)
    reply = call.result()
    accepted, error = events(reply.text)
    assert reply.status_code == 200 and accepted["type"] == "accepted"
    assert (error["code"], error["status"], error["id"]) == ("min_exit_not_reached", 504, accepted["id"])
    assert server.metric("anytime_requests_total", stop="no_exit") == before + 1


def test_a_cancelled_request_ends_its_events(server: Live, worker: ScriptedWorker) -> None:
    call = Later(
        lambda: server.http.post("/v1/predict", content=photo(), headers={"Accept": EVENTS, "X-Request-Id": "mine"})
    )
    spec = worker.hear_job()
    worker.reach(spec, 1)
    server.wait_for(lambda: server.http.get("/v1/requests/mine").json()["exit"] == 1)
    assert server.http.delete("/v1/requests/mine").json()["stop"] == "cancelled"
    worker.hear_cancel()
    worker.end(spec, Stop.CANCELLED)
    last = events(call.result().text)[-1]
    assert (last["type"], last["stop"], last["exit"]) == ("end", "cancelled", 1)


def test_who_hangs_up_on_its_events_frees_the_worker(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", stop="disconnected")
    body = photo()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nAccept: {EVENTS}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        spec = worker.hear_job()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    worker.hear_cancel()
    worker.end(spec, Stop.CANCELLED)
    server.wait_for(lambda: server.metric("anytime_requests_total", stop="disconnected") == before + 1)


@pytest.mark.parametrize("accept", [EVENTS + ";q=0, */*", "application/json, " + EVENTS + ";q=0.5"])
def test_events_are_sent_to_those_who_prefer_them(server: Live, worker: ScriptedWorker, accept: str) -> None:
    call = Later(lambda: server.predict(Accept=accept))
    worker.finish(worker.hear_job())
    assert call.result().headers["content-type"] == "application/json"


def test_run_lengths_are_those_of_coco(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(encoding="rle"))
    worker.finish(worker.hear_job())
    mask, expected = call.result().json()["mask"], live.labels(4, 60, 90)
    assert mask["format"] == "rle" and mask["classes"] == ["sky", "road", "car"]
    assert list(mask["data"]) == [str(number) for number in np.unique(expected)]
    for number, runs in mask["data"].items():
        assert runs["size"] == [60, 90]
        assert (decoded(runs["counts"], 60, 90) == (expected == int(number))).all()


def test_run_lengths_are_only_in_json(server: Live) -> None:
    assert server.predict(encoding="rle", Accept="image/png").json()["code"] == "not_acceptable"


def test_a_stream_sends_run_lengths(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        connection.send(json.dumps({"type": "predict", "id": "a", "encoding": "rle", "classes": ["car"], "meta": "m"}))
        connection.send(photo())
        spec = worker.hear_job()
        accepted = json.loads(connection.recv())
        worker.finish(spec, 1)
        message = json.loads(connection.recv())
        assert json.loads(connection.recv())["type"] == "end"
    assert accepted["meta"] == message["meta"] == "m" and list(message["mask"]["data"]) == ["2"]


@pytest.mark.parametrize("classes", ["road,car", "1,2", "car, 1"])
def test_other_classes_are_left_out(server: Live, worker: ScriptedWorker, classes: str) -> None:
    expected = live.labels(4, 60, 90)
    expected = np.where(expected == 0, 255, expected)
    assert set(np.unique(expected)) == {1, 2, 255}
    for accept in ("application/octet-stream", "image/png"):
        call = Later(lambda accept=accept: server.predict(classes=classes, Accept=accept))
        worker.finish(worker.hear_job())
        content = call.result().content
        if accept == "image/png":
            image = Image.open(io.BytesIO(content))
            assert (np.asarray(image) == expected).all()
            assert (np.asarray(image.convert("RGBA"))[..., 3] == np.where(expected == 255, 0, 255)).all()
        else:
            assert (np.frombuffer(content, np.uint8).reshape(60, 90) == expected).all()


def test_a_stream_leaves_other_classes_out(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        header = {"type": "predict", "id": "a", "encoding": "raw", "classes": "road"}
        connection.send(json.dumps(header))
        connection.send(photo())
        worker.finish(worker.hear_job(), 1)
        messages = [connection.recv() for _ in range(4)]
    labels = live.labels(1, 60, 90)
    assert messages[2] == np.where(labels == 1, labels, 255).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (
            {"classes": "road,boat"},
            "tiny-segmentation has no class 'boat'; it has sky, road, car, or their numbers from 0",
        ),
        ({"classes": "3"}, "tiny-segmentation has no class '3'; it has sky, road, car, or their numbers from 0"),
        ({"classes": "road", "model": POSE}, "classes is for segmentation; tiny-pose does pose: leave it out"),
    ],
)
def test_classes_that_a_model_lacks_are_refused(server: Live, query: dict[str, str], sentence: str) -> None:
    reply = server.predict(**query)
    assert (reply.status_code, reply.json()["error"]) == (400, sentence)


@pytest.mark.parametrize("encoding", ["raw", "delta"])
def test_a_region_is_computed_and_answered_alone(server: Live, worker: ScriptedWorker, encoding: str) -> None:
    """The image is 60 x 90: rows 0 to 52 and columns 28 to 90 are computed."""
    expected = np.full((60, 90), 255, np.uint8)
    with server.connect() as connection:
        connection.send(json.dumps({"type": "predict", "id": "a", "encoding": encoding, "roi": [60, 10, 40, 10]}))
        connection.send(photo())
        spec = worker.hear_job()
        assert (spec.layout.height, spec.layout.width) == (52, 62)
        assert (worker.image(spec) == tiny.image()[:52, 28:]).all()
        assert json.loads(connection.recv())["type"] == "accepted"
        held = np.zeros((60, 90), np.uint8)
        for exit_index in (1, 2):
            worker.reach(spec, exit_index)
            assert json.loads(connection.recv())["size"] == [60, 90]
            data = connection.recv()
            if encoding == "delta":
                held ^= np.frombuffer(zlib.decompress(data), np.uint8).reshape(60, 90)
            else:
                held = np.frombuffer(data, np.uint8).reshape(60, 90)
            expected[10:20, 60:] = live.labels(exit_index, 52, 62)[10:20, 32:]
            assert (held == expected).all()
        worker.end(spec, Stop.DEADLINE)
        assert json.loads(connection.recv())["type"] == "end"


def test_a_region_over_http(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(roi="60,10,40,10", map="unsure"))
    worker.finish(worker.hear_job(), 1)
    body = call.result().json()
    assert body["size"] == [60, 90]
    assert (mask_of(body)[:10] == 255).all() and (mask_of(body)[10:20, 60:] != 255).all()
    extra = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["map"]["data"]))))
    assert extra.sum() == extra[10:20, 60:].sum() == 300
    for query, sentence in (
        ({"roi": "200,10,4,4"}, "lies outside the image"),
        ({"roi": "1,2,3,4", "model": POSE}, "roi is for"),
    ):
        reply = server.predict(**query)
        assert (reply.status_code, reply.json()["code"]) == (400, "bad_roi") and sentence in reply.json()["error"]


def test_meta_comes_back(server: Live, worker: ScriptedWorker) -> None:
    for accept in ("application/json", "image/png"):
        call = Later(lambda accept=accept: server.predict(meta="K\u00f6ln 7%", Accept=accept))
        worker.finish(worker.hear_job())
        reply = call.result()
        if accept == "image/png":
            assert reply.headers["x-anytime-meta"] == "K%C3%B6ln%207%25"
        else:
            assert reply.json()["meta"] == "K\u00f6ln 7%"


def test_a_deadline_counts_from_the_capture(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(deadline_ms=20000, captured_at=time.time() - 5))
    spec = worker.hear_job()
    worker.finish(spec)
    assert 14 < spec.compute_deadline_s - spec.arrived_s < 15.001
    assert 14000 < call.result().json()["deadline_ms"] < 15001


def test_a_capture_in_the_future_is_now(server: Live, worker: ScriptedWorker) -> None:
    call = Later(lambda: server.predict(deadline_ms=20000, captured_at=time.time() + 3600))
    worker.finish(worker.hear_job())
    assert call.result().json()["deadline_ms"] == 20000


@pytest.mark.parametrize(("times", "ahead_s"), [(1000, 0.0), (1, 100_000.0), (1, 1e300)])
def test_a_capture_days_in_the_future_is_refused(server: Live, times: int, ahead_s: float) -> None:
    """A time in milliseconds, or one in seconds."""
    captured_s = times * time.time() + ahead_s
    reply = server.predict(b"never decoded", deadline_ms=20000, captured_at=captured_s)
    body = reply.json()
    assert (reply.status_code, body["code"]) == (400, "bad_parameter")
    assert body["error"] == (
        f"captured_at is {captured_s:.15g}, which is more than a day after now; give the time in seconds since 1970, "
        "not in milliseconds"
    )


def test_a_stale_image_is_refused_before_it_is_decoded(server: Live) -> None:
    reply = server.predict(b"never decoded", deadline_ms=200, captured_at=time.time() - 1)
    body = reply.json()
    assert (reply.status_code, body["code"]) == (504, "stale")
    assert body["error"].endswith(
        "and it was due 200 ms after it was captured or sent; send a newer one, or give a later deadline_ms"
    )
    long_ago = server.predict(captured_at=1.0).json()["error"]
    age_ms = re.match(r"the image was (\d+) ms old on arrival", long_ago)
    assert age_ms and abs(float(age_ms[1]) / 1000 - time.time()) < 3600
    assert long_ago.endswith("; captured_at and X-Request-Start must be in seconds since 1970")
