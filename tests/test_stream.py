"""The WebSocket, against a worker that the tests play."""

import asyncio
import base64
import json
import socket
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import live
import numpy as np
import pytest
import tiny
from hosts import host_limits_frames, host_waits_for_readers, own_host_only, same_process_only
from live import Live, ScriptedWorker, decoded, photo
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server.engine.job import Job
from server.engine.messages import Exited, Stop
from server.errors import InvalidError
from server.metrics import Metrics
from server.protocols.stream import StreamSession
from server.requests.admission import ClientLimit
from server.requests.record import RequestRecord
from server.requests.registry import RequestRegistry
from server.requests.sockets import OpenSockets
from server.requests.tracing import TraceRelay
from server.settings import Settings

SEGMENTATION = tiny.SEGMENTATION.name
POSE = tiny.POSE.name
SETTINGS = {"max_open": 4, "max_body_bytes": 200_000, "max_message_bytes": 10_000}


def predict(connection: ClientConnection, request_id: str, body: bytes | None = None, **fields: Any) -> None:
    connection.send(json.dumps({"type": "predict", "id": request_id, **fields}))
    connection.send(photo() if body is None else body)


def hear(connection: ClientConnection) -> dict[str, Any]:
    message = connection.recv(live.PATIENCE_S)
    assert isinstance(message, str)
    found: dict[str, Any] = json.loads(message)
    return found


def hear_bytes(connection: ClientConnection, count: int) -> bytes:
    message = connection.recv(live.PATIENCE_S)
    assert isinstance(message, bytes) and len(message) == count
    return message


