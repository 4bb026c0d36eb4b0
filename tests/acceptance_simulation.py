"""Acceptance test of the simulator: the same trace, live and simulated. pytest does not collect it.

`python tests/acceptance_simulation.py --images CAMVID/val/images --rate 80` loads a server with `adpc load`, replays
what was sent in `python -m server simulate`, prints both, and ends with status 1 if they differ by more than they may.
No other program should run: the simulated costs are those of the whole machine.

The generator shares the cores, so that what it takes for a request is added to what the front end takes for a head.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acceptance import ROOT, Server, verdict

UTILITY = 0.03
"""By so much of it the mean utility may differ; the next two are differences of shares."""
WITHOUT = 0.02
EXITS = 0.07


async def output(*command: str) -> Any:
    """What a command prints, as JSON."""
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return json.loads(printed)


async def compare(args: argparse.Namespace) -> bool:
    images = sorted(args.images.iterdir())[: args.count] if args.images else [args.model / "street.jpg"]
    gains = args.model / ("gains-int8.json" if args.precision == "int8" else "gains.json")
    low, high = args.deadline_ms
    with tempfile.TemporaryDirectory() as folder:
        trace, models = str(Path(folder) / "trace.jsonl"), Path(folder) / "models"
        models.mkdir()
        (models / args.model.name).symlink_to(args.model.resolve())
        async with Server(models, "--precision", args.precision, "--max-open", "2000") as server:
            load = [f"http://127.0.0.1:{server.port}", *(f"--image={path}" for path in images), "--save-trace", trace]
            load += ["--rate", str(args.rate), "--seconds", str(args.seconds), "--deadline-ms", f"{low:g}-{high:g}"]
            load += ["--utility", str(gains), "--max-open", "2000", "--seed", "0", "--json"]
            live = await output(sys.executable, "-m", "adpc_client", "load", "--url", *load)
        head_ms, image_ms, reply_ms = args.front_end_ms
        front_end = [str(head_ms + live["generator"]["cpu_ms_per_request"]), str(image_ms), str(reply_ms)]
        replay = ["--models", str(models), "--precision", args.precision, "--trace", trace, "--json"]
        simulated = await output(
            sys.executable, "-m", "server", "simulate", *replay, "--front-end-ms", *front_end, "--seeds", "5"
        )
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "zoo" / "camvid-adpc-w18", help="directory")
    parser.add_argument("--images", type=Path, help="folder of the images that measured its gains; default: one street")
    parser.add_argument("--count", type=int, default=101, help="how many of them")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--deadline-ms", type=float, nargs=2, default=(50.0, 300.0))
    parser.add_argument("--front-end-ms", type=float, nargs=3, default=(0.25, 2.2, 1.4), help="see server simulate")
    passed = asyncio.run(compare(parser.parse_args(argv)))
    return verdict(passed)


if __name__ == "__main__":
    sys.exit(main())
