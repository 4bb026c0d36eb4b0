"""Leaving a stream of the Python client early frees its connection, also if the wait for the `end` is interrupted."""

import asyncio

import pytest
from adpc_client.options import Options
from adpc_client.stream import AsyncStream, Stream, StreamRequest
from adpc_client.transport import Endpoint

REQUEST = StreamRequest(b"image", Options())


class Interrupted:
    """A connection and its pool. Waiting for a message is interrupted by `KeyboardInterrupt`."""

    endpoint = Endpoint("http://localhost:1")

    def __init__(self) -> None:
        self.released: list[bool] = []

    def acquire(self) -> "Interrupted":
        return self

    def send(self, message: str | bytes) -> None:
        pass

    def recv(self, timeout: float) -> str:
        raise KeyboardInterrupt

    def release(self, connection: object, reusable: bool) -> None:
        self.released.append(reusable)


class Waiting:
    """A connection and its pool, for asyncio. Waiting for a message sets `waits` and takes for ever."""

    endpoint = Interrupted.endpoint

    def __init__(self) -> None:
        self.released: list[bool] = []
        self.waits = asyncio.Event()

    async def acquire(self) -> "Waiting":
        return self

    async def send(self, message: str | bytes) -> None:
        pass

    async def recv(self) -> str:
        self.waits.set()
        return await asyncio.get_running_loop().create_future()

    async def release(self, connection: object, reusable: bool) -> None:
        self.released.append(reusable)


def test_an_interrupt_while_a_stream_is_left_frees_its_connection():
    pool = Interrupted()
    with pytest.raises(KeyboardInterrupt), Stream(pool, REQUEST):
        pass
    assert pool.released == [False]


def test_a_task_that_is_cancelled_while_it_leaves_a_stream_frees_its_connection():
    async def leave(pool: Waiting) -> None:
        async with AsyncStream(pool, REQUEST):
            pass

    async def main() -> list[bool]:
        pool = Waiting()
        task = asyncio.create_task(leave(pool))
        await pool.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pool.released

    assert asyncio.run(main()) == [False]
