"""The engine, against a worker that the tests play."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import live
import pytest
import tiny
from live import ScriptedWorker

from server.catalog import Catalog, read_catalog
from server.engine.engine import Engine
from server.engine.job import Job
from server.engine.messages import Broken, Chosen, JobSpec, LoadPlan, ModelFacts, Ready, Stop
from server.errors import NoExitError, UnavailableError
from server.metrics import Metrics

NAME = tiny.SEGMENTATION.name
FACTS = ModelFacts(live.MACS, (0.1, 0.2, 0.3, 0.4), False, Chosen("triton", "the fastest", "fp16"))


class Harness:
    """An engine that has started its first worker, and all that it started."""

    def __init__(self, folder: Path) -> None:
        self.settings = live.settings(folder)
        self.catalog: Catalog = read_catalog(folder)
        self.plans: list[LoadPlan] = []
        self.workers: list[ScriptedWorker] = []
        self.metrics = Metrics({NAME: 4})
        self.engine = Engine(self.settings, self.catalog, self.metrics, print, self._launch)

    def _launch(self, plan: LoadPlan) -> ScriptedWorker:
        self.plans.append(plan)
        self.workers.append(ScriptedWorker(plan))
        return self.workers[-1]

    async def ready(self) -> None:
        self.engine.start()
        self.workers[-1].say(Ready("cuda:0", "triton", {NAME: FACTS}))
        await until(lambda: self.engine.ready is not None)

    def submit(self, left_s: float = 1000.0, **fields: int) -> Job:
        """A job whose compute deadline is `left_s` seconds from now."""
        layout = self.catalog.get(NAME).layout(32, 32, extra=False)
        offset, now_s = self.engine.take(layout), time.monotonic()
        return self.engine.submit(JobSpec(1, NAME, offset, layout, now_s, now_s + left_s, now_s, 4, **fields))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(live.PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Harness], Coroutine[Any, Any, None]]], None]:
    """Runs a check with an engine that is ready."""
    live.write_configs(tmp_path, (tiny.SEGMENTATION,))

    def run(check: Callable[[Harness], Coroutine[Any, Any, None]]) -> None:
        async def checked() -> None:
            harness = Harness(tmp_path)
            await harness.ready()
            await check(harness)
            harness.engine.close()

        asyncio.run(checked())

    return run


def test_the_timer_follows_the_compute_deadline(run: Any) -> None:
    async def check(harness: Harness) -> None:
        job = harness.submit(left_s=1000)
        spec = harness.workers[0].hear_job()
        assert job.timer is not None and spec == job.spec
        assert 500 < job.timer.when() - asyncio.get_running_loop().time() <= 1000
        harness.engine.move_deadline(job, spec.compute_deadline_s + 1000)
        assert harness.workers[0].hear_move().compute_deadline_s == spec.compute_deadline_s + 1000
        assert 1500 < job.timer.when() - asyncio.get_running_loop().time() <= 2000
        harness.engine.move_deadline(job, time.monotonic())
        await asyncio.wait_for(job.ended(), live.PATIENCE_S)
        assert job.stop is Stop.NO_EXIT

    run(check)


def test_a_job_without_time_is_refused_and_its_block_is_still_the_callers(run: Any) -> None:
    async def check(harness: Harness) -> None:
        with pytest.raises(NoExitError, match="which leaves none for exit 1"):
            harness.submit(left_s=-1)
        assert not harness.engine.jobs and harness.engine.arena.taken_bytes > 0

    run(check)


def test_a_job_that_is_released_is_cancelled_and_freed_once_the_worker_lets_go(run: Any) -> None:
    async def check(harness: Harness) -> None:
        job = harness.submit()
        spec = harness.workers[0].hear_job()
        harness.engine.release(job)
        assert job.stop is Stop.DISCONNECTED and harness.workers[0].hear_cancel().key == spec.key
        assert harness.engine.arena.taken_bytes > 0  # the worker may still write
        harness.workers[0].end(spec, Stop.CANCELLED)
        await until(lambda: not harness.engine.jobs)
        assert harness.engine.arena.taken_bytes == 0
        harness.engine.move_deadline(job, 0.0)  # it has ended: nothing is said
        assert harness.workers[0].hears_nothing()

    run(check)


def test_after_a_device_has_failed_the_next_worker_runs_the_reference(run: Any) -> None:
    async def check(harness: Harness) -> None:
        assert harness.plans[0].chosen == harness.plans[0].known_s == {}
        harness.workers[0].say(Broken("an illegal access"))
        harness.workers[0].die()
        await until(lambda: len(harness.workers) == 2)
        assert harness.plans[1].chosen == {NAME: Chosen("reference", "triton broke the device: an illegal access")}
        assert harness.plans[1].known_s == {NAME: FACTS.seconds}
        with pytest.raises(UnavailableError, match="being loaded"):
            harness.engine.check_open()
        harness.workers[1].say(Ready("cuda:0", "reference", {NAME: replace(FACTS, chosen=Chosen("reference"))}))
        await until(lambda: harness.engine.ready is not None)
        harness.engine.check_open()

    run(check)
