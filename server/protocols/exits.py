"""Chooses which exits of a job to send: always the newest, and only if it differs from the one sent before. A client
that reads slowly misses exits."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from server.engine.job import Job


@dataclass(frozen=True)
class NewExit:
    """An exit to send. `held`: the exit that was sent before it, or None."""

    exit: int
    held: int | None


async def new_exits(job: Job, lock: AbstractAsyncContextManager[object] | None = None) -> AsyncGenerator[NewExit, None]:
    """Yield the newest exit whenever it differs from the exit sent before, from the required exit on, until the job
    ends. `lock` is held while an exit is chosen and sent; None: no lock.

    Nothing is yielded after the job was cancelled. Close the iterator (`contextlib.aclosing`) if it is not read to its
    end.
    """
    lock = nullcontext() if lock is None else lock
    last, held = job.spec.required - 1, None
    while True:
        newest = await job.newer(last)
        if newest <= last or job.cancelled:
            return
        async with lock:
            last = job.latest  # more exits may have come while the lock was awaited
            if job.cancelled:
                return
            if held is None or job.changed_since(held):
                yield NewExit(last, held)
                held = last


def skipped_exits(job: Job, sent: Sequence[int]) -> list[int]:
    """The exits that were reached and could have been sent, but were not."""
    return [
        done.exit for done in job.exits if done.changed and done.exit >= job.spec.required and done.exit not in sent
    ]
