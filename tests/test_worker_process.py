"""The supervisor, with workers that are pipes."""

import asyncio
import os
from collections.abc import Coroutine
from multiprocessing import Pipe
from typing import Any

import live
import pytest

from server.engine.messages import Beat, Cancel, Ended, Event, MoveDeadline, Stop
from server.engine.worker_process import Supervisor, WorkerProcess, _frame


class PipeWorker:
    def __init__(self) -> None:
        self.connection, self.other = Pipe()

    def kill(self) -> None:
        self.connection.close()
        self.other.close()


class Watched:
    """A supervisor, and what it did."""

    def __init__(self, failures: int = 0, busy: bool = False) -> None:
        self.workers: list[PipeWorker] = []
        self.heard: list[Event] = []
        self.losses = 0
        self.busy = busy
        self.failures = failures
        self.supervisor = Supervisor(self._launch, self.heard.append, self._lost, lambda: self.busy)
        self.supervisor.BACKOFF_S = (0.0, 0.001, 0.002)  # type: ignore[misc]

    def _launch(self) -> WorkerProcess:
        if self.failures:
            self.failures -= 1
            raise OSError("no process left")
        self.workers.append(PipeWorker())
        return self.workers[-1]

    def _lost(self) -> None:
        self.losses += 1


async def until(condition: Any) -> None:
    async with asyncio.timeout(live.PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


def test_events_are_heard_and_commands_are_said() -> None:
    async def check() -> None:
        watched = Watched()
        watched.supervisor.start()
        worker = watched.workers[0]
        worker.other.send(Beat())
        worker.other.send(Beat())
        await until(lambda: len(watched.heard) == 2)
        watched.supervisor.say(Cancel(7))
        assert worker.other.recv() == Cancel(7)
        watched.supervisor.stop()
        assert worker.connection.closed and watched.losses == 1

    run(check())


def test_a_worker_that_died_is_replaced_again_and_again() -> None:
    async def check() -> None:
        watched = Watched()
        watched.supervisor.start()
        for deaths in range(1, 5):
            watched.workers[-1].other.close()
            await until(lambda deaths=deaths: len(watched.workers) == deaths + 1)
            assert watched.losses == deaths
        watched.supervisor.stop()
        assert watched.supervisor.starts == 5

    run(check())


def test_a_worker_that_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        watched = Watched(failures=2)
        watched.supervisor.start()
        await until(lambda: watched.workers)
        watched.supervisor.stop()

    run(check())
    assert "no process left" in caplog.text


def test_a_worker_that_cannot_be_started_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def check() -> None:
        watched = Watched(failures=5)
        monkeypatch.setattr(watched.supervisor, "_start_later", lambda: waits.append(watched.supervisor._quick_deaths))
        for _ in range(5):
            watched.supervisor.start()

    run(check())
    assert waits == [1, 2, 3, 4, 5]


def test_commands_wait_while_the_worker_does_not_read() -> None:
    async def check() -> None:
        watched = Watched()
        watched.supervisor.start()
        worker = watched.workers[0]
        told = [Cancel(key) for key in range(5000)]
        for command in told:
            watched.supervisor.say(command)
        for second in range(1000):
            watched.supervisor.say(MoveDeadline(7, float(second)))
        assert 0 < len(watched.supervisor._unsent) < len(told)
        heard: list[object] = []

        def hear() -> bool:
            while worker.other.poll():
                heard.append(worker.other.recv())
            return heard[-1:] == [MoveDeadline(7, 999.0)]

        await until(hear)
        assert heard == [*told, MoveDeadline(7, 999.0)]
        watched.supervisor.say(Cancel(1))
        assert worker.other.recv() == Cancel(1)
        watched.supervisor.stop()

    run(check())


def test_events_may_come_in_parts_and_be_large() -> None:
    async def check() -> None:
        watched = Watched()
        watched.supervisor.start()
        told = [Ended(key, Stop.ERROR, error="x" * 300_000) for key in range(3)]
        stream = b"".join(_frame(event) for event in told)  # type: ignore[arg-type]
        number = watched.workers[0].other.fileno()
        at = 0
        while at < len(stream):
            at += os.write(number, stream[at : at + 10_000])
            for _ in range(3):
                await asyncio.sleep(0)
        await until(lambda: len(watched.heard) == 3)
        assert watched.heard == told and not watched.losses
        watched.supervisor.stop()

    run(check())


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_is_ended_when_it_has_work_and_says_nothing(busy: bool) -> None:
    async def check() -> None:
        watched = Watched(busy=busy)
        watched.supervisor.SILENCE_S = 0.01  # type: ignore[misc]
        watched.supervisor.start()
        await (until(lambda: watched.losses) if busy else asyncio.sleep(0.05))
        assert bool(watched.losses) == busy
        watched.supervisor.stop()

    run(check())


def test_speaking_to_a_worker_that_is_gone_is_no_error() -> None:
    async def check() -> None:
        watched = Watched()
        watched.supervisor.say(Cancel(1))
        watched.supervisor.start()
        watched.workers[0].other.close()
        watched.supervisor.say(Cancel(1))
        watched.supervisor.stop()

    run(check())
