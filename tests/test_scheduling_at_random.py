"""Random sequences of events: whatever the order in which requests come, give up, move their deadlines and end, the
backlog and the scheduler go on, and nothing of an ended request is left."""

import math
import random

import pytest
from test_backlog import known_costs

from server.engine.messages import JobSpec
from server.engine.shared_memory import Layout
from server.scheduling.backlog import Backlog
from server.scheduling.expected import Expected
from server.scheduling.jobs import ScheduledJob
from server.scheduling.scheduler import Scheduler

SHAPES = ((64, 96), (128, 192), (512, 1024))
CLIENTS = ("one", "two", "three")
STEPS = (None, 1, None, 2, None, 3, None, 4)


def pause_s(chance: random.Random) -> float:
    """Mostly milliseconds, sometimes far longer, or nothing at all."""
    return chance.choice((0.0, chance.expovariate(300.0), chance.expovariate(300.0), chance.expovariate(0.2)))


def some_request(chance: random.Random, now_s: float) -> Expected:
    """A request of which nothing is certain; its deadline may have passed."""
    return Expected(
        chance.choice(("model", "unknown")),
        chance.choice(SHAPES),
        chance.randint(1, 4),
        now_s + chance.choice((-0.01, 0.0, 0.02, 0.1, 0.3, 30.0)),
        client=chance.choice(CLIENTS),
        prepare_s=chance.choice((0.0, 0.002, 0.1)),
        delays_s=chance.choice((0.0, 0.001)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_backlog_takes_every_order_of_events(seed: int) -> None:
    chance, now_s = random.Random(seed), 0.0
    preparing_s: dict[int, float] = {}
    backlog = Backlog(known_costs(), preparing_s=preparing_s)
    exits: dict[int, int] = {}  # of the open requests, by key
    for key in range(1500):
        now_s += pause_s(chance)
        newcomer = some_request(chance, now_s)
        refusal = backlog.refusal(newcomer, now_s)
        if refusal is not None:
            assert exits and math.isfinite(refusal.wait_s) and refusal.needs_s >= 0
        backlog.ask(newcomer, now_s, chance.randint(1, 2))
        if refusal is None or chance.random() < 0.2:
            backlog.add(key, newcomer, now_s)
            exits[key] = 0
        for touched in chance.sample(sorted(exits), min(len(exits), chance.randint(0, 3))):
            match chance.randint(0, 5):
                case 0:
                    backlog.update(touched, some_request(chance, now_s), now_s)
                case 1:
                    backlog.move_deadline(touched, now_s + chance.uniform(-0.01, 0.3), now_s)
                case 2 if exits[touched] < 4:
                    exits[touched] += 1
                    backlog.reached(touched, exits[touched], now_s, chance.choice((0, 0, 1)))
                case 3:
                    backlog.withdraw(touched, now_s)
                    del exits[touched]
                case 4:
                    backlog.remove(touched, now_s)
                    del exits[touched]
        if chance.random() < 0.01:
            backlog.lost()
        assert 0 <= backlog.ready_s(newcomer, now_s) < math.inf
        assert len(backlog) == len(exits) and set(preparing_s) <= set(exits)
    for key in exits:
        backlog.remove(key, now_s)
    assert len(backlog) == 0 and not preparing_s
    assert backlog.refusal(some_request(chance, now_s), now_s) is None  # an idle worker never refuses


@pytest.mark.parametrize("seed", range(20))
def test_a_scheduler_takes_every_order_of_events(seed: int) -> None:
    chance, now_s = random.Random(seed), 0.0
    scheduler = Scheduler(known_costs())
    open_keys: set[int] = set()
    for key in range(1500):
        now_s += pause_s(chance)
        if chance.random() < 0.3:
            shape, asked = chance.choice(SHAPES), some_request(chance, now_s)
            spec = JobSpec(
                key,
                asked.model,
                0,
                Layout(*shape, 4),
                now_s,
                asked.deadline_s,
                now_s - chance.choice((0.0, 0.005, 1.0)),
                max_exit=chance.randint(asked.required, 4),
                required=asked.required,
                min_exit=chance.randint(1, asked.required),
                client=asked.client,
                priority=chance.choice((0, 1, 1, 1, 2)),
            )
            scheduler.add(ScheduledJob(spec, shape, STEPS))
            open_keys.add(key)
        if open_keys and chance.random() < 0.1:
            moved = chance.choice(sorted(open_keys))
            scheduler.move_deadline(moved, now_s + chance.uniform(-0.01, 0.3))
        if open_keys and chance.random() < 0.05:
            gone = chance.choice(sorted(open_keys))
            assert scheduler.cancel(gone) is not None and scheduler.cancel(gone) is None
            open_keys.discard(gone)
        scheduler.deepest = chance.choice((scheduler.deepest, scheduler.deepest, None, 1, 3))
        ended = {each.job.spec.key for each in scheduler.ended(now_s)}
        assert ended <= open_keys
        open_keys -= ended
        job = scheduler.next(now_s)
        assert (job is None) == (not open_keys) and len(scheduler) == len(open_keys)
        if job is None:
            continue
        batch = [job, *scheduler.companions(job, chance.choice((1, 2, 4)), now_s)]
        assert len(batch) in {1, 2, 4} and {each.next_step for each in batch} == {job.next_step}
        seconds = chance.uniform(0.0, scheduler.slice_s(job, now_s))
        now_s += seconds
        finished = chance.random() < 0.7
        for each in batch:
            assert each.spec.key in open_keys
            scheduler.ran(
                each,
                seconds / len(batch),
                now_s,
                finished=finished,
                active_share=chance.choice((0.0, 0.3, 1.0)),
                good_enough=chance.random() < 0.1,
                final=chance.random() < 0.05,
            )
    for key in sorted(open_keys):
        scheduler.cancel(key)
    assert len(scheduler) == 0 and scheduler.next(now_s) is None
