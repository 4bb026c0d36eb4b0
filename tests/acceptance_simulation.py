"""Acceptance test of the simulator: the same trace, live and simulated. pytest does not collect it.

`python tests/acceptance_simulation.py --images CAMVID/val/images --rate 80` loads a server with `adpc load`, replays
what was sent in `python -m server simulate`, prints both, and ends with status 1 if they differ by more than they may.
No other program should run: the simulated costs are those of the whole machine.

All times come from the live run. Each stage of the gains is scaled to its mean there, without the share of time in
which the front end held one of the cores that this program and the server may use. The front end's time is the CPU time
of its process and of those that decode. The generator shares the cores, so that what it takes for a request is added to
what the front end takes for a head.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from acceptance import ROOT, Client, Server, verdict

HEAD_MS = 0.28
"""The front end's CPU for a request that is refused by its head, see `front_end.py refusals`."""
UTILITY = 0.03
"""The mean utility may differ by this share of it."""
WITHOUT = 0.02
"""The share of requests without an answer may differ by this much."""
EXITS = 0.07
"""The largest total variation between the shares of the exits."""
OFTEN = 30
"""The least number of requests that must have reached an exit; with fewer, the mean time of the exit is not used."""
USERS, EACH = 4, 25
"""To measure the time between two stages, so many users send at once, each so many requests one after the other."""


async def output(*command: str) -> Any:
    """What a command prints, as JSON."""
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return json.loads(printed)


