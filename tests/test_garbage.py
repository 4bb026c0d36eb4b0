"""Requests leave no reference cycles behind, which only Python's garbage collector could free, in a pause."""

import asyncio
import gc
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import live
import pytest
from hosts import own_host_only
from live import Later, Live, ScriptedWorker, photo
from websockets.sync.client import ClientConnection

from server.engine.messages import Stop
from server.garbage import YOUNG_OBJECTS, collect_seldom

pytestmark = own_host_only

Scene = Callable[[Live, ScriptedWorker], None]
OURS = ("server.", "uvicorn.")


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
    assert server.predict(deadline_ms=0.1).status_code in (503, 504)
    worker.finish(job)
    assert before.result().status_code == 200


def invalid(server: Live, worker: ScriptedWorker) -> None:
    assert server.predict(b"no image").status_code == 415
    assert server.predict(model="none").status_code == 404
    assert server.predict(deadline_ms=-1).status_code == 400


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
        for model in ("none", "tiny-segmentation"):
            connection.send(json.dumps({"type": "predict", "id": model, "model": model}))
            connection.send(photo())
        worker.finish(worker.hear_job())
        kinds = [json.loads(frame)["type"] for frame in heard(connection) if isinstance(frame, str)]
        assert kinds[:2] == ["error", "accepted"] and kinds[-1] == "end"


def heard(connection: ClientConnection) -> Iterator[str | bytes]:
    """The frames of a socket up to the end of a request."""
    for frame in iter(lambda: connection.recv(live.PATIENCE_S), None):
        yield frame
        if isinstance(frame, str) and json.loads(frame)["type"] == "end":
            return


@contextmanager
def garbage_kept() -> Iterator[list[str]]:
    """After the block, the list has the types of our objects that only the garbage collector could free."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = {f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage}
        found += sorted(kind for kind in kinds if kind.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "scene", [answered, answered_with_events, refused_by_its_head, invalid, failed, hung_up, streamed]
)
def test_requests_leave_no_reference_cycles(server: Live, worker: ScriptedWorker, scene: Scene) -> None:
    scene(server, worker)  # whatever is imported or cached at the first time
    connections = len(server.host.app.state.gate.peers)  # `server.http` keeps some
    with garbage_kept() as found:
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