@pytest.mark.parametrize("path", ["/v1/streams", "/", "/static/page.js", "/v1/predict"])
def test_a_handshake_at_another_path_is_a_404(server: Live, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{server.port}{path}")
    response = caught.value.response
    sentence = f"there is no WebSocket at {path}; connect to /v1/stream"
    body = {"error": sentence, "code": "not_found", "id": None}
    assert (response.status_code, json.loads(response.body)) == (404, body)


@pytest.mark.parametrize("encoding", ["png", "raw", "delta"])
def test_every_exit_in_every_encoding(server: Live, worker: ScriptedWorker, encoding: str) -> None:
    with server.connect() as connection:
        predict(connection, "a", encoding=encoding, deadline_ms=15000, map="unsure")
        spec = worker.hear_job()
        assert (worker.image(spec) == tiny.image()).all()
        accepted = hear(connection)
        assert {key: accepted[key] for key in ("type", "id", "model", "task", "exits", "deadline_ms")} == {
            "type": "accepted",
            "id": "a",
            "model": SEGMENTATION,
            "task": "segmentation",
            "exits": 4,
            "deadline_ms": 15000,
        }
        assert accepted["classes"] == ["sky", "road", "car"]
        held = held_extra = np.zeros((60, 90), np.uint8)
        for exit_index in range(1, 5):
            worker.reach(spec, exit_index)
            header = hear(connection)
            assert (header["type"], header["id"], header["exit"], header["exits"]) == ("exit", "a", exit_index, 4)
            assert header["final"] == (exit_index == 4) and header["size"] == [60, 90]
            assert header["encoding"] == encoding and header["unsure"] == 0.5 / exit_index
            held = decoded(encoding, hear_bytes(connection, header["bytes"]), held)
            held_extra = decoded(encoding, hear_bytes(connection, header["extra"]["bytes"]), held_extra)
            assert (held == live.labels(exit_index, 60, 90)).all()
            assert (held_extra == exit_index % 2).all() and header["extra"]["kind"] == "unsure"
        worker.end(spec)
        end = hear(connection)
        assert 0 < end.pop("elapsed_ms") < 15000
        assert end == {"type": "end", "id": "a", "exit": 4, "stop": "complete", "skipped": []}


def test_an_exit_that_changes_nothing_is_not_sent(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a", min_exit=2)
        spec = worker.hear_job()
        assert hear(connection)["type"] == "accepted"
        sent = []
        worker.reach(spec, 1)
        for exit_index, changed in ((2, False), (3, True), (4, False)):
            worker.reach(spec, exit_index, changed=changed, final=exit_index == 3)
            if exit_index == 4:
                worker.end(spec)
            message = hear(connection)
            if message["type"] == "exit":
                hear_bytes(connection, message["bytes"])
                sent.append((message["exit"], message["final"]))
        assert sent == [(2, False), (3, True)], "the first one is sent, whether or not it differs from exit 1"
        assert (message["type"], message["exit"], message["skipped"]) == ("end", 4, [])


def test_json_needs_no_binary_frame(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a", encoding="json", map="exit")
        spec = worker.hear_job()
        hear(connection)
        worker.finish(spec, 1)
        header = hear(connection)
        mask = decoded("png", base64.b64decode(header["mask"]["data"]), np.zeros((60, 90), np.uint8))
        assert (mask == live.labels(1, 60, 90)).all() and "bytes" not in header
        extra = base64.b64decode(header["extra"]["data"])
        assert (decoded("png", extra, mask) == 1).all() and header["extra"]["kind"] == "exit"
        assert hear(connection)["type"] == "end"


def test_keypoints_come_in_the_header(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a", model=POSE, box=[1, 2, 30, 40])
        spec = worker.hear_job()
        assert spec.box == (1, 2, 30, 40)
        assert hear(connection)["joints"][0] == "right ankle"
        worker.finish(spec, 1)
        header = hear(connection)
        assert np.array_equal(np.array(header["keypoints"], np.float32), np.full((16, 3), 1.1, np.float32))
        assert "bytes" not in header and hear(connection)["type"] == "end"


def test_many_requests_on_one_socket(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        for request_id in "abc":
            predict(connection, request_id, encoding="raw")
        specs = {spec.key: spec for spec in (worker.hear_job() for _ in range(3))}
        for exit_index in range(1, 5):
            for spec in specs.values():
                worker.reach(spec, exit_index)
        for spec in specs.values():
            worker.end(spec)
        last = dict.fromkeys("abc", 0)
        ended = set()
        while len(ended) < 3:
            message = hear(connection)
            if message["type"] == "exit":
                data = hear_bytes(connection, message["bytes"])
                assert data == live.labels(message["exit"], 60, 90).tobytes()
                assert message["exit"] > last[message["id"]] and message["id"] not in ended
                last[message["id"]] = message["exit"]
            elif message["type"] == "end":
                assert last[message["id"]] == message["exit"] == 4
                ended.add(message["id"])


def test_cancelling(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", protocol="websocket", stop="cancelled")
    with server.connect() as connection:
        predict(connection, "a")
        spec = worker.hear_job()
        assert hear(connection)["type"] == "accepted"
        worker.reach(spec, 1)
        hear_bytes(connection, hear(connection)["bytes"])
        connection.send('{"type": "cancel", "id": "a"}')
        end = hear(connection)
        assert (end["type"], end["stop"], end["exit"], end["skipped"]) == ("end", "cancelled", 1, [])
        assert worker.hear_cancel().key == spec.key
        worker.reach(spec, 2)  # finished before the worker heard of the cancel
        worker.end(spec, Stop.CANCELLED)
        connection.send('{"type": "cancel", "id": "a"}')  # it has ended: nothing is said
        predict(connection, "a")
        spec = worker.hear_job()
        assert hear(connection)["type"] == "accepted"
        worker.end(spec, Stop.NO_EXIT)
        assert hear(connection)["code"] == "no_exit"
    assert server.metric("anytime_requests_total", protocol="websocket", stop="cancelled") == before + 1


def test_ids_are_those_of_one_socket(server: Live, worker: ScriptedWorker) -> None:
    """Two sockets use the same id, and nobody finds either request over HTTP."""
    with server.connect() as first, server.connect() as second:
        specs = []
        for connection in (first, second):
            predict(connection, "1")
            specs.append(worker.hear_job())
            assert hear(connection)["type"] == "accepted"
        assert server.http.get("/v1/requests/1").status_code == server.http.delete("/v1/requests/1").status_code == 404
        first.send('{"type": "cancel", "id": "1"}')
        assert hear(first)["stop"] == "cancelled"
        assert worker.hear_cancel().key == specs[0].key
        worker.end(specs[0], Stop.CANCELLED)
        worker.end(specs[1])
        assert hear(second)["code"] == "no_exit"
    assert server.http.get("/v1/requests/1").status_code == 404


def test_a_deadline_is_tightened_and_extended(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a", deadline_ms=10_000)
        spec = worker.hear_job()
        hear(connection)
        connection.send('{"type": "deadline", "id": "a", "deadline_ms": 25000}')
        assert 14 < worker.hear_move().compute_deadline_s - spec.compute_deadline_s < 16
        connection.send('{"type": "deadline", "id": "a", "deadline_ms": 1e12}')  # lowered to the longest, 30 s
        assert 19 < worker.hear_move().compute_deadline_s - spec.compute_deadline_s < 21
        worker.reach(spec, 1)
        hear_bytes(connection, hear(connection)["bytes"])
        connection.send('{"type": "deadline", "id": "a", "deadline_ms": 1}')
        worker.hear_move()
        end = hear(connection)
        assert (end["exit"], end["stop"]) == (1, "deadline")
        worker.hear_cancel()
        worker.end(spec, Stop.CANCELLED)


def test_exits_below_min_exit_are_not_sent(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a", min_exit=3, encoding="raw")
        spec = worker.hear_job()
        hear(connection)
        worker.finish(spec, 3, Stop.DEADLINE)
        header = hear(connection)
        assert header["exit"] == 3
        hear_bytes(connection, header["bytes"])
        assert hear(connection)["skipped"] == []
        predict(connection, "a", min_exit=3)
        worker.finish(worker.hear_job(), 2, Stop.DEADLINE)
        hear(connection)
        error = hear(connection)
        assert (error["code"], error["status"]) == ("min_exit_not_reached", 504)


def test_hanging_up_cancels_everything(server: Live, worker: ScriptedWorker) -> None:
    before = server.metric("anytime_requests_total", protocol="websocket", stop="disconnected")
    with server.connect() as connection:
        predict(connection, "a")
        predict(connection, "b")
        specs = [worker.hear_job(), worker.hear_job()]
    assert {worker.hear_cancel().key, worker.hear_cancel().key} == {spec.key for spec in specs}
    for spec in specs:
        worker.end(spec, Stop.CANCELLED)
    found = server.metric("anytime_requests_total", protocol="websocket", stop="disconnected")
    assert found == before + 2


def expect_close(connection: ClientConnection, code: int) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(live.PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == code


@pytest.mark.parametrize("text", ["no JSON", "[" * 9000, "[1]", '"predict"', "{"])
def test_what_is_not_json_closes_the_socket(server: Live, text: str) -> None:
    with server.connect() as connection:
        connection.send(text)
        error = hear(connection)
        assert (error["type"], error["code"], error["id"], error["status"]) == ("error", "not_json", None, 400)
        expect_close(connection, 1003)


def test_a_message_that_is_too_long_closes_the_socket(server: Live) -> None:
    with server.connect() as connection:
        connection.send("[" * 300_000)
        error = hear(connection)
        assert (error["code"], error["status"]) == ("message_too_large", 413)
        expect_close(connection, 1009)


def test_an_image_that_is_too_large(server: Live) -> None:
    before = server.metric("anytime_requests_total", protocol="websocket", stop="invalid")
    with server.connect() as connection:
        predict(connection, "a", b"\x00" * 200_001)
        error = hear(connection)
        assert (error["code"], error["status"], error["id"]) == ("body_too_large", 413, "a")
    assert server.metric("anytime_requests_total", protocol="websocket", stop="invalid") == before + 1


@host_limits_frames
def test_an_image_that_is_not_read_at_all(server: Live) -> None:
    before = server.metric("anytime_requests_total", protocol="websocket", stop="invalid")
    with server.connect() as connection:
        predict(connection, "b", b"\x00" * 400_001)
        expect_close(connection, 1009)
    assert server.metric("anytime_requests_total", protocol="websocket", stop="invalid") == before


BAD_MESSAGES = [
    ({"type": "predict", "id": "a", "deadline_ms": -1}, "bad_parameter"),
    ({"type": "predict", "id": "a", "deadline_ms": True}, "bad_parameter"),
    ({"type": "predict", "id": "a", "encoding": "gif"}, "bad_message"),
    ({"type": "predict", "id": "a", "model": "nobody"}, "unknown_model"),
    ({"type": "predict", "id": "a", "model": 7}, "bad_parameter"),
    ({"type": "predict", "id": "a", "colour": "red"}, "bad_parameter"),
    ({"type": "predict", "id": "a", "box": {}}, "bad_box"),
    ({"type": "predict"}, "bad_message"),
    ({"type": "predict", "id": ""}, "bad_message"),
    ({"type": "predict", "id": ["a"]}, "bad_message"),
    ({"type": "explain", "id": "a"}, "bad_message"),
    ({"type": "cancel", "id": "nobody"}, "unknown_request"),
    ({"type": "deadline", "id": "nobody", "deadline_ms": 5}, "unknown_request"),
    ({"type": "deadline", "id": "a"}, "bad_message"),
    ({"id": "a"}, "bad_message"),
]


@pytest.mark.parametrize(("message", "code"), BAD_MESSAGES, ids=[json.dumps(message) for message, _ in BAD_MESSAGES])
def test_after_a_bad_message_the_socket_goes_on(
    server: Live, worker: ScriptedWorker, message: dict[str, Any], code: str
) -> None:
    with server.connect() as connection:
        connection.send(json.dumps(message))
        if message.get("type") == "predict":
            connection.send(photo())
        error = hear(connection)
        assert (error["type"], error["code"]) == ("error", code) and error["error"]
        assert error["id"] == (message.get("id") if isinstance(message.get("id"), str) else None)
        predict(connection, "good")
        spec = worker.hear_job()
        assert hear(connection)["id"] == "good"
        worker.end(spec, Stop.NO_EXIT)
        assert hear(connection)["code"] == "no_exit"


@same_process_only
def test_a_client_that_ignores_its_errors_is_turned_away(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamSession, "ERRORS", 2.0)
    monkeypatch.setattr(StreamSession, "ERROR_RATE", 1e-9)
    with server.connect() as connection:
        for _ in range(3):
            connection.send('{"type": "cancel", "id": "nobody"}')
        codes = [hear(connection)["code"] for _ in range(4)]
        assert codes == ["unknown_request"] * 3 + ["too_many_errors"]
        expect_close(connection, 1008)


def test_frames_out_of_order(server: Live) -> None:
    with server.connect() as connection:
        connection.send(photo())
        assert hear(connection)["code"] == "unexpected_binary"
        connection.send('{"type": "predict", "id": "a"}')
        connection.send('{"type": "cancel", "id": "b"}')
        assert {hear(connection)["code"], hear(connection)["code"]} == {"no_image", "unknown_request"}
        predict(connection, "c", b"text")
        error = hear(connection)
        assert (error["code"], error["status"], error["id"]) == ("not_an_image", 415, "c")


def test_a_request_is_cancelled_while_its_image_is_decoded(server: Live, decoding: threading.Event) -> None:
    with server.connect() as connection:
        predict(connection, "a")
        assert decoding.wait(live.PATIENCE_S)
        connection.send('{"type": "cancel", "id": "a"}')
        end = hear(connection)
        assert (end["type"], end["stop"], end["exit"]) == ("end", "cancelled", 0)


def test_a_deadline_is_moved_while_the_image_is_decoded(server: Live, decoding: threading.Event) -> None:
    with server.connect() as connection:
        predict(connection, "a", deadline_ms=20_000)
        assert decoding.wait(live.PATIENCE_S)
        connection.send('{"type": "deadline", "id": "a", "deadline_ms": 1}')
        assert hear(connection)["code"] == "no_exit"


def test_half_a_character_in_an_id_is_answered(server: Live) -> None:
    with server.connect() as connection:
        for kind in ("cancel", "predict"):
            connection.send(f'{{"type": "{kind}", "id": "\\ud800"}}')
            answer = hear(connection)
            assert (answer["type"], answer["code"], answer["id"]) == ("error", "bad_message", "\ud800")


def test_a_refused_image_is_dropped_while_the_client_does_not_read() -> None:
    """A request that has failed waits for its client to read the error without holding the image. While as many wait as
    may be open, no further message is read."""

    class Image:  # a weak reference to bytes is not possible
        pass

    class Socket:
        """A client that reads nothing and sends as fast as it can."""

        client = None
        headers: ClassVar[dict[str, str]] = {}
        scope: ClassVar[dict[str, Any]] = {}
        reads = 0

        def __init__(self) -> None:
            self.images: list[weakref.ref[Image]] = []

        async def accept(self) -> None:
            pass

        async def receive(self) -> dict[str, Any]:
            self.reads += 1
            if self.reads % 2:
                return {"type": "websocket.receive", "text": f'{{"type": "predict", "id": "{self.reads}", "box": 7}}'}
            image = Image()
            self.images.append(weakref.ref(image))
            return {"type": "websocket.receive", "bytes": image}

        async def send_text(self, text: str) -> None:
            await asyncio.get_running_loop().create_future()

    async def check() -> None:
        service = SimpleNamespace(
            settings=Settings(max_open=3),
            registry=RequestRegistry(Metrics({}), 3, 10),
            catalog=SimpleNamespace(served=lambda _: None),
            tracer=TraceRelay(),
            sockets=OpenSockets(8, 8, ClientLimit(0, 1)),
        )
        socket = Socket()
        running = asyncio.create_task(StreamSession(socket, service).run())  # type: ignore[arg-type]
        for _ in range(100):
            await asyncio.sleep(0)
        assert socket.reads == 7  # the header of one more than may be open
        assert [image() for image in socket.images] == [None] * 3
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(check())


def test_no_message_comes_between_a_header_and_its_maps() -> None:
    """Although other tasks run while a frame is sent."""
    sent: list[str | bytes] = []

    class Socket:
        client = None
        headers: ClassVar[dict[str, str]] = {}
        scope: ClassVar[dict[str, Any]] = {}

        async def send_text(self, text: str) -> None:
            sent.append(json.loads(text)["type"])
            await asyncio.sleep(0)

        async def send_bytes(self, data: bytes) -> None:
            sent.append(data)
            await asyncio.sleep(0)

    async def encode(*_: object) -> tuple[dict[str, Any], list[bytes]]:
        return {"type": "exit"}, [b"map", b"further map"]

    async def check() -> None:
        socket: Any = Socket()
        service: Any = SimpleNamespace(encode=encode)
        session, record = StreamSession(socket, service), RequestRecord("a", "websocket", 0.0)
        nothing: Any = None
        spec: Any = SimpleNamespace(required=1)
        reached = [Exited(1, 1, active_share=0.5, macs=10, stage_s=0.1, started_s=0.0, finished_s=0.1)]
        jobs = [Job(spec, nothing, nothing, memoryview(b""), 0.0, reached, stop=Stop.COMPLETE) for _ in range(2)]
        await asyncio.gather(
            *(session._send_exits(record, job) for job in jobs),
            session._send_error(InvalidError("no", "no"), None),
            session._send({"type": "accepted"}),
        )

    asyncio.run(check())
    assert len(sent) == 8
    for index in (index for index, kind in enumerate(sent) if kind == "exit"):
        assert sent[index + 1 : index + 3] == [b"map", b"further map"]


def test_an_image_that_never_comes_is_a_504(server: Live) -> None:
    with server.connect() as connection:
        connection.send('{"type": "predict", "id": "a", "deadline_ms": 50}')
        assert hear(connection)["code"] == "no_exit"


def test_an_id_is_open_once(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        predict(connection, "a")
        spec = worker.hear_job()
        hear(connection)
        predict(connection, "a")
        error = hear(connection)
        assert (error["code"], error["open"]) == ("duplicate_id", True)
        connection.send('{"type": "deadline", "id": "a", "deadline_ms": -1}')
        error = hear(connection)
        assert (error["code"], error["id"], error["open"]) == ("bad_parameter", "a", True)
        worker.end(spec, Stop.NO_EXIT)
        error = hear(connection)
        assert error["code"] == "no_exit" and "open" not in error


def test_a_cancel_that_crosses_a_refusal_is_not_answered(server: Live) -> None:
    with server.connect() as connection:
        predict(connection, "a", min_exit=0)
        connection.send('{"type": "cancel", "id": "a"}')
        connection.send('{"type": "cancel", "id": "b"}')
        assert [hear(connection)["code"] for _ in range(2)] == ["bad_parameter", "unknown_request"]


def test_a_refusal_is_counted_under_its_model(server: Live) -> None:
    def rejected(model: str) -> float:
        return server.metric("anytime_requests_total", model=model, protocol="websocket", stop="invalid")

    before = {model: rejected(model) for model in (SEGMENTATION, POSE, "unknown")}
    with server.connect() as connection:
        for model in (None, POSE, "nobody"):
            predict(connection, "a", model=model, min_exit=0)
            assert hear(connection)["type"] == "error"
    assert {model: rejected(model) - before[model] for model in before} == {SEGMENTATION: 1, POSE: 1, "unknown": 1}


def test_too_many_open_requests_are_refused(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        for number in range(4):
            predict(connection, str(number))
        specs = [worker.hear_job() for _ in range(4)]
        assert {hear(connection)["type"] for _ in range(4)} == {"accepted"}
        predict(connection, "one more")
        error = hear(connection)
        assert (error["code"], error["retry_after_s"], error["id"]) == ("overloaded", 1, "one more")
        for spec in specs:
            worker.end(spec, Stop.NO_EXIT)
        assert {hear(connection)["code"] for _ in range(4)} == {"no_exit"}


@host_waits_for_readers
def test_a_slow_reader_gets_the_newest_exit(tmp_path: Path) -> None:
    """The maps have 9 MB, more than a socket's buffers hold, and the client reads none until all have been computed."""
    fields = {"shared_memory_bytes": 2**27, "default_model": SEGMENTATION}
    with live.scripted(live.write_configs(tmp_path), **fields) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        with server.connect(sock=raw, max_queue=1, compression=None) as connection:
            predict(connection, "a", photo(3000, 3000, "JPEG"), encoding="raw", deadline_ms=30_000)
            worker.finish(worker.hear_job())
            server.wait_for(lambda: server.metric("anytime_time_to_exit_seconds_count", exit="4") == 1)
            assert hear(connection)["type"] == "accepted"
            sent = []
            while (message := hear(connection))["type"] == "exit":
                sent.append(message["exit"])
                data = hear_bytes(connection, 9_000_000)
                assert data == live.labels(message["exit"], 3000, 3000).tobytes()
            assert message["skipped"] and sent[-1] == message["exit"] == 4
            assert sorted(sent + message["skipped"]) == [1, 2, 3, 4]


def test_too_many_sockets_and_too_fast_clients_are_turned_away(tmp_path: Path) -> None:
    fields = {"max_sockets": 1, "client_rate": 0.001, "client_burst": 1}
    with live.scripted(live.write_configs(tmp_path), **fields) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        with server.connect() as first:
            with server.connect() as second:
                assert hear(second)["code"] == "overloaded"
                expect_close(second, 1013)
            predict(first, "a")
            worker.finish(worker.hear_job(), 1)
            assert hear(first)["type"] == "accepted"
        server.wait_for(lambda: server.metric("anytime_websocket_connections") == 0)
        with server.connect() as third:
            assert hear(third)["code"] == "client_limit"
            expect_close(third, 1008)


@own_host_only
def test_a_client_that_does_not_read_holds_up_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has finished with it, and the server shuts down without it."""
    monkeypatch.setattr("server.app.CLOSE_S", 0.1)
    folder = live.write_configs(tmp_path, (tiny.SEGMENTATION,))
    with (
        live.scripted(folder, drain_ms=100, shared_memory_bytes=2**28, max_body_bytes=2**24) as (server, next_worker),
        socket.create_connection(("127.0.0.1", server.port)) as plain,
    ):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        engine = server.service.engine
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with server.connect(sock=plain, max_queue=1, ping_interval=None, close_timeout=0.1) as connection:
            predict(connection, "a", photo(3000, 4000, kind="JPEG"), encoding="raw", deadline_ms=20_000)
            worker.finish(worker.hear_job())
            server.wait_for(lambda: engine.jobs and not any(job.with_worker for job in engine.jobs.values()))
            assert server.http.get("/health/ready").is_success
            plain.sendall(bytes([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8]))  # a close, RFC 6455, 5.5.1
            server.host.interrupt()
            live.wait_for(lambda: not server.host.server.servers[0].is_serving())  # before it says goodbye to sockets
            server.loop.call_soon_threadsafe(plain.shutdown, socket.SHUT_RDWR)


@own_host_only
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP_USER_TIMEOUT exists on Linux only")
def test_a_client_that_reads_nothing_for_long_frees_what_it_holds(tmp_path: Path) -> None:
    folder = live.write_configs(tmp_path, (tiny.SEGMENTATION,))
    limits = {"shared_memory_bytes": 2**28, "max_body_bytes": 2**24, "unread_timeout_s": 0.2}
    with (
        live.scripted(folder, **limits) as (server, next_worker),
        socket.create_connection(("127.0.0.1", server.port)) as plain,
    ):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with server.connect(sock=plain, max_queue=1, ping_interval=None, close_timeout=0.1) as connection:
            predict(connection, "a", photo(3000, 4000, kind="JPEG"), encoding="raw", deadline_ms=20_000)
            worker.finish(worker.hear_job())
            server.wait_for(lambda: server.metric("anytime_websocket_connections") == 0)
            assert server.metric("anytime_inflight_requests") == server.metric("anytime_shared_memory_bytes") == 0
            plain.shutdown(socket.SHUT_RDWR)


@own_host_only
def test_a_server_that_drains_finishes_what_is_open(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path), default_model=SEGMENTATION) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").status_code == 200)
        with server.connect() as connection:
            predict(connection, "a")
            spec = worker.hear_job()
            assert hear(connection)["type"] == "accepted"
            server.host.interrupt()
            server.wait_for(lambda: server.http.get("/health/ready").status_code == 503)
            assert server.http.get("/health/ready").json()["state"] == "draining"
            reply = server.predict()
            assert (reply.status_code, reply.json()["code"]) == (503, "draining")
            assert reply.headers["connection"] == "close"
            worker.finish(spec, 1, Stop.MAX_EXIT)
            hear_bytes(connection, hear(connection)["bytes"])
            assert hear(connection)["type"] == "end"
            expect_close(connection, 1001)


@own_host_only
def test_a_server_that_ends_refuses_in_words_what_still_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.__main__.LINGER_S", live.PATIENCE_S)

    def listens() -> bool:
        with suppress(ConnectionError), socket.create_connection(address):
            return True
        return False

    with live.scripted(live.write_configs(tmp_path)) as (server, next_worker):
        address = "127.0.0.1", server.port
        with socket.create_connection(address) as open_before:
            next_worker().say_ready()
            server.wait_for(lambda: server.http.get("/health/ready").is_success)
            server.http.close()
            server.host.interrupt()
            live.wait_for(lambda: not listens())
            open_before.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            reply = b"".join(iter(lambda: open_before.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.1 503") and b'"draining"' in reply
