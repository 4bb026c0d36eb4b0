"""The reserve of worker processes. test_server.py tests real ones."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
from live import until

from server.engine.messages import Beat, Imported, LoadPlan, Ready
from server.engine.shared_memory import nameless_file
from server.engine.worker_process import IdleProcess, Reserve
from server.scheduling.costs import CostModel, StageCost
from server.worker import __main__ as worker
from server.worker.loading import Loaded

ARENA = nameless_file("arena")
PLAN = LoadPlan({}, "cpu", "auto", 1, (), {}, arena_fd=ARENA, arena_bytes=1, log_level="INFO")


class FakeIdle:
    """Stands for a child process that waits for its plan."""

    started: list["FakeIdle"]

    def __init__(self, arena_fd: int, *, in_reserve: bool) -> None:
        self.in_reserve = in_reserve
        if len(self.started) == 4:
            raise OSError("no process left")
        assert os.path.sameopenfile(arena_fd, ARENA)
        self.arena_fd = arena_fd
        self.connection, self.worker = Pipe()
        self.ended: int | None = None
        self.process = SimpleNamespace(poll=lambda: self.ended, kill=self._kill, wait=lambda: self.ended)
        self.started.append(self)

    def _kill(self) -> None:
        self.ended = -9

    @property
    def has_plan(self) -> bool:
        return self.worker.poll()

    def has_imported(self) -> bool:
        return IdleProcess.has_imported(self)  # type: ignore[arg-type]


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
        assert (
            len(started) == 1
            and started[0].has_plan
            and not started[0].in_reserve
            and first.connection is started[0].connection
        )
        await until(lambda: len(started) == 2)
        assert not started[1].has_plan and started[1].in_reserve
        started[1].worker.send(Imported())
        assert reserve(PLAN).connection is started[1].connection and started[1].has_plan
        await until(lambda: len(started) == 3)
        started[2].worker.send(Imported())
        started[2].ended = -9
        reserve(PLAN)
        assert not started[2].has_plan and started[3].has_plan
        await until(lambda: "no process left" in caplog.text)  # the reserve could not be filled, which is no error

    asyncio.run(check())


def test_a_process_that_still_imports_is_kept_for_later(started: Any) -> None:
    """It imports only while a core is idle: a worker that waited for it could wait for long."""

    async def check() -> None:
        reserve = Reserve(1)
        reserve(PLAN)
        await until(lambda: len(started) == 2)
        assert reserve(PLAN).connection is started[2].connection and started[2].has_plan and not started[1].has_plan
        started[1].worker.send(Imported())
        assert reserve(PLAN).connection is started[1].connection and started[1].has_plan

    asyncio.run(check())


def test_a_process_that_ends_while_it_imports_is_not_taken() -> None:
    ours, theirs = Pipe()
    idle = FakeIdle.__new__(FakeIdle)
    idle.connection = ours
    assert not idle.has_imported()
    theirs.close()
    assert not idle.has_imported()


def test_a_reserve_that_is_filled_while_the_server_ends_inherits_the_arena_and_nothing_else(started: Any) -> None:
    """The arena's number may name another file by then."""

    async def check() -> None:
        arena_fd = os.dup(ARENA)
        Reserve(1)(replace(PLAN, arena_fd=arena_fd))
        os.close(arena_fd)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert ours.fileno() == arena_fd
            await until(lambda: len(started) == 2)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(started[1].arena_fd)  # only the process has it now

    asyncio.run(check())


