"""Runs `adpc load`: makes a plan of the arguments, measures, and prints the report."""

import argparse
import asyncio
import gc
import importlib
import json
import random
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, islice, repeat, takewhile
from math import inf, isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adpc_client.arguments import MOST, UsageError
from adpc_client.async_client import AsyncClient
from adpc_client.commands import request_headers
from adpc_client.errors import ConnectionFailedError, ImageError
from adpc_client.images import encode_image, open_image
from adpc_client.load.arrivals import PoissonArrivals, camera_frames
from adpc_client.load.http_transport import MEDIA_TYPES
from adpc_client.load.measurement import measure
from adpc_client.load.outcome import LoadMeasurement
from adpc_client.load.payloads import street
from adpc_client.load.plan import LoadTestPlan, Loop, Mix, RequestMix, draw_requests
from adpc_client.load.plot import check_plotting, plot
from adpc_client.load.report import summarise
from adpc_client.load.runner import LoadRunner
from adpc_client.load.table import table
from adpc_client.load.trace import read_trace, write_trace
from adpc_client.outputs import check_file
from adpc_client.proxy import is_loopback
from adpc_client.results import Model
from adpc_client.transport import Endpoint

_COUNT = 200
_FPS = 10.0
_DEADLINE_MS = 200.0
_LONGEST_S = 1e6
"""A load test of more than eleven days is a mistake, such as a trace whose moments are Unix seconds."""


def run(args: argparse.Namespace) -> int:
    """Put the server under load and print the figures of its answers."""
    headers = request_headers(args)
    if not args.yes and not is_loopback(urlsplit(Endpoint(args.url, headers).url).hostname or ""):
        raise UsageError(f"{args.url} is not this machine; add --yes if you may put that server under load")
    plan = make_plan(args)
    utility = None if args.utility is None else read_utility(args.utility)
    if args.plot:
        check_file("--plot", args.plot)
        check_plotting(args.plot)
    if args.save_trace:
        check_file("--save-trace", args.save_trace)
    measured = _run(_measure(args.url, plan, headers, utility))
    report = summarise(measured, plan.grace_ms, utility)
    print(json.dumps(asdict(report)) if args.json else table(report))  # before a file that may not be written
    if args.save_trace:
        args.save_trace.parent.mkdir(parents=True, exist_ok=True)
        write_trace(args.save_trace, (outcome.as_offered() for outcome in measured.outcomes if outcome.sent))
    if args.plot:
        plot(measured.outcomes, plan.grace_ms, args.plot)
    return 1 if report.faults else 0


def make_plan(args: argparse.Namespace) -> LoadTestPlan:
    """The plan that the arguments ask for. Raises UsageError if they contradict each other."""
    _check(args)
    _check_extent(args)
    loop, arrivals = _arrivals(args)
    requests = list(draw_requests(arrivals, _mix(args), args.seed))
    if not requests:
        raise UsageError(f"no request is due within {args.seconds or inf:g} s; give more --seconds, or a higher rate")
    if requests[-1].at_s > _LONGEST_S:
        raise UsageError(
            f"the last request is due after {requests[-1].at_s:,.0f} s; a load test may take {_LONGEST_S:,.0f} s. The "
            "at_s of a trace count from its start; --speed replays it faster"
        )
    return LoadTestPlan(
        requests=requests,
        images=[_image_file(path) for path in args.image] or [street(args.seed)],
        loop=loop,
        users=args.concurrency or LoadTestPlan.users,
        protocol=args.protocol,
        encoding=args.encoding,
        options=dict(args.option),
        connections_per_client=args.connections_per_client,
        max_open=args.max_open or LoadTestPlan.max_open,
        grace_ms=args.grace_ms,
    )


