"""The reserve of worker processes. test_server.py tests real ones."""

import asyncio
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
from live import until

from server.engine.messages import LoadPlan
from server.engine.worker_process import Reserve

PLAN = LoadPlan({}, "cpu", "auto", 1, (), {}, arena_fd=7, arena_bytes=1, log_level="INFO")


class FakeIdle:
    """Stands for a child process that waits for its plan."""

    started: list["FakeIdle"]

    def __init__(self, arena_fd: int) -> None:
        if len(self.started) == 4:
            raise OSError("no process left")
        assert arena_fd == PLAN.arena_fd
        self.connection, self.worker = Pipe()
        self.ended: int | None = None
        self.process = SimpleNamespace(poll=lambda: self.ended)
        self.started.append(self)

    @property
    def has_plan(self) -> bool:
        return self.worker.poll()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeIdle]:
    FakeIdle.started = []
    monkeypatch.setattr("server.engine.worker_process.IdleProcess", FakeIdle)
    monkeypatch.setattr(Reserve, "AFTER_S", 0.0)
    return FakeIdle.started


def test_a_worker_takes_a_process_from_the_reserve_if_one_is_alive(started: Any, caplog: Any) -> None:
    async def check() -> None:
        reserve = Reserve(1)
        first = reserve(PLAN)
        assert len(started) == 1 and started[0].has_plan and first.connection is started[0].connection
        await until(lambda: len(started) == 2)
        assert not started[1].has_plan
        assert reserve(PLAN).connection is started[1].connection and started[1].has_plan
        await until(lambda: len(started) == 3)
        started[2].ended = -9
        reserve(PLAN)
        assert not started[2].has_plan and started[3].has_plan
        await until(lambda: "no process left" in caplog.text)  # the reserve could not be filled, which is no error

    asyncio.run(check())


def test_without_a_reserve_every_worker_gets_a_new_process(started: Any) -> None:
    async def check() -> None:
        reserve = Reserve(0)
        for number in range(3):
            reserve(PLAN)
            await asyncio.sleep(0.0)
            assert len(started) == number + 1 and started[-1].has_plan

    asyncio.run(check())