def cpu_ms(process: str) -> float:
    """The CPU time of a process, its threads included (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class FrontEndTime:
    """The CPU time that a server's front end takes from now on."""

    def __init__(self, server: Server) -> None:
        self._front_end = str(server.pid)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        self._decoders = [pid for pid in children if b"server.decoding" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        self._before_ms = self._now_ms()

    def _now_ms(self) -> tuple[float, float]:
        return cpu_ms(self._front_end), sum(map(cpu_ms, self._decoders))

    def parts_ms(self, requests: int, answers: int, generator_ms: float) -> tuple[float, float, float]:
        """Milliseconds for a head, an image and a reply, for so many requests and answers. What the front end's own
        process takes beyond the heads is split evenly between images and replies."""
        process_ms, decoding_ms = (now - before for now, before in zip(self._now_ms(), self._before_ms, strict=True))
        half_ms = max(0.0, process_ms - HEAD_MS * requests) / answers / 2
        return HEAD_MS + generator_ms, decoding_ms / answers + half_ms, half_ms


Totals = list[tuple[float, float]]


async def totals(server: Server, name: str) -> Totals:
    """For each exit, the milliseconds that a histogram has counted so far, and how often."""
    sums, counts = [await server.metrics(f"{name}_{part}") for part in ("sum", "count")]
    return [(1000 * sums[key], counts[key.replace("_sum{", "_count{")]) for key in sorted(sums)]


def means(before: Totals, after: Totals) -> list[float | None]:
    """The means between two totals; None for an exit that was reached fewer than `OFTEN` times."""
    changes = [(now_ms - then_ms, now - then) for (now_ms, now), (then_ms, then) in zip(after, before, strict=True)]
    return [taken_ms / ran if ran >= OFTEN else None for taken_ms, ran in changes]


async def turn_ms(server: Server, images: Sequence[bytes], model: str) -> float:
    """The milliseconds from the end of a stage to the start of the next one while several requests wait: the worker
    tells an exit, reads its mail and chooses the next job."""

    async def ask(user: int) -> None:
        client = Client(server.port)
        for number in range(EACH):
            image = images[(user * EACH + number) % len(images)]
            answer = await client.send(f"/v1/predict?model={model}&deadline_ms=30000", image)
            if answer.status != 200:
                sys.exit(
                    f"a request with time enough got status {answer.status}: {answer.body.decode(errors='replace')}"
                )

    before, began_s = await totals(server, "anytime_stage_seconds"), time.monotonic()
    await asyncio.gather(*map(ask, range(USERS)))
    taken_ms, after = 1000 * (time.monotonic() - began_s), await totals(server, "anytime_stage_seconds")
    stage_ms, stages = np.subtract(after, before).sum(axis=0)
    return float((taken_ms - stage_ms) / stages)


def rescale(gains: Path, mean_ms: Sequence[float | None], turn: float) -> None:
    """Scale each stage of measured gains to a mean, and add a turn of the worker. A stage whose mean is not known is
    scaled as the first one."""
    if mean_ms[0] is None:
        sys.exit(
            f"exit 1 was reached fewer than {OFTEN} times; load the server for more --seconds, or at a lower --rate"
        )
    measured = json.loads(gains.read_text())
    profiles = measured["profiles"]
    factors: list[float] = []
    for index, now_ms in enumerate(mean_ms):
        before_ms = statistics.fmean(found["stage_ms"][index] for found in profiles)
        factors.append(factors[0] if now_ms is None else now_ms / before_ms)
    told = ", ".join(f"{factor:.2f}" for factor in factors)
    print(f"stages took {told} times what {gains.name} says, and {turn:.2f} ms between two")
    for found in profiles:
        found["stage_ms"] = [factor * ms + turn for factor, ms in zip(factors, found["stage_ms"], strict=True)]
    gains.write_text(json.dumps(measured))


async def compare(args: argparse.Namespace) -> bool:
    images = sorted(args.images.iterdir())[: args.count] if args.images else [args.model / "street.jpg"]
    low, high = args.deadline_ms
    with tempfile.TemporaryDirectory() as folder:
        trace, models = str(Path(folder) / "trace.jsonl"), Path(folder) / "models"
        shutil.copytree(args.model, models / args.model.name)
        gains = models / args.model.name / ("gains-int8.json" if args.precision == "int8" else "gains.json")
        async with Server(models, "--precision", args.precision, "--max-open", "2000") as server:
            load = [f"http://127.0.0.1:{server.port}", *(f"--image={path}" for path in images), "--save-trace", trace]
            load += ["--rate", str(args.rate), "--seconds", str(args.seconds), "--deadline-ms", f"{low:g}-{high:g}"]
            load += ["--utility", str(gains), "--max-open", "2000", "--seed", "0", "--json"]
            turn = await turn_ms(server, [image.read_bytes() for image in images], args.model.name)
            taken, before = FrontEndTime(server), await totals(server, "anytime_stage_seconds")
            live = await output(sys.executable, "-m", "adpc_client", "load", "--url", *load)
            mean_ms = means(before, await totals(server, "anytime_stage_seconds"))
            answers = live["requests"] - live["exits"].get("0", 0)
            parts_ms = taken.parts_ms(live["requests"], answers, live["generator"]["cpu_ms_per_request"])
        # The simulated front end takes one of the cores while it works, so the stages must not contain that time.
        cores = len(os.sched_getaffinity(0))
        busy_share = (live["requests"] * parts_ms[0] + answers * sum(parts_ms[1:])) / 1000 / live["seconds"]
        rescale(gains, [None if mean is None else mean * (1 - busy_share / cores) for mean in mean_ms], turn)
        front_end = [f"{part_ms:.3f}" for part_ms in parts_ms]
        print(f"milliseconds of the front end for a head, an image and a reply: {', '.join(front_end)}; {cores} cores")
        replay = ["--models", str(models), "--precision", args.precision, "--trace", trace, "--json"]
        replay += ["--front-end-ms", *front_end, "--cores", str(cores), "--seeds", "5"]
        simulated = await output(sys.executable, "-m", "server", "simulate", *replay)
    ours = simulated["loads"][0]["disciplines"][0]
    shares = [live["exits"].get(str(index), 0) / live["requests"] for index in range(len(ours["exits"]))]
    distance = sum(abs(one - other) for one, other in zip(shares, ours["exits"], strict=True)) / 2
    utility = live["utility"]["in_time"], ours["utility"]["mean"]
    without = 1 - live["in_time_share"], ours["without"]["mean"]
    print(f"exits, live {[round(share, 3) for share in shares]}, simulated {[round(x, 3) for x in ours['exits']]}")
    print(f"their distance (total variation) {distance:.3f}; utility {utility[0]:.3f} and {utility[1]:.3f}; without an")
    print(f"answer in time {without[0]:.2%} and {without[1]:.2%}")
    return distance <= EXITS and abs(utility[0] / utility[1] - 1) <= UTILITY and abs(without[0] - without[1]) <= WITHOUT


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "zoo" / "camvid-adpc-w18", help="directory")
    parser.add_argument("--images", type=Path, help="folder of the images that measured its gains; default: one street")
    parser.add_argument("--count", type=int, default=101, help="how many of them")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--deadline-ms", type=float, nargs=2, default=(50.0, 300.0))
    passed = asyncio.run(compare(parser.parse_args(argv)))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
