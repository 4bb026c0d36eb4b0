"""Which exits of a job are sent, and which count as skipped."""

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.job import Job
from server.engine.messages import Exited, Stop
from server.protocols.exits import new_exits, skipped_exits


@pytest.mark.parametrize(
    ("required", "changed", "sent", "skipped"),
    [
        (1, [True, True, True, True], [1, 2, 3, 4], []),
        (1, [True, True, True, True], [3, 4], [1, 2]),
        (1, [True, False, True], [3], [1]),  # exit 2 had the map of exit 1
        (2, [True, True, True], [3], [2]),  # the required exit itself, but none before it
        (3, [True, True], [], []),
    ],
)
def test_an_exit_is_skipped_if_it_could_have_been_sent(
    required: int, changed: list[bool], sent: list[int], skipped: list[int]
) -> None:
    exits = [SimpleNamespace(exit=number, changed=differs) for number, differs in enumerate(changed, 1)]
    job: Any = SimpleNamespace(spec=SimpleNamespace(required=required), exits=exits)
    assert skipped_exits(job, sent) == skipped


def test_nothing_is_sent_of_a_job_that_was_cancelled_while_others_were_sending() -> None:
    async def check() -> None:
        nothing: Any = None
        spec: Any = SimpleNamespace(required=1)
        reached = Exited(1, 1, active_share=0.5, macs=10, stage_s=0.1, started_s=0.0, finished_s=0.1)
        job, lock = Job(spec, nothing, nothing, memoryview(b""), 0.0, [reached]), asyncio.Lock()
        async with lock, aclosing(new_exits(job, lock)) as exits:
            waiting = asyncio.ensure_future(anext(exits, None))
            await asyncio.sleep(0)
            job.stop = Stop.CANCELLED
            lock.release()
            assert await waiting is None
            await lock.acquire()

    asyncio.run(check())
