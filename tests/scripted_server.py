"""A WebSocket server that says what a test tells it to, for the things that the real server never does."""

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.sync.server import ServerConnection, serve

MAP = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)


def exit_header(request_id: str, number: int, payload: bytes, encoding: str = "raw", **more: Any) -> str:
    header = {
        "type": "exit",
        "id": request_id,
        "exit": number,
        "exits": 4,
        "final": number == 4,
        "elapsed_ms": 10.0 * number,
    }
    return json.dumps(
        {**header, "unsure": 0.5, "encoding": encoding, "size": list(MAP.shape), "bytes": len(payload), **more}
    )


def accepted(request_id: str) -> str:
    return json.dumps(
        {"type": "accepted", "id": request_id, "model": "tiny", "classes": ["a", "b", "c"], "palette": [[1, 2, 3]] * 3}
    )


def end(request_id: str, number: int, stop: str = "complete") -> str:
    return json.dumps(
        {"type": "end", "id": request_id, "exit": number, "stop": stop, "elapsed_ms": 41.5, "skipped": [2]}
    )


def delta(array: NDArray[np.uint8], held: NDArray[np.uint8] | None = None) -> bytes:
    return zlib.compress((array if held is None else array ^ held).tobytes())


class Talk:
    """One connection of the scripted server. `message` and `image` are those of the latest `predict`.

    `unheard` holds the messages that came before it and that the script did not hear.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.message: dict[str, Any] = {}
        self.image = b""
        self.unheard: list[dict[str, Any]] = []

    @property
    def id(self) -> str:
        return str(self.message["id"])

    def hear(self) -> dict[str, Any]:
        """The next JSON message."""
        return dict(json.loads(self.connection.recv()))

    def say(self, *frames: str | bytes) -> None:
        for frame in frames:
            self.connection.send(frame)

    def exit(self, number: int, array: NDArray[np.uint8] = MAP) -> None:
        self.say(exit_header(self.id, number, array.tobytes()), array.tobytes())


class Scripted:
    """`url` of the server, and how many connections it has accepted (each is counted before its handshake ends)."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0


@contextmanager
def scripted(script: Callable[[Talk], None]) -> Iterator[Scripted]:
    """Serve `script`, which is called once for each `predict` after the image has come."""
    state = Scripted()

    def count(_connection: ServerConnection, _request: Request) -> None:
        state.connections += 1

    def handle(connection: ServerConnection) -> None:
        talk = Talk(connection)
        try:
            while True:
                message = talk.hear()
                if message["type"] == "predict":
                    talk.message, talk.image = message, bytes(connection.recv())
                    script(talk)
                    talk.unheard = []
                else:
                    talk.unheard.append(message)
        except ConnectionClosed:
            pass

    with serve(handle, "127.0.0.1", 0, process_request=count) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
