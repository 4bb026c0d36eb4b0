"""Measures a server under load: the load generator `adpc load` sends it more and more requests a second."""

import asyncio
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from models.gpu_day.stages import ROOT

DEADLINES_MS = "50-300"
START_S = 2.0
"""The time that the generator takes to start and to report."""
SILENCE_S = 5.0
"""The generator is ended if it takes longer than planned by this."""


async def offer(port: int, rates: Sequence[float], seconds: float, until_s: float, line: Callable[[str], None]) -> None:
    """Sends the server requests, each with a drawn image of a street of 480x360 pixels, for `seconds` at every rate.

    `rates` are in requests a second; requests arrive as a Poisson process. `line` gets one line of figures for each
    rate. A rate whose run would end after `until_s`, a time of time.monotonic(), is left out.
    """
    if importlib.util.find_spec("httpx") is None:
        line("no httpx, so there is no load")
        return
    for rate in rates:
        if until_s - time.monotonic() < seconds + START_S:
            line(f"{rate:g} requests a second: no time left")
            continue
        program = (sys.executable, "-m", "adpc_client", "load", "--url", f"http://127.0.0.1:{port}", "--json")
        options = ("--rate", f"{rate:g}", "--seconds", f"{seconds:g}", "--deadline-ms", DEADLINES_MS)
        path = os.pathsep.join((str(ROOT / "clients"), os.environ.get("PYTHONPATH", "")))
        process = await asyncio.create_subprocess_exec(
            *program, *options, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), seconds + START_S + SILENCE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        if process.returncode:
            line(f"{rate:g} requests a second: adpc load ended with status {process.returncode}, see the log")
            continue
        found = json.loads(said)
        late_ms = {name: found["late_ms"].get(name) for name in ("p50", "p99", "p99.9")}
        line(
            f"{found['offered_per_s']:.0f} requests a second with deadlines of {DEADLINES_MS} ms: "
            f"{found['in_time_per_s']:.1f} a second in time ({found['in_time_share']:.1%}), exits {found['exits']}, "
            f"ms after the deadline {late_ms}, refused {found['refused']['requests']}, faults {found['faults']}, "
            f"ms of CPU of the generator {found['generator']['cpu_ms_per_request']}"
        )
