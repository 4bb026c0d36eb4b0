"""A front end that is killed: its workers end at once, in the middle of a step and in reserve.

`PYTHONPATH=tests python tests/attack/orphans.py` prints how long each process outlived the front end, and ends with
status 1 if that was too long. No other program should run.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from acceptance import ROOT, Client, photo, verdict
from hangs import Starting, seconds_until

LEFT_S = 1.0
"""The longest time that a process may outlive its front end; the system takes back hundreds of megabytes meanwhile."""
EXECUTORS = "sparse", "reference"
"""One that pauses every few milliseconds, and one that computes a step to its end."""


async def killed(models: Path, executor: str) -> bool:
    """Kill the front end while its worker computes on a large photo, and look for what is left."""
    flags = "--executor", executor, "--precision", "fp32", "--spare-workers", "1", "--max-pixels", str(2**24)

    async def ready() -> bool:
        return await server.status() == 200

    with suppress(ProcessLookupError):  # there is no server to be ended
        async with Starting(models, *flags) as server:
            await seconds_until(ready)
            await seconds_until(lambda: len(server.workers) == 2)
            asked = asyncio.create_task(Client(server.port).send("/v1/predict?deadline_ms=30000", photo(4000, 3000)))
            worker = server.workers[0]
            before = cpu_s(worker)
            await seconds_until(lambda: cpu_s(worker) > before + 0.3)  # in the middle of a step
            children = server.workers
            os.kill(server.pid, signal.SIGKILL)
            began_s = time.monotonic()
            left_s = [await seconds_until(lambda child=child: not runs(child)) for child in children]
            took_s = time.monotonic() - began_s
            await asyncio.gather(asked, return_exceptions=True)
    passed = took_s < LEFT_S and len(left_s) == 2
    print(
        f"{'ok   ' if passed else 'FAULT'} {executor}: the worker and the reserve ended after {took_s:.2f} s",
        flush=True,
    )
    return passed


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def runs(pid: int) -> bool:
    """Whether a process is there and no mere entry in the table of processes."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def run(models: Path) -> bool:
    return all([await killed(models, executor) for executor in EXECUTORS])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "zoo")
    passed = asyncio.run(run(parser.parse_args(argv).models))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