def test_a_reserve_that_is_closed_leaves_neither_processes_nor_descriptors(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host than `python -m server` goes on after the application has ended."""

    async def check() -> None:
        reserve = Reserve(1)
        reserve(PLAN)
        await until(lambda: len(started) == 2)
        monkeypatch.setattr(Reserve, "AFTER_S", 3600.0)
        reserve(PLAN)
        waiting, ((timer, arena_fd),) = started[1], reserve._due.items()
        assert os.path.samestat(os.fstat(arena_fd), os.fstat(ARENA))
        reserve.close()
        assert timer.cancelled()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(arena_fd)
        assert waiting.ended == -9 and waiting.connection.closed and started[0].ended is None, "workers go on"
        reserve.close()

    asyncio.run(check())


def test_a_worker_steps_back_and_never_forward() -> None:
    code = (
        "import os; from server.worker.__main__ import step_back, NICE; step_back(); print(os.nice(0)); "
        "os.nice(10 - os.nice(0)); step_back(); print(os.nice(0) == 10, NICE < 10)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) >= 5 and found[1:] == ["True", "True"]


def test_a_worker_is_told_its_own_number_of_the_arena(started: Any) -> None:
    async def check() -> None:
        reserve = Reserve(1)
        reserve(PLAN)
        await until(lambda: len(started) == 2)
        started[1].worker.send(Imported())
        reserve(PLAN)
        assert [idle.worker.recv().arena_fd for idle in started] == [ARENA, started[1].arena_fd]
        assert started[1].arena_fd != ARENA

    asyncio.run(check())


def test_without_a_reserve_every_worker_gets_a_new_process(started: Any) -> None:
    async def check() -> None:
        reserve = Reserve(0)
        for number in range(3):
            reserve(PLAN)
            await asyncio.sleep(0.0)
            assert len(started) == number + 1 and started[-1].has_plan

    asyncio.run(check())


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="threads have scheduling policies of their own on Linux")
def test_a_process_in_reserve_imports_while_a_core_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its import steps back, since no thread may raise its priority again."""
    ours, theirs = Pipe()
    found: list[tuple[str, int]] = []

    def imported(name: str) -> None:
        found.append((name, os.sched_getscheduler(threading.get_native_id())))

    monkeypatch.setattr(worker, "import_module", imported)
    ours.send(PLAN)
    assert worker.load_plan(theirs, in_reserve=False) == PLAN and not found  # it has something to do at once

    def plan_once_imported() -> None:
        assert ours.recv() == Imported()
        ours.send(PLAN)

    with ThreadPoolExecutor(1) as front_end:
        told = front_end.submit(plan_once_imported)
        assert worker.load_plan(theirs, in_reserve=True) == PLAN
        told.result()
    assert found == [("server.worker.loading", os.SCHED_IDLE), ("server.worker.process", os.SCHED_IDLE)]
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER


def test_a_process_in_reserve_imports_at_the_least_priority_where_the_policy_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError("no")

    ours, theirs = Pipe()
    priorities: list[Any] = []
    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    monkeypatch.setattr(os, "setpriority", lambda *priority: priorities.append(priority))
    monkeypatch.setattr(worker, "import_module", lambda name: None)
    worker.import_at_leisure(theirs)
    assert priorities == [(os.PRIO_PROCESS, threading.get_native_id(), 19)] and ours.recv() == Imported()
    ours.close()
    worker.import_at_leisure(theirs)  # the front end is gone


def test_a_worker_begins_with_what_the_one_before_it_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs and the batches of its plan, and what is known of its models, reach who needs them; it then steps back,
    and is ready."""
    known = (StageCost("m", 1, (64, 96), 0.1, 0.0, 1.0),)
    plan = replace(PLAN, known=known, max_batches={"m": 4})
    model: Any = SimpleNamespace(device="cpu", executor="scripted")
    steps: list[Any] = []

    class FakeWorker:
        def __init__(self, connection: Any, memory: Any, models: Any, scheduler: Any) -> None:
            steps.append((memory, models["m"].max_batch, scheduler.costs.snapshot()))

        def run(self) -> None:
            steps.append("run")

    def warm_up(name: str, warmed: Any, costs: CostModel, progress: Any, max_batch: int) -> int:
        steps.append((name, warmed, costs.snapshot(), max_batch))
        return 2

    loaded = {"m": Loaded(model, gains="gains")}  # type: ignore[arg-type]
    monkeypatch.setattr("server.worker.loading.load_models", lambda *_: loaded)
    monkeypatch.setattr("server.worker.loading.warm_up", warm_up)
    monkeypatch.setattr("server.worker.loading.facts", lambda name, found, *_: found.max_batch)
    monkeypatch.setattr("server.worker.process.Worker", FakeWorker)
    monkeypatch.setattr("server.scheduling.gains.GainModel", steps.append)
    monkeypatch.setattr(worker, "attach", lambda *arena: arena)
    for name in ("step_back", "collect_seldom"):
        monkeypatch.setattr(worker, name, lambda name=name: steps.append(name))
    monkeypatch.setattr(worker, "configure_logging", lambda *given: steps.append(given))
    ours, theirs = Pipe()
    ours.send(plan)
    assert worker.serve(theirs, in_reserve=False) == 0
    while not isinstance(said := ours.recv(), Ready):
        assert said == Beat()
    assert said == Ready("cpu", "scripted", {"m": 2})
    assert steps == [
        ("INFO", "plain"),
        ("m", model, known, 4),
        "step_back",
        "collect_seldom",
        {"m": "gains"},
        ((ARENA, 1), 2, known),
        "run",
    ]