def _image_file(path: str) -> bytes:
    data, _ = encode_image(path)
    try:
        open_image(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    return data


class ProgressLine:
    """Says what has happened so far, in one line."""

    def __init__(self, grace_ms: float) -> None:
        self._grace_ms = grace_ms
        self._seen = self._in_time = self._faults = 0

    def text(self, runner: LoadRunner) -> str:
        for outcome in runner.outcomes[self._seen :]:
            self._in_time += outcome.exit_in_time(self._grace_ms) > 0
            self._faults += outcome.reply.fault
        self._seen = len(runner.outcomes)
        share = f"{self._in_time / self._seen:.1%}" if self._seen else "none"
        return f"{runner.now_s:6.1f} s  {self._seen} ended, {share} in time  {runner.open} open  {self._faults} faults"


def _check(args: argparse.Namespace) -> None:
    contradictions = {
        "--arrivals describes --rate; give that, too": args.arrivals and not args.rate,
        "--fps describes --cameras; give that, too": args.fps and not args.cameras,
        "--speed describes --trace; give that, too": args.speed and not args.trace,
        "--clients does not go with --cameras; each camera is a client": args.clients and args.cameras,
        "--seconds does not go with a closed loop; give --count": args.seconds
        and not (args.rate or args.cameras or args.trace),
        "--cancel and --hang-up are above 1 together; lower one": args.cancel + args.hang_up > 1,
        "--option deadline_ms is not measured against; give --deadline-ms": "deadline_ms" in dict(args.option),
        "--option id and --option type are set by adpc load itself; leave them out": {"id", "type"}
        & {*dict(args.option)},
        "--encoding delta goes with --protocol stream only": args.protocol == "http"
        and args.encoding not in (None, *MEDIA_TYPES),
        "--connections-per-client goes with --protocol stream only": args.protocol == "http"
        and args.connections_per_client,
        "--max-open describes an open loop; give --rate or --trace": args.max_open and not (args.rate or args.trace),
    }
    for sentence, holds in contradictions.items():
        if holds:
            raise UsageError(sentence)


def _check_extent(args: argparse.Namespace) -> None:
    """Raises UsageError if a plan at this rate would not fit into memory, or never end."""
    rate_per_s = args.rate or (args.cameras or 0) * (args.fps or _FPS)
    if not rate_per_s:
        return
    count = args.seconds * rate_per_s if args.seconds else args.count or _COUNT
    seconds = args.seconds or count / rate_per_s
    if count > MOST or seconds > _LONGEST_S:
        raise UsageError(
            f"{rate_per_s:g} requests a second are {count:,.0f} requests in {seconds:,.0f} s; a load test has at most "
            f"{MOST:,} requests in {_LONGEST_S:,.0f} s: change the rate, --count or --seconds"
        )


def _arrivals(args: argparse.Namespace) -> tuple[Loop, Iterable[Mapping[str, Any]]]:
    """Who decides when requests are sent, when they are due, and what else is given of each."""
    chance = random.Random(f"{args.seed} arrivals")
    loop: Loop = "open"
    arrivals: Iterable[Mapping[str, Any]]
    if args.trace:
        arrivals = [{**given, "at_s": given["at_s"] / (args.speed or 1.0)} for given in read_trace(args.trace)]
    elif args.cameras:
        loop = "cameras"
        frames = camera_frames(args.cameras, args.fps or _FPS, chance)
        arrivals = ({"at_s": at_s, "client": camera} for at_s, camera in frames)
    elif args.rate:
        process = (args.arrivals or PoissonArrivals)(args.rate)
        arrivals = ({"at_s": at_s} for at_s in process.moments(chance))
    else:
        loop, arrivals = "closed", repeat({"at_s": 0.0})
    count = args.count or (None if args.seconds or args.trace else _COUNT)
    return loop, islice(takewhile(lambda given: given["at_s"] < (args.seconds or inf), arrivals), count)


def _mix(args: argparse.Namespace) -> RequestMix:
    deadline_ms = 1000 / (args.fps or _FPS) if args.cameras else _DEADLINE_MS
    return RequestMix(
        deadlines_ms=args.deadline_ms or Mix.of((deadline_ms, deadline_ms)),
        sizes=args.size or Mix.of(None),
        models=args.model or Mix.of(None),
        priorities=args.priority or Mix.of(None),
        clients=args.clients or Mix.of("0"),
        cancel_share=args.cancel,
        hang_up_share=args.hang_up,
    )


def read_utility(text: str) -> tuple[float, ...]:
    """The value of each exit: from a list, or from a model's `gains.json`, whose means add up to them."""
    path = Path(text)
    try:
        if path.is_file():
            found = tuple(accumulate(float(gain["mean"]) for gain in json.loads(path.read_text())["exits"]))
        else:
            found = tuple(float(part) for part in text.split(","))
    except (ValueError, KeyError, TypeError):
        found = ()
    if not found or not all(map(isfinite, found)):
        raise UsageError(
            f"--utility {text!r} is neither a finite value for each exit, such as 0.48,0.53, nor a gains.json"
        )
    return found


def check_utility(utility: Sequence[float], plan: LoadTestPlan, offered: Sequence[Model]) -> None:
    """Raises UsageError if `utility` lacks a value for an exit that the plan may reach. Which of the `offered` models
    is the default one is not known; it has at least as many exits as the one that has the fewest."""
    exits = {model.name: len(model.exits) for model in offered}
    names = {request.model for request in plan.requests}
    last = max((count for name, count in exits.items() if name in names), default=0)
    if None in names:
        last = max(last, min(exits.values(), default=0))
    limit = plan.options.get("max_exit", "")
    if limit.isdecimal():
        last = min(last, int(limit))
    if len(utility) < last:
        raise UsageError(f"--utility has {len(utility)} values, and there are {last} exits; give a value for each exit")


async def _measure(
    url: str, plan: LoadTestPlan, headers: Mapping[str, str], utility: Sequence[float] | None
) -> LoadMeasurement:
    async with AsyncClient(url, headers=headers) as client:
        if not await client.ready():
            raise ConnectionFailedError(f"{url} is not ready: it is starting or draining")
        if utility is not None:
            check_utility(utility, plan, await client.models())
    line = ProgressLine(plan.grace_ms)
    shown = sys.stderr.isatty()

    def show(runner: LoadRunner) -> None:
        print(f"\r\033[K{line.text(runner)}", end="", file=sys.stderr, flush=True)

    gc.freeze()  # what is there by now stays; a collector that looked through it would hold up what is due
    try:
        return await measure(url, plan, show if shown else None, headers=headers)
    finally:
        gc.unfreeze()
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _run(measuring: Coroutine[Any, Any, LoadMeasurement]) -> LoadMeasurement:
    """Run on uvloop where it is installed: it takes less of the processor."""
    try:
        fast = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.run(measuring)
    result: LoadMeasurement = fast.run(measuring)
    return result
