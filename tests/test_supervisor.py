"""The supervisor, with workers that are pipes."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from multiprocessing import Pipe
from typing import Any

import pytest
from live import until

from server.engine.messages import Beat, Cancel, Event, Loading, Ping, Ready
from server.engine.supervisor import Supervisor
from server.engine.watchdog import TICK_S, Watchdog
from server.engine.worker_process import WorkerProcess

READY = Ready("cpu", "scripted", {})


class PipeWorker:
    def __init__(self) -> None:
        self.connection, self.other = Pipe()
        self.killed = self.lingers = False

    def kill(self) -> None:
        self.killed = True
        self.other.close()

    def gone(self, wait_s: float = 0.0) -> bool:
        return not self.lingers


class Watched:
    """A supervisor, and what it did."""

    def __init__(self, failures: int = 0) -> None:
        self.workers: list[PipeWorker] = []
        self.heard: list[Event] = []
        self.told: list[str] = []
        self.step_s = 0.0
        self.failures = failures
        self.supervisor = Supervisor(
            launch=self._launch,
            hear=self.heard.append,
            lost=lambda: self.told.append("lost"),
            ended=lambda: self.told.append("ended"),
            unloadable=self.told.append,
            step_s=lambda: self.step_s,
            load_s=100.0,
        )
        self.supervisor.BACKOFF_S = (0.0, 0.001, 0.002)  # type: ignore[misc]

    def _launch(self) -> WorkerProcess:
        if self.failures:
            self.failures -= 1
            raise OSError("no process left")
        self.workers.append(PipeWorker())
        return self.workers[-1]

    async def part(self, doing: str, limit_s: float) -> None:
        """Let the newest worker begin a part of its loading."""
        self.workers[-1].other.send(Loading(doing, limit_s))
        await until(lambda: self.supervisor._watchdog.part.doing == doing)

    async def ready(self) -> None:
        """Let the newest worker be ready."""
        self.workers[-1].other.send(READY)
        await until(lambda: self.heard[-1:] == [READY])

    def wait(self, seconds: float) -> None:
        """What the supervisor does while the time passes."""
        for _ in range(round(seconds / TICK_S)):
            self.supervisor._watch()


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor watches when the tests say so."""
    monkeypatch.setattr("server.engine.supervisor.TICK_S", 3600.0)


def run(check: Callable[[Watched], Coroutine[Any, Any, None]], failures: int = 0) -> None:
    async def checked() -> None:
        watched = Watched(failures)
        watched.supervisor.start()
        await check(watched)
        watched.supervisor.stop()
        assert all(worker.killed and worker.connection.closed for worker in watched.workers)

    asyncio.run(checked())


def test_events_are_heard_and_commands_are_said() -> None:
    async def check(watched: Watched) -> None:
        worker = watched.workers[0]
        worker.other.send(Beat())
        worker.other.send(Beat())
        await until(lambda: len(watched.heard) == 2)
        watched.supervisor.say(Cancel(7))
        assert worker.other.recv() == Cancel(7)

    run(check)


def test_a_worker_that_died_is_replaced_again_and_again() -> None:
    async def check(watched: Watched) -> None:
        for deaths in range(1, 5):
            watched.workers[-1].other.close()
            await until(lambda deaths=deaths: len(watched.workers) == deaths + 1)
            assert watched.told == ["lost", "ended"] * deaths
        assert watched.supervisor.starts == 5

    run(check)


def test_a_worker_that_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def check(watched: Watched) -> None:
        await until(lambda: watched.workers)

    run(check, failures=2)
    assert "no process left" in caplog.text


def test_deaths_in_a_row_make_the_wait_longer_and_a_worker_that_has_served_makes_it_short_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, waits = 0.0, []
    monkeypatch.setattr("server.engine.supervisor.monotonic", lambda: now_s)

    async def check(watched: Watched) -> None:
        nonlocal now_s
        supervisor = watched.supervisor

        def noted(wait_s: float, call: Callable[[], None]) -> None:
            if call == supervisor.start:
                waits.append(wait_s)

        monkeypatch.setattr(supervisor, "_later", noted)
        for lives_s in (1.0, 2.0, 1.0, 1.0, 2.0 * Supervisor.QUICK_S, 1.0):
            await watched.ready()
            now_s += lives_s
            watched.workers[-1].other.close()
            await until(lambda: watched.told[-1:] == ["ended"])
            watched.told.clear()
            watched.heard.clear()
            supervisor.start()

    run(check)
    assert waits == [0.0, 0.001, 0.002, 0.002, 0.0, 0.0]


