"""Workers that hang: one is stopped (SIGSTOP) while it loads, at several moments, and once it is ready.

`PYTHONPATH=tests python tests/attack/hangs.py` prints how long it took until readiness was lost and until another
worker took the place, and ends with status 1 if that took too long. No other program should run.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from acceptance import ROOT, Client, Server, verdict

LOADING_S, READY_S = 8.0, 4.0
"""The longest time until a worker that hangs is replaced."""
LOST_S = 1.5
"""The longest time until the server says that it is not ready."""
MOMENTS_S = 0.1, 0.5, 1.0, 1.5, 2.0, 2.5
"""After the start of the worker: while it imports, reads weights, times precisions and warms up."""


class Starting(Server):
    """A server that may be used before it is ready."""

    async def ready(self) -> float:
        return 0.0

    async def status(self) -> int:
        return (await Client(self.port).send("/health/ready")).status

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children if b"server.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def seconds_until(condition: Callable[[], object], limit_s: float = 60.0) -> float:
    """How long it takes until a function, which may be an async one, says yes."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < limit_s:
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            break
        await asyncio.sleep(0.02)
    return time.monotonic() - began_s


async def hangs(models: Path, after_s: float | None) -> bool:
    """Stop the worker `after_s` seconds after its start, or once it is ready (None)."""

    async def ready() -> bool:
        return await server.status() == 200

    async def not_ready() -> bool:
        return await server.status() == 503

    async with Starting(models, "--spare-workers", "0") as server:
        await seconds_until(lambda: server.workers)
        await (asyncio.sleep(after_s) if after_s is not None else seconds_until(ready))
        was_ready = await ready()
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)
        lost_s = await seconds_until(not_ready)
        replaced_s = lost_s + await seconds_until(lambda: worker not in server.workers)
        again_s = replaced_s + await seconds_until(ready)
    passed = lost_s < LOST_S and replaced_s < (READY_S if was_ready else LOADING_S)
    when = "ready" if was_ready else f"loading for {after_s:.1f} s"
    print(
        f"{'ok   ' if passed else 'FAULT'} stopped when {when}: not ready after {lost_s:.1f} s, replaced after "
        f"{replaced_s:.1f} s, ready again after {again_s:.1f} s",
        flush=True,
    )
    return passed


async def run(models: Path) -> bool:
    return all([await hangs(models, after_s) for after_s in (*MOMENTS_S, None)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    passed = asyncio.run(run(parser.parse_args(argv).models))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
