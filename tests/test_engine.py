"""The engine, against workers that the tests play."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import live
import pytest
import tiny
from live import ScriptedWorker, until

from server.catalog import Catalog, read_catalog
from server.engine.device import Device
from server.engine.engine import Engine
from server.engine.job import Job
from server.engine.messages import (
    Broken,
    Cancel,
    Chosen,
    Exited,
    JobSpec,
    LoadPlan,
    ModelFacts,
    Ready,
    Stop,
    Unloadable,
)
from server.engine.place import Place
from server.engine.pool import KNOWN_SHAPES
from server.errors import UnavailableError
from server.metrics import Metrics
from server.scheduling.backlog import Backlog
from server.scheduling.costs import StageCost
from server.scheduling.expected import Expected

NAME = tiny.SEGMENTATION.name
SHAPE = tiny.SEGMENTATION.size
COSTS = tuple(StageCost(NAME, exit_index, SHAPE, half_s=0.1, slope=0.0, active_share=1.0) for exit_index in range(1, 5))
FACTS = ModelFacts(live.MACS, (0.1, 0.2, 0.3, 0.4), False, Chosen("triton", "the fastest", "fp16"), COSTS, 4)
UP = ("cpu:0", "cpu:1")
Check = Callable[["Harness"], Coroutine[Any, Any, None]]


class Harness:
    """An engine whose workers are ready, and all that it started."""

    def __init__(self, folder: Path, device: str) -> None:
        self.settings = live.settings(folder, device=device)
        self.catalog: Catalog = read_catalog(folder)
        self.plans: list[LoadPlan] = []
        self.workers: list[ScriptedWorker] = []
        self.unloadable: list[str] = []
        self.metrics = Metrics({NAME: 4})
        self.deepest: int | None = None
        self.engine = Engine(
            self.settings,
            self.catalog,
            self.metrics,
            self.unloadable.append,
            self._launch,
            deepest=lambda: self.deepest,
        )

    def _launch(self, plan: LoadPlan) -> ScriptedWorker:
        self.plans.append(plan)
        self.workers.append(ScriptedWorker(plan))
        return self.workers[-1]

    async def say_ready(self, facts: ModelFacts = FACTS, worker: int = -1) -> None:
        """Let a worker be ready, by default the newest."""
        number = len(self.engine.pool.ready)
        self.workers[worker].say(Ready(self.plans[worker].device, facts.chosen.executor, {NAME: facts}))
        await until(lambda: len(self.engine.pool.ready) == number + 1)

    def admit(self, left_s: float = 1000.0, required: int = 1) -> Place:
        now_s = time.monotonic()
        return self.engine.admit(Expected(NAME, SHAPE, required, now_s + left_s), now_s)

    def submit(self, left_s: float = 1000.0, place: Place | None = None, pixels: int = 32, **fields: int) -> Job:
        """A job for a square image whose compute deadline is `left_s` seconds from now."""
        place = place or self.admit(required=fields.get("required", 1))
        layout = self.catalog.get(NAME).layout(pixels, pixels, extra=False)
        offset, now_s = self.engine.take(layout, "a client"), time.monotonic()
        spec = JobSpec(place.key, NAME, offset, layout, now_s, now_s + left_s, now_s, 4, **fields)
        return self.engine.submit(spec, place)

    def open(self) -> list[int]:
        """The number of requests that each device owes."""
        return [len(device.backlog) for device in self.engine.pool.devices]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def runs(self) -> dict[tuple[str, str], float | None]:
        """What metrics say of two executors and their precisions: 1 if they run the model."""
        info = "anytime_executor_info", "anytime_precision_info"
        found = {}
        for executor, precision in (("triton", "fp16"), ("reference", "fp32")):
            runs = self.metric(info[0], model=NAME, device="cpu", executor=executor)
            assert runs == self.metric(info[1], model=NAME, precision=precision)
            found[executor, precision] = runs
        return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a check with an engine that has one worker that is ready on each device."""
    live.write_configs(tmp_path, (tiny.SEGMENTATION,))
    monkeypatch.setattr("server.engine.supervisor.TICK_S", 3600.0)

    def run(check: Check, device: str = "cpu") -> None:
        async def checked() -> None:
            harness = Harness(tmp_path, device)
            harness.engine.start()
            names = {each.name for each in harness.engine.pool.devices}
            for number in range(len(harness.engine.pool.devices)):
                assert len(harness.workers) == max(number + 1, len(names)), "on a device, the first one measures"
                await harness.say_ready(worker=number)
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
        assert job.place.expected.deadline_s == spec.compute_deadline_s + 1000
        assert 1500 < job.timer.when() - asyncio.get_running_loop().time() <= 2000
        harness.engine.move_deadline(job, time.monotonic())
        await asyncio.wait_for(job.ended(), live.PATIENCE_S)
        assert job.stop is Stop.NO_EXIT and harness.open() == [0]

    run(check)


