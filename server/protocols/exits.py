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


async def new_exits(job: Job, turn: AbstractAsyncContextManager[object] | None = None) -> AsyncGenerator[NewExit, None]:
    """The newest exit from the required one on, whenever there is one that differs from the one before, until the job
    ends. `turn` is held while an exit is chosen and sent.

    A job that was cancelled sends no more. Close the iterator (`contextlib.aclosing`) if it is not read to its end.
    """
    turn = nullcontext() if turn is None else turn
    last, held = job.spec.required - 1, None
    while True:
        newest = await job.newer(last)
        if newest <= last or job.cancelled:
            return
        async with turn:
            last = job.latest  # more exits may have come while it waited for its turn
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
