"""The arguments of `adpc load`."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from adpc_client.arguments import assignment, count, interval, positive, share, size
from adpc_client.load.arrivals import Arrivals, BurstArrivals, ConstantArrivals, GammaArrivals, PoissonArrivals
from adpc_client.load.plan import Mix

T = TypeVar("T")

MOST_CLIENTS = 10_000
"""Each client has a connection of its own, and so has each camera and each user of a closed loop."""
_PARAMETERS = 0.001, 1000.0
"""The limits of what describes an arrival process. Beyond them, gaps are too small or too large for numbers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adpc load`, apart from those of every command."""
    _add_pace(parser.add_argument_group("when requests are sent"))
    _add_requests(
        parser.add_argument_group("what requests are", "A mix is VALUE[:WEIGHT],..: --size 480x360:3,1920x1080")
    )
    _add_transport(parser.add_argument_group("how they are sent"))
    _add_report(parser.add_argument_group("what is reported"))


def mix(read: Callable[[str], T]) -> Callable[[str], Mix[T]]:
    """`A,B:3`: values that `read` reads, each with its weight, 1 if none is given."""

    def read_mix(text: str) -> Mix[T]:
        parts = [part.rpartition(":") if ":" in part else (part, "", "1") for part in text.split(",")]
        return Mix(tuple(read(value) for value, _, _ in parts), tuple(positive(weight) for _, _, weight in parts))

    return read_mix


def clients(text: str) -> Mix[str]:
    """`4`: so many equal clients. `10,1`: a client for each weight."""
    weights = [1.0] * count(text, MOST_CLIENTS) if "," not in text else [positive(weight) for weight in text.split(",")]
    return Mix(tuple(str(index) for index in range(len(weights))), tuple(weights))


def arrivals(text: str) -> Callable[[float], Arrivals]:
    """`poisson`, `constant`, `gamma:VARIATION` or `mmpp:FACTOR,SHARE,SECONDS`: arrivals at a rate that is still to be
    given."""
    kind, _, parameters = text.partition(":")
    complaint = f"{text!r} must be poisson, constant, gamma:VARIATION or mmpp:FACTOR,SHARE,SECONDS"
    numbers = [positive(part) for part in parameters.split(",")] if parameters else []
    kinds: dict[tuple[str, int], Callable[..., Arrivals]] = {
        ("poisson", 0): PoissonArrivals,
        ("constant", 0): ConstantArrivals,
        ("gamma", 1): GammaArrivals,
        ("mmpp", 3): BurstArrivals,
    }
    if (kind, len(numbers)) not in kinds:
        raise argparse.ArgumentTypeError(complaint)
    least, most = _PARAMETERS
    for number in numbers:
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} has the parameter {number:g}; it must be {least:g} to {most:g}")
    if kind == "mmpp" and numbers[1] >= 1:
        raise argparse.ArgumentTypeError(f"bursts have a share of {numbers[1]:g} of the time; it must be below 1")
    return lambda rate_per_s: kinds[kind, len(numbers)](rate_per_s, *numbers)


def _add_pace(group: "argparse._ArgumentGroup") -> None:
    pace = group.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=positive, metavar="R", help="open loop: R requests a second on average")
    pace.add_argument(
        "--cameras",
        type=partial(count, most=MOST_CLIENTS),
        metavar="N",
        help="N cameras, each a client with one frame on its way; meanwhile its newest frame waits",
    )
    pace.add_argument("--trace", type=Path, metavar="FILE", help="open loop: replay recorded arrivals, a JSON a line")
    pace.add_argument(
        "--concurrency",
        type=partial(count, most=MOST_CLIENTS),
        metavar="N",
        help="closed loop: N users who each wait for their answer (default 4)",
    )
    group.add_argument(
        "--arrivals",
        type=arrivals,
        metavar="PROCESS",
        help="of --rate: poisson (default), constant, gamma:VARIATION (of the gaps: deviation over mean), or "
        "mmpp:FACTOR,SHARE,SECONDS (bursts of FACTOR times the calm rate, SHARE of the time, SECONDS each on average)",
    )
    group.add_argument("--fps", type=positive, metavar="F", help="frames a second of each camera (default 10)")
    group.add_argument("--speed", type=positive, metavar="X", help="replay a trace X times as fast")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--count", type=count, metavar="N", help="requests (default 200; of a trace, all)")
    length.add_argument("--seconds", type=positive, metavar="S", help="send for S seconds")
    group.add_argument("--seed", type=int, default=0, help="seed of all random draws (default 0)")


def _add_requests(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--deadline-ms",
        type=mix(interval),
        metavar="MIX",
        help="deadlines, or ranges LOW-HIGH of them (default 200; of a camera, the time of a frame)",
    )
    group.add_argument("--size", type=mix(size), metavar="MIX", help="WIDTHxHEIGHT to scale the images to beforehand")
    group.add_argument("--model", type=mix(str), metavar="MIX", help="models that answer (default: the server's)")
    group.add_argument("--priority", type=mix(partial(_one_of, ("0", "1", "2"))), metavar="MIX", help="0, 1 or 2")
    group.add_argument(
        "--clients",
        type=clients,
        metavar="N|W,W,..",
        help="N equal clients, or the weight of each; to this machine, each sends from an address of its own",
    )
    group.add_argument(
        "--cancel",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of requests, 0 to 1, to cancel at random moments",
    )
    group.add_argument(
        "--hang-up",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of requests whose connection to close likewise",
    )
    group.add_argument(
        "--option",
        type=assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further option of every request, such as min_exit=2; may be repeated",
    )
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="image to send, may be repeated (default: a drawn street of 480x360)",
    )


def _add_transport(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--protocol", choices=("http", "stream"), default="http", help="POST or WebSocket (default http)"
    )
    group.add_argument(
        "--encoding",
        choices=("png", "raw", "delta", "json"),
        help="of the maps that the server sends (default: png over http, delta over stream)",
    )
    group.add_argument(
        "--connections-per-client",
        type=count,
        metavar="N",
        help="WebSockets that the requests of a client share (default: one for each open request)",
    )
    group.add_argument(
        "--max-open", type=count, metavar="N", help="open loop: send no more while N are unanswered (default 512)"
    )
    group.add_argument("--yes", action="store_true", help="allow a server on another machine")


def _add_report(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--grace-ms",
        type=positive,
        default=5.0,
        metavar="MS",
        help="an answer is in time if it is at most so late (default 5)",
    )
    group.add_argument(
        "--utility",
        metavar="U,U,..|FILE",
        help="value of each exit, such as 0.48,0.53,0.63,0.64, or the gains.json of a model",
    )
    group.add_argument("--save-trace", type=Path, metavar="FILE", help="write what was sent as a trace")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the run (needs matplotlib)")


def _one_of(names: tuple[str, ...], text: str) -> int:
    if text not in names:
        raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(names)}")
    return int(text)