def test_every_worker_hears_how_deep_the_traffic_lets_jobs_go(run: Any) -> None:
    """It is looked at whenever a job comes, reaches an exit or ends, and told once."""

    async def check(harness: Harness) -> None:
        harness.deepest = 3
        job = harness.submit()
        first, other = harness.workers if job.place.device is harness.engine.pool.devices[0] else harness.workers[::-1]
        spec = first.hear_job()
        assert (first.hear_cap(), other.hear_cap()) == (3, 3)
        first.reach(spec, 1)
        await until(lambda: len(job.exits) == 1)
        harness.deepest = 2
        first.reach(spec, 2)
        await until(lambda: len(job.exits) == 2)
        assert (first.hear_cap(), other.hear_cap()) == (2, 2)
        harness.deepest = None
        first.end(spec)
        await until(lambda: job.stop is not None)
        assert (first.hear_cap(), other.hear_cap()) == (None, None)
        assert first.hears_nothing() and other.hears_nothing()

    run(check, "cpu,cpu")


def test_a_job_that_is_released_is_cancelled_and_freed_once_the_worker_lets_go(run: Any) -> None:
    async def check(harness: Harness) -> None:
        job = harness.submit()
        spec = harness.workers[0].hear_job()
        assert harness.open() == [1] and harness.metric("anytime_queue_depth") == 1
        harness.engine.release(job)
        assert harness.metric("anytime_queue_depth") == 0
        assert job.stop is Stop.DISCONNECTED and harness.workers[0].hear_cancel().key == spec.key
        assert harness.open() == [0]
        assert harness.engine.arena.taken_bytes > 0  # the worker may still write
        harness.workers[0].end(spec, Stop.CANCELLED)
        await until(lambda: not harness.engine.jobs)
        assert harness.engine.arena.taken_bytes == 0
        assert job.timer is not None and job.timer.cancelled(), "it would keep the image until the deadline"
        assert harness.metric("anytime_cancel_seconds_count", model=NAME) == 1
        harness.engine.move_deadline(job, 0.0)  # it has ended: nothing is said
        assert harness.workers[0].hears_nothing()

    run(check)


def test_after_a_device_has_failed_the_next_worker_runs_the_reference(run: Any) -> None:
    async def check(harness: Harness) -> None:
        assert (harness.plans[0].chosen, harness.plans[0].known) == ({}, ())
        assert harness.runs() == {("triton", "fp16"): 1, ("reference", "fp32"): None}
        harness.workers[0].say(Broken("an illegal access"))
        harness.workers[0].die()
        await until(lambda: len(harness.workers) == 2)
        assert harness.plans[1].chosen == {NAME: Chosen("reference", "triton broke the device: an illegal access")}
        assert harness.engine.facts[NAME].max_batch == 4, "what is known of the models stays known"
        assert harness.plans[1].known == ()  # the reference is measured anew
        with pytest.raises(UnavailableError, match="being loaded"):
            harness.engine.check_open()
        await harness.say_ready(replace(FACTS, chosen=Chosen("reference")))
        harness.engine.check_open()
        assert harness.metric("anytime_worker_restarts_total") == 1
        assert harness.runs() == {("triton", "fp16"): None, ("reference", "fp32"): 1}

    run(check)