def test_a_worker_is_replaced_only_once_it_has_ended() -> None:
    """Until then it may write to the shared memory, and it holds the memory of its device."""

    async def check(watched: Watched) -> None:
        worker = watched.workers[0]
        worker.lingers = True
        worker.other.close()
        await until(lambda: watched.told == ["lost"])
        for _ in range(10):
            watched.supervisor._bury()
        assert watched.told == ["lost"] and watched.supervisor.starts == 1
        worker.lingers = False
        await until(lambda: len(watched.workers) == 2)
        assert watched.told == ["lost", "ended"]

    run(check)


def test_a_worker_that_answers_is_asked_again_and_not_replaced() -> None:
    async def check(watched: Watched) -> None:
        await watched.ready()
        worker = watched.workers[0]
        for answers in range(1, 20):
            watched.wait(TICK_S)
            assert worker.other.recv() == Ping() and not worker.other.poll()
            worker.other.send(Beat())
            await until(lambda answers=answers: watched.heard == [READY, *[Beat()] * answers])
        assert not worker.killed

    run(check)


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.0, 1.5), (1.5, 4.5)])
def test_a_worker_that_is_stuck_is_replaced(step_s: float, limit_s: float, caplog: pytest.LogCaptureFixture) -> None:
    async def check(watched: Watched) -> None:
        await watched.ready()
        watched.step_s = step_s
        watched.wait(limit_s)
        assert not watched.workers[0].killed
        assert watched.workers[0].other.recv() == Ping() and not watched.workers[0].other.poll()  # asked once
        watched.wait(TICK_S)
        assert watched.workers[0].killed and watched.told[0] == "lost"
        await until(lambda: len(watched.workers) == 2)

    run(check)
    assert f"said nothing for {limit_s + TICK_S:.1f} s; the limit is {limit_s:.1f} s" in caplog.text


def test_a_worker_that_hangs_while_it_loads_is_replaced_within_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """After a worker was killed for its silence while loading, the next one has twice the time, until one is ready."""

    async def check(watched: Watched) -> None:
        await watched.part("warming up m", 30.0)
        watched.wait(6.0)
        assert not watched.workers[0].killed and not watched.workers[0].other.poll()  # it is not asked yet
        watched.wait(TICK_S)
        assert watched.workers[0].killed and watched.told[0] == "lost"
        await until(lambda: len(watched.workers) == 2)
        watched.wait(12.0 + TICK_S)
        await until(lambda: len(watched.workers) == 3)
        await watched.ready()
        watched.workers[2].other.close()
        await until(lambda: len(watched.workers) == 4)
        watched.wait(6.0 + TICK_S)
        await until(lambda: len(watched.workers) == 5)

    run(check)
    limits = re.findall(r"has said nothing for (\S+) s while (.+); the limit is (\S+) s", caplog.text)
    assert limits == [("6.2", "warming up m", "6.0"), ("12.2", "starting", "12.0"), ("6.2", "starting", "6.0")]


def test_readiness_is_lost_as_soon_as_a_sign_of_life_is_overdue() -> None:
    async def check(watched: Watched) -> None:
        assert not watched.supervisor.answers
        await watched.ready()
        watched.wait(Watchdog.LEAST_S / 2)
        assert watched.supervisor.answers
        watched.wait(TICK_S)
        assert not watched.supervisor.answers and not watched.workers[0].killed
        watched.workers[0].other.send(Beat())
        await until(lambda: watched.supervisor.answers)
        watched.workers[0].other.close()
        await until(lambda: not watched.supervisor.answers)

    run(check)


@pytest.mark.parametrize("failures", [0, 2])
def test_workers_that_are_lost_again_and_again_before_one_is_ready_are_given_up(failures: int) -> None:
    async def check(watched: Watched) -> None:
        for number in range(failures + 1, Supervisor.GIVE_UP + 1):
            assert not [told for told in watched.told if "in a row" in told]
            await until(lambda number=number: len(watched.workers) == number - failures)
            await watched.part(f"reading {number}", 30.0)
            watched.workers[-1].other.close()
            await until(lambda number=number: watched.told.count("lost") == number - failures)
        sentence = "5 workers in a row were lost before one was ready; the latest is gone while reading 5"
        assert watched.told[-1] == sentence or watched.told[-2] == sentence

    run(check, failures)


def test_a_worker_that_has_served_is_never_given_up() -> None:
    async def check(watched: Watched) -> None:
        await watched.ready()
        for deaths in range(1, 2 * Supervisor.GIVE_UP):
            watched.workers[-1].other.close()
            await until(lambda deaths=deaths: len(watched.workers) == deaths + 1)
        assert set(watched.told) == {"lost", "ended"}

    run(check)


def test_speaking_to_a_worker_that_is_gone_is_no_error() -> None:
    async def check(watched: Watched) -> None:
        watched.workers[0].other.close()
        await until(lambda: watched.told)
        watched.supervisor.say(Cancel(1))

    run(check)
