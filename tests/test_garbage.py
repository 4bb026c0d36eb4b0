"""Requests leave no reference cycles behind, which only Python's garbage collector could free, in a pause."""

import asyncio
import gc
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CoroutineType, FrameType, FunctionType
from typing import Any

import live
import pytest
from hosts import own_host_only
from live import Later, Live, ScriptedWorker, photo
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

import server.garbage
from server.engine.messages import Stop
from server.garbage import YOUNG_OBJECTS, collect_seldom

pytestmark = own_host_only

Scene = Callable[[Live, ScriptedWorker], None]
OURS = ("server.", "uvicorn.", "websockets.server")
ROOT = str(Path(server.garbage.__file__).parent)


def answered(server: Live, worker: ScriptedWorker) -> None:
    asked = Later(server.predict)
    worker.finish(worker.hear_job())
    assert asked.result().status_code == 200


def answered_with_events(server: Live, worker: ScriptedWorker) -> None:
    asked = Later(lambda: server.predict(Accept="text/event-stream"))
    worker.finish(worker.hear_job())
    assert "event: end" in asked.result().text


def refused_by_its_head(server: Live, worker: ScriptedWorker) -> None:
    before = Later(server.predict)
    job = worker.hear_job()
    assert server.predict(deadline_ms=0.1).status_code == 503
    worker.finish(job)
    assert before.result().status_code == 200


def invalid(server: Live, worker: ScriptedWorker) -> None:
    assert server.predict(b"no image").status_code == 415
    assert server.predict(model="none").status_code == 404
    assert server.predict(deadline_ms=-1).status_code == 400


def answered_at_the_deadline(server: Live, worker: ScriptedWorker) -> None:
    asked = Later(lambda: server.predict(deadline_ms=400))
    job = worker.hear_job()
    worker.reach(job, 1)
    assert asked.result().headers["x-request-id"]
    worker.hear_cancel()
    worker.end(job, Stop.DEADLINE)


def cancelled(server: Live, worker: ScriptedWorker) -> None:
    asked = Later(lambda: server.http.post("/v1/predict", content=photo(), headers={"X-Request-Id": "mine"}))
    job = worker.hear_job()
    assert server.http.delete("/v1/requests/mine").status_code == 200
    assert asked.result().status_code == 499
    worker.hear_cancel()
    worker.end(job, Stop.CANCELLED)


def not_http(server: Live, worker: ScriptedWorker) -> None:
    heads = (b"nonsense\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n")
    for head in heads:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head)
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def failed(server: Live, worker: ScriptedWorker) -> None:
    asked = Later(server.predict)
    worker.end(worker.hear_job(), Stop.ERROR, "it broke")
    assert asked.result().status_code == 500


def hung_up(server: Live, worker: ScriptedWorker) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        body = photo()
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        job = worker.hear_job()
    worker.hear_cancel()
    worker.end(job)


def streamed(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        wrong: dict[str, Any]
        for wrong in ({"model": "none"}, {"deadline_ms": -1}):
            connection.send(json.dumps({"type": "predict", "id": "wrong", **wrong}))
            connection.send(photo())
        connection.send(json.dumps({"type": "predict", "id": "right"}))
        connection.send(photo())
        worker.finish(worker.hear_job())
        kinds = [json.loads(frame)["type"] for frame in heard(connection) if isinstance(frame, str)]
        assert kinds[:3] == ["error", "error", "accepted"] and kinds[-1] == "end"


def refused_handshake(server: Live, worker: ScriptedWorker) -> None:
    with pytest.raises(InvalidStatus), server.connect(origin="https://elsewhere.example"):
        pass


def broken_frame(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        connection.socket.sendall(b"\xff\x80" + bytes(4))
        with pytest.raises(ConnectionClosed):
            connection.recv(live.PATIENCE_S)


def heard(connection: ClientConnection) -> Iterator[str | bytes]:
    """The frames of a socket up to the end of a request."""
    for frame in iter(lambda: connection.recv(live.PATIENCE_S), None):
        yield frame
        if isinstance(frame, str) and json.loads(frame)["type"] == "end":
            return


def hung_up_socket(server: Live, worker: ScriptedWorker) -> None:
    with server.connect() as connection:
        connection.send(json.dumps({"type": "predict", "id": "a"}))
        connection.send(photo())
        job = worker.hear_job()
        connection.socket.shutdown(socket.SHUT_RDWR)
        worker.hear_cancel()
        worker.end(job, Stop.CANCELLED)


@contextmanager
def uncollected() -> Iterator[list[str]]:
    """Yields a list. After the block, it has the kinds of the objects that only the garbage collector could free."""
    found: list[str] = []
    gc.collect()
    gc.freeze()  # makes what follows faster
    gc.disable()
    try:
        yield found
        before = _kinds()
        gc.collect()
        found += sorted(before - _kinds())
    finally:
        gc.unfreeze()
        gc.enable()


def _kinds() -> Counter[str]:
    """The number of existing objects of each kind (see `_kind`) that belongs to the server or its HTTP libraries."""
    kinds = Counter(map(_kind, gc.get_objects()))
    return Counter({kind: count for kind, count in kinds.items() if kind.startswith((*OURS, ROOT))})


def _kind(each: Any) -> str:
    """The type of an object; of a frame, a function or a coroutine, where its code is."""
    kind = type(each)  # isinstance() fails for a proxy of what is gone
    for has_code, attribute in ((FrameType, "f_code"), (CoroutineType, "cr_code"), (FunctionType, "__code__")):
        if kind is has_code:
            code = getattr(each, attribute)
            return f"{code.co_filename}:{code.co_firstlineno}"
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize(
    "scene",
    [
        answered,
        answered_with_events,
        answered_at_the_deadline,
        cancelled,
        refused_by_its_head,
        invalid,
        not_http,
        failed,
        hung_up,
        streamed,
        refused_handshake,
        broken_frame,
        hung_up_socket,
    ],
)
def test_requests_leave_no_reference_cycles(server: Live, worker: ScriptedWorker, scene: Scene) -> None:
    scene(server, worker)  # whatever is imported or cached at the first time
    connections = len(server.host.app.state.gate.peers)  # `server.http` keeps some
    with uncollected() as found:
        for _ in range(3):
            scene(server, worker)
        server.wait_for(lambda: not len(server.service.registry))
        server.wait_for(lambda: len(server.host.app.state.gate.peers) <= connections)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), server.loop).result(live.PATIENCE_S)
    assert not found


def test_old_objects_are_not_scanned_again_and_new_ones_seldom() -> None:
    thresholds = gc.get_threshold()
    try:
        collect_seldom()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == (YOUNG_OBJECTS, *thresholds[1:])
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