def test_models_that_cannot_be_loaded_any_more_end_the_server_only_if_no_worker_is_left(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(harness: Harness) -> None:
        for number in (0, 1):
            assert not harness.unloadable
            harness.workers[number].die()
            await until(lambda number=number: len(harness.workers) == 3 + number)
            harness.workers[-1].say(Unloadable("no such file"))
            await until(lambda: "cannot be loaded on cpu:0 any more: no such file" in caplog.text)
        await until(lambda: harness.unloadable)

    run(check, "cpu,cpu")


def test_a_worker_whose_sign_of_life_is_overdue_gets_requests_only_if_there_is_no_other(run: Any) -> None:
    async def check(harness: Harness) -> None:
        pool = harness.engine.pool

        def fall_silent(number: int) -> None:
            for _ in range(5):
                pool._supervisors[pool.devices[number]]._watch()

        fall_silent(0)
        readiness = harness.engine.readiness()
        assert readiness["ready"] and [device["ready"] for device in readiness["devices"]] == [False, True]
        assert [harness.admit().device.label for _ in range(2)] == ["cpu:1", "cpu:1"]
        fall_silent(1)
        readiness = harness.engine.readiness()
        assert (readiness["ready"], readiness["state"]) == (False, "unresponsive")
        assert harness.admit().device.label == "cpu:0"

    run(check, "cpu,cpu")


def test_requests_go_where_their_required_exit_is_there_first(run: Any) -> None:
    """Two workers on the CPU: the second starts with what the first found out, and has a label of its own."""

    async def check(harness: Harness) -> None:
        first, second = harness.plans
        assert (first.sharing, first.known, first.max_batches) == (2, (), {})
        assert (second.known, second.max_batches) == (COSTS, {NAME: 4})
        assert [device.label for device in harness.engine.pool.devices] == ["cpu:0", "cpu:1"]
        jobs = [harness.submit() for _ in range(3)]
        assert [job.place.device.label for job in jobs] == ["cpu:0", "cpu:1", "cpu:0"]
        for worker, keys in zip(harness.workers, ([1, 3], [2]), strict=True):
            assert [worker.hear_job().key for _ in keys] == keys

    run(check, "cpu,cpu")


def test_a_request_that_fits_nowhere_is_refused_with_the_time_to_wait(run: Any) -> None:
    async def check(harness: Harness) -> None:
        first, second = harness.admit(left_s=0.15), harness.admit(left_s=0.15)
        assert harness.open() == [1, 1]
        with pytest.raises(UnavailableError, match="exit 1 would be there in") as caught:
            harness.admit(left_s=0.15)
        assert caught.value.code == "overloaded" and 0 < (caught.value.retry_after_s or 0) < 0.2
        assert harness.open() == [1, 1]
        with second:
            pass
        assert harness.admit(left_s=0.15).device is second.device and first.device is not second.device

    run(check, "cpu,cpu")


@pytest.mark.parametrize(("devices", "same_pace"), [("cpu,cpu", True), ("cpu,cuda:0", False)])
def test_workers_share_what_they_know_of_their_cores(run: Any, devices: str, same_pace: bool) -> None:
    """Images delay all workers, also one that follows a lost worker. Workers on devices of one name learn one pace."""

    async def check(harness: Harness) -> None:
        first, second = harness.engine.pool.devices
        asked = Expected(NAME, SHAPE, 1, 9.0)
        alone_s = second.backlog.ready_s(asked, 0.0)
        for _ in range(2):
            first.backlog.add(1, replace(asked, delays_s=0.001), 0.0)
            assert second.backlog.ready_s(asked, 0.0) == pytest.approx(alone_s + 0.001)
            first.backlog.remove(1, 0.0)
            assert second.backlog.ready_s(asked, 0.0) == pytest.approx(alone_s)
            second.lost()
        break_promises(first, 1)
        assert (second.backlog.ready_s(asked, 0.0) > alone_s) == same_pace

    run(check, devices)


def test_broken_promises_of_a_lost_worker_do_not_count(run: Any) -> None:
    """A worker breaks promises, is lost, and more of its promises are broken by that. The predictions for its successor
    and for the other worker stay as they were before all of this."""

    async def check(harness: Harness) -> None:
        first, second = harness.engine.pool.devices
        asked = Expected(NAME, SHAPE, 1, 9.0)
        usual_s = second.backlog.ready_s(asked, 0.0)
        break_promises(first, 4)
        assert second.backlog.ready_s(asked, 0.0) > usual_s
        lost = first.backlog
        lost.add(1, asked, 0.0)
        lost.update(1, asked, 0.0)
        first.lost()
        lost.remove(1, 9.0)
        assert [each.backlog.ready_s(asked, 0.0) for each in (first, second)] == [pytest.approx(usual_s)] * 2

    run(check, "cpu,cpu")


def test_a_device_that_has_failed_learns_its_pace_anew(run: Any) -> None:
    async def check(harness: Harness) -> None:
        (device,) = harness.engine.pool.devices
        before = device.backlog._pace
        device.broken("cudaErrorIllegalAddress")
        device.lost()
        assert device.backlog._pace is not before

    run(check)


def break_promises(device: Device, count: int) -> None:
    """Let a device compute `count` requests, one after the other, and reach each required exit a second too late."""
    for _ in range(count):
        device.backlog.add(1, Expected(NAME, SHAPE, 1, 9.0), 0.0)
        device.backlog.reached(1, 1, 10.0)
        device.backlog.remove(1, 10.0)


def test_a_request_counts_as_asked_for_once_it_is_refused_or_its_image_is_there(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads whose images never come would otherwise look like load."""
    asked: list[str] = []
    monkeypatch.setattr(Backlog, "ask", lambda backlog, expected, *_: asked.append(expected.client))

    async def check(harness: Harness) -> None:
        now_s = time.monotonic()
        taken = Expected(NAME, SHAPE, 1, now_s + 0.15, client="taken")
        harness.engine.check(taken, now_s)
        assert asked == []
        harness.engine.admit(taken, now_s)
        assert asked == ["taken"]
        late = replace(taken, client="late")
        with pytest.raises(UnavailableError):
            harness.engine.check(late, now_s)
        with pytest.raises(UnavailableError):
            harness.engine.admit(replace(late, client="later"), now_s)
        assert asked == ["taken", "late", "later"]

    run(check)


def test_a_worker_that_is_left_alone_counts_all_that_is_asked_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(Backlog, "ask", lambda backlog, expected, now_s, workers: counted.append(workers))

    async def check(harness: Harness) -> None:
        harness.admit()
        assert counted == [2, 2]
        harness.engine.pool.devices[1].lost()
        harness.admit()
        assert counted == [2, 2, 1]

    run(check, "cpu,cpu")


def test_a_new_worker_is_told_what_stages_cost_at_the_latest_shapes(run: Any) -> None:
    async def check(harness: Harness) -> None:
        (device,) = harness.engine.pool.devices
        for side in range(2 * KNOWN_SHAPES):
            device.costs.observe(NAME, (32, 32 + side), 1, 0.1)
        known = harness.engine.pool._plan(device).known
        assert len({cost.shape for cost in known if cost.exit == 1}) == KNOWN_SHAPES
        assert max(cost.shape for cost in known) == max((32, 31 + 2 * KNOWN_SHAPES), SHAPE)

    run(check)


def test_a_place_that_is_given_up_for_a_larger_one_does_not_count_as_admitted(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdrawn: list[int] = []
    withdraw = Backlog.withdraw

    def noted(backlog: Backlog, key: int, now_s: float) -> None:
        withdrawn.append(key)
        withdraw(backlog, key, now_s)

    monkeypatch.setattr(Backlog, "withdraw", noted)

    async def check(harness: Harness) -> None:
        place = harness.admit()
        harness.submit(place=place, pixels=128)
        harness.submit(pixels=32)
        assert withdrawn == [place.key] and harness.open() == [2]

    run(check)


@pytest.mark.parametrize(("pixels", "label"), [(64, "cpu:0"), (128, "cpu:1")])
def test_an_image_that_is_larger_than_expected_is_routed_again(run: Any, pixels: int, label: str) -> None:
    async def check(harness: Harness) -> None:
        first, second, third = (harness.admit() for _ in range(3))
        assert first.device is third.device is not second.device
        second.release(time.monotonic())
        assert harness.submit(place=third, pixels=pixels).place.device.label == label

    run(check, "cpu,cpu")


def test_an_image_that_is_so_large_that_it_fits_nowhere_is_refused(run: Any) -> None:
    async def check(harness: Harness) -> None:
        harness.admit(left_s=0.5)
        with pytest.raises(UnavailableError, match="are left"), harness.admit(left_s=0.9) as place:
            harness.submit(left_s=0.9, place=place, pixels=224)  # 0.86 s at the safe estimate, after 0.1 s of another
        assert harness.open() == [1] and not harness.engine.jobs

    run(check)


def test_requests_on_a_stuck_worker_are_answered_at_their_own_deadlines(run: Any) -> None:
    """The worker says nothing more; with an exit in hand that is the answer."""

    async def check(harness: Harness) -> None:
        jobs = [harness.submit(required=required) for required in (1, 1, 2)]
        for number in (0, 2):
            harness.workers[0].reach(jobs[number].spec, 1)
        await until(lambda: jobs[2].exits)
        for job in jobs:
            harness.engine.move_deadline(job, time.monotonic())
            await asyncio.wait_for(job.ended(), live.PATIENCE_S)
        assert [(job.stop, job.latest) for job in jobs] == [(Stop.DEADLINE, 1), (Stop.NO_EXIT, 0), (Stop.DEADLINE, 1)]
        assert harness.open() == [0]

    run(check)


def test_a_required_exit_may_be_late_by_more_while_no_other_request_is_open(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.engine.GRACE_S", 0.0)
    monkeypatch.setattr("server.engine.engine.LONE_GRACE_S", 3600.0)

    async def check(harness: Harness) -> None:
        lone = harness.submit()
        before = lone.timer
        harness.engine.move_deadline(lone, time.monotonic())
        moved = lone.timer
        await until(lambda: lone.timer not in (before, moved))  # the deadline has come, and the grace begins
        beside = harness.submit()
        harness.engine.move_deadline(beside, time.monotonic())
        await until(lambda: beside.stop is Stop.NO_EXIT)
        assert lone.stop is None
        for job in (lone, beside):
            harness.engine.release(job)

    run(check)


def test_an_answer_is_not_due_before_its_deadline_was_moved(run: Any) -> None:
    """A client that wants what there is now gets a compute deadline that has passed, by the reserve. If that counted,
    every such answer would lengthen the reserve, which shortens the time of all requests."""

    async def check(harness: Harness) -> None:
        job = harness.submit()
        harness.workers[0].reach(job.spec, 1)
        await until(lambda: job.exits)
        moved_s = time.monotonic()
        harness.engine.move_deadline(job, job.exits[-1].finished_s - 100.0)
        await until(lambda: job.stop is Stop.DEADLINE)
        assert moved_s <= job.answerable_s == job.place.expected.deadline_s <= job.stopped_s
        harness.engine.release(job)

    run(check)


def test_an_answer_is_due_at_its_deadline_however_late_the_front_end_notices(run: Any) -> None:
    async def check(harness: Harness) -> None:
        overdue, complete = harness.submit(), harness.submit()
        for job in (overdue, complete):
            harness.workers[0].reach(job.spec, 1)
        await until(lambda: overdue.exits and complete.exits)
        due_s = time.monotonic() + 0.01
        harness.engine.move_deadline(overdue, due_s)
        await until(lambda: overdue.stop is Stop.DEADLINE)
        harness.engine.finish(complete, Stop.COMPLETE)
        assert overdue.answerable_s == due_s < overdue.stopped_s
        assert complete.answerable_s == complete.stopped_s
        for job in (overdue, complete):
            harness.engine.release(job)

    run(check)


def test_a_worker_that_is_lost_costs_only_its_own_jobs(run: Any) -> None:
    async def check(harness: Harness) -> None:
        lost, kept = harness.workers
        first, second, third = (harness.submit() for _ in range(3))
        waiting = harness.admit()
        assert waiting.device is second.place.device
        beside = harness.admit()
        lost.reach(first.spec, 1)
        await until(lambda: first.exits)
        lost.lingers = True
        lost.die()
        assert await first.ended() is Stop.DEADLINE and first.latest == 1
        with pytest.raises(UnavailableError, match="the worker was lost before exit 1") as caught:
            await third.ended()
        assert caught.value.retry_after_s == 1.0, "there is another worker"
        assert second.stop is None and harness.open() == [0, 2]
        assert harness.engine.readiness()["ready"]
        assert [device["ready"] for device in harness.engine.readiness()["devices"]] == [False, True]
        up = {label: harness.metrics.registry.get_sample_value("anytime_worker_up", {"device": label}) for label in UP}
        assert up == {"cpu:0": 0, "cpu:1": 1}
        for job in (first, third):
            harness.engine.release(job)
        assert len(harness.engine.jobs) == 3  # the worker may still write, until it has ended
        lost.lingers = False
        await until(lambda: len(harness.engine.jobs) == 1)
        assert harness.submit(place=beside).place.device is second.place.device  # its image came after the loss
        assert kept.hear_job().key == second.spec.key and kept.hear_job().key == beside.key

    run(check, "cpu,cpu")


def test_a_stage_that_was_cut_is_learnt_from(run: Any) -> None:
    """Otherwise requests that all fail would be admitted again and again."""

    async def check(harness: Harness) -> None:
        costs = harness.engine.pool.devices[0].costs
        for _ in range(2):
            job = harness.submit(pixels=64)
            spec = harness.workers[0].hear_job()
            harness.workers[0].say(Exited(spec.key, 1, 0.5, 10, 0.05, 0.0, 0.2))
            harness.engine.finish(job, Stop.DEADLINE)
            harness.workers[0].say(Exited(spec.key, 2, 0.5, 10, 0.05, 0.0, 0.2))  # too late
            assert harness.workers[0].hear() == Cancel(spec.key)
            harness.workers[0].end(spec, Stop.CANCELLED, stage_s=0.4)
            await until(lambda job=job: not job.with_worker)  # type: ignore[misc]
            harness.engine.release(job)
        assert [costs.stage_s(NAME, (64, 64), index) for index in (1, 2)] == pytest.approx([0.05, 0.05])
        assert costs.stage_s(NAME, (64, 64), 3) == pytest.approx(0.4, rel=0.01)

    run(check)


def test_the_backlog_hears_how_many_more_exits_a_step_has_brought(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        Backlog, "reached", lambda backlog, key, exit_index, now_s, batch_left: told.append((key, batch_left))
    )

    async def check(harness: Harness) -> None:
        jobs = [harness.submit(), harness.submit()]
        specs = [harness.workers[0].hear_job() for _ in jobs]
        for spec, more in zip(specs, (1, 0), strict=True):
            harness.workers[0].say(Exited(spec.key, 1, 0.5, 10, 0.2, 0.0, 0.2, batch_left=more))
        await until(lambda: all(job.exits for job in jobs))
        assert told == [(specs[0].key, 1), (specs[1].key, 0)]

    run(check)


def test_what_exits_cost_is_learnt_and_compared_with_what_was_predicted(run: Any) -> None:
    async def check(harness: Harness) -> None:
        job = harness.submit(pixels=64)
        spec = harness.workers[0].hear_job()
        harness.workers[0].say(Exited(spec.key, 1, 0.5, 10, 0.2, 0.0, 0.2))
        await until(lambda: job.exits)
        labels = {"model": NAME, "exit": "1"}
        ratio = harness.metrics.registry.get_sample_value("anytime_cost_ratio_sum", labels)
        assert ratio == pytest.approx(0.2 / (0.1 * 64 / 96))
        shapes = {cost.shape: cost for cost in harness.engine.pool.learnt(NAME)}
        assert shapes.keys() == {SHAPE, (64, 64)} and shapes[SHAPE].device == "cpu"
        assert shapes[SHAPE].typical_s == pytest.approx(FACTS.seconds)
        assert shapes[64, 64].typical_s[0] == pytest.approx(0.2)
        assert all(safe_s > typical_s for safe_s, typical_s in zip(shapes[SHAPE].safe_s, FACTS.seconds, strict=True))

    run(check)


def test_metrics_tell_what_was_computed_and_what_was_saved(run: Any) -> None:
    """An image of 64 x 64 takes two thirds of the multiply-adds of the configured size."""

    async def check(harness: Harness) -> None:
        job = harness.submit(pixels=64)
        spec = harness.workers[0].hear_job()
        for exit_index in (1, 2):
            times = 0.1, spec.arrived_s, spec.arrived_s + 0.2
            harness.workers[0].say(Exited(spec.key, exit_index, 0.5, 10 * exit_index, *times))
        harness.workers[0].end(spec, Stop.MAX_EXIT)
        await until(lambda: job.stop is Stop.MAX_EXIT)
        assert harness.metric("anytime_macs_total", model=NAME) == 20
        assert harness.metric("anytime_macs_saved_total", model=NAME) == pytest.approx(live.MACS[-1] * 2 / 3 - 20)
        assert harness.metric("anytime_queue_seconds_count", model=NAME) == 1
        for exit_index in ("1", "2"):
            took_s = harness.metric("anytime_time_to_exit_seconds_sum", model=NAME, exit=exit_index)
            assert took_s == spec.arrived_s + 0.2 - spec.arrived_s
        harness.engine.release(job)

    run(check)


def test_once_its_image_is_there_a_request_waits_for_no_decoding(run: Any) -> None:
    async def check(harness: Harness) -> None:
        now_s = time.monotonic()
        expected = Expected(NAME, SHAPE, 1, now_s + 1000.0, prepare_s=5.0, delays_s=0.5)
        place = harness.engine.admit(expected, now_s)
        (device,) = harness.engine.pool.devices
        job = harness.submit(place=place)
        assert (place.expected.prepare_s, place.expected.delays_s) == (0.0, 0.0)
        assert device.backlog.ready_s(replace(expected, prepare_s=0.0, delays_s=0.0), time.monotonic()) < 1.0
        harness.engine.release(job)

    run(check)


def test_a_server_of_two_devices_is_busy_if_both_are(run: Any) -> None:
    async def check(harness: Harness) -> None:
        first, second = harness.engine.pool.devices
        for device, busy in ((first, 0.2), (second, 0.4)):
            for tenth in range(1, 301):
                device.reached(Expected(NAME, SHAPE, 1, 0.0), 1, 0.04, 1.0, tenth / 10)
            assert harness.engine.busy(30.0) == pytest.approx(busy, rel=0.05)

    run(check, "cpu,cpu")
