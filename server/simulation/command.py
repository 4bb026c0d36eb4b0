"""`python -m server simulate`: the scheduler and the admission of this server against baselines and a bound."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from models.directory import GAINS_FILES
from models.gains import Gains
from models.quantisation import Precision
from server.catalog import Catalog, ServedModel, read_catalog
from server.errors import ServerError
from server.requests.budget_file import read_budget_file
from server.requests.policies import Policies, Terms
from server.settings import ROOT
from server.simulation.experiment import Experiment
from server.simulation.fleet import Fleet
from server.simulation.report import check_plot, fleet_row, plot, table
from server.simulation.traffic import LONGEST_S, PROCESSES, read_trace
from server.simulation.workload import FrontEnd, SimulatedModel, Workload, rate_1x

PROGRAM = "python -m server simulate"
LOADS = (0.5, 1.0, 2.0, 4.0)
SEEDS = 10
DURATION_S = 20.0
MOST_REQUESTS, MOST_REPLICAS = 2_000_000, 10_000
"""At one load. More would take days, and more memory than there is."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition(": ")[2], allow_abbrev=False)
    found.add_argument("--models", type=Path, default=ROOT / "models" / "zoo", help="folder of model directories")
    found.add_argument("--model", default="", help="model of requests that name none; default: the first by name")
    found.add_argument(
        "--precision",
        choices=("auto", "fp32", "int8"),
        default="auto",
        help="auto: int8 for models with gains-int8.json",
    )
    traffic = found.add_mutually_exclusive_group()
    traffic.add_argument("--traffic", choices=PROCESSES, help="kind of traffic; default: poisson")
    traffic.add_argument("--trace", type=Path, metavar="FILE", help="replay recorded arrivals, as adpc load does")
    found.add_argument(
        "--load",
        type=float,
        nargs="+",
        metavar="X",
        help="1: all exits of all requests take exactly the device's time; default: 0.5 1 2 4",
    )
    found.add_argument("--seeds", type=int, help=f"default: {SEEDS}")
    found.add_argument("--duration-s", type=float, help=f"seconds of arrivals for each seed; default: {DURATION_S:g}")
    found.add_argument(
        "--deadline-ms",
        type=float,
        nargs=2,
        default=[50, 300],
        metavar=("LOW", "HIGH"),
        help="deadlines are even between; default: 50 300",
    )
    found.add_argument(
        "--front-end-ms",
        type=float,
        nargs=3,
        default=[0.4, 2.2, 1.4],
        metavar=("HEAD", "IMAGE", "REPLY"),
        help="what the front end takes of one core to read a head, to receive and decode an image, and to encode and "
        "send an answer; default: 0.4 2.2 1.4",
    )
    found.add_argument(
        "--cores",
        type=int,
        default=2,
        help="cores that the worker computes on, of which the front end takes one while it works; 0: the worker has a "
        "device of its own; default: 2",
    )
    found.add_argument(
        "--budget",
        type=Path,
        metavar="FILE",
        help="budget file of this server; the simulation begins at midnight UTC of a Thursday",
    )
    found.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="compare ways to route Poisson traffic to so many servers, with one seed, instead of disciplines",
    )
    found.add_argument("--json", action="store_true", help="print figures as JSON")
    found.add_argument("--plot", type=Path, metavar="FILE", help="draw utility over load (needs matplotlib)")
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status: 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    found = parser()
    args = found.parse_args(argv)
    try:
        check(args)
    except ValueError as error:
        found.error(str(error))
    try:
        run(args)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ServerError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    if args.plot is not None:
        check_plot(args.plot)
    catalog = read_catalog(args.models, args.model)
    models = measured(catalog, args.precision)
    head_s, image_s, reply_s = (milliseconds / 1000 for milliseconds in args.front_end_ms)
    front_end = FrontEnd(head_s, image_s, reply_s, speed_left=1 - 1 / args.cores if args.cores else 1.0)
    workload = Workload(models, tuple(args.deadline_ms))
    loads, seeds, duration_s = tuple(args.load or LOADS), args.seeds or SEEDS, args.duration_s or DURATION_S
    requests = max(loads) * rate_1x(workload.default, front_end) * duration_s
    progress = SimulationProgress()
    try:
        if args.replicas is not None:
            check_extent(args.replicas * requests, "--load, --duration-s or --replicas")
            fleet = Fleet(workload, front_end, args.replicas, duration_s, progress=progress.say)
            run_fleet(fleet, loads, progress, as_json=args.json)
            return
        trace = read_trace(args.trace) if args.trace else None
        check_extent(seeds * (len(trace) if trace else requests), "--load, --duration-s, --seeds, or shorten the trace")
        traffic, policies = trace or PROCESSES[args.traffic or "poisson"], budget_policies(args.budget, models)
        experiment = Experiment(workload, front_end, traffic, policies, loads, seeds, duration_s, progress.say)
        run_experiment(experiment, progress, as_json=args.json, plot_to=args.plot)
    finally:
        progress.clear()


def run_experiment(
    experiment: Experiment, progress: "SimulationProgress", *, as_json: bool, plot_to: Path | None
) -> None:
    workload, gains = experiment.workload, experiment.workload.default.gains
    if not as_json:
        print(
            f"{workload.default.served.name} in {gains.precision}, measured on {gains.images} images of {gains.source} "
            f"({gains.machine}); load 1x is {rate_1x(workload.default, experiment.front_end):.1f} requests a second",
            flush=True,
        )
    results = []
    for result in experiment.run():
        results.append(result)
        progress.clear()
        if not as_json:
            print("\n" + "\n".join(table(result)), flush=True)
    if as_json:
        about = {"model": workload.default.served.name, "precision": gains.precision, "machine": gains.machine}
        print(json.dumps(about | {"loads": [asdict(result) for result in results]}))
    if plot_to is not None:
        plot(results, plot_to)


def run_fleet(fleet: Fleet, loads: Sequence[float], progress: "SimulationProgress", *, as_json: bool) -> None:
    results = []
    for result in fleet.run(loads):
        results.append(result)
        progress.clear()
        if not as_json:
            print(fleet_row(result), flush=True)
    if as_json:
        print(json.dumps({"replicas": fleet.replicas, "routings": [asdict(result) for result in results]}))


def check(args: argparse.Namespace) -> None:
    """Raises ValueError on values that cannot be simulated, and on options that mean nothing beside others."""
    low, high = args.deadline_ms
    if not 0 < low <= high < math.inf:
        raise ValueError(f"--deadline-ms is {low:g} {high:g}; give a low one above 0 and a high one, both finite")
    for name, values in (("load", args.load), ("seeds", [args.seeds]), ("duration-s", [args.duration_s])):
        for value in values or ():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} is {value:g}; it must be above 0 and finite")
    if args.cores < 0 or args.cores == 1:
        raise ValueError(f"--cores is {args.cores}; it must be 0, or at least 2")
    if args.duration_s is not None and args.duration_s > LONGEST_S:
        raise ValueError(f"--duration-s is {args.duration_s:g}; it may be at most {LONGEST_S:g}")
    if args.replicas is not None and not 1 <= args.replicas <= MOST_REPLICAS:
        raise ValueError(f"--replicas is {args.replicas}; it must be at least 1 and at most {MOST_REPLICAS:,}")
    for value in args.front_end_ms:
        if not 0 < value < math.inf:
            raise ValueError(f"--front-end-ms is {value:g}; all three must be above 0 and finite")
    if args.replicas is not None:
        _refuse_beside("--replicas", budget=args.budget, trace=args.trace, plot=args.plot)
        _refuse_beside("--replicas", traffic=None if args.traffic == "poisson" else args.traffic)
        _refuse_beside("--replicas", seeds=None if args.seeds == 1 else args.seeds)
    if args.trace is not None:
        _refuse_beside("--trace", load=args.load, duration_s=args.duration_s)


def check_extent(requests: float, remedy: str) -> None:
    """Raises ValueError if `requests` at one load, of all seeds together, are too many."""
    if requests > MOST_REQUESTS:
        raise ValueError(
            f"these are {requests:.3g} requests at one load; the most is {MOST_REQUESTS:,}: lower {remedy}"
        )


def _refuse_beside(other: str, **given: object) -> None:
    """Raises ValueError if one of these options was given. They mean nothing beside `other`."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} means nothing with {other}; leave it out")


def budget_policies(path: Path | None, models: Mapping[str, SimulatedModel]) -> Policies:
    """The policies of a budget file. Raises as `read_budget_file` does."""
    if path is None:
        return Policies()
    return read_budget_file(path, {name: model.served.config.exits for name, model in models.items()}).policies(Terms())


def measured(catalog: Catalog, precision: str) -> dict[str, SimulatedModel]:
    """The models whose gains were measured, the default first. Raises FileNotFoundError if the default has none."""
    found = {}
    for model in sorted(catalog, key=lambda model: model.name != catalog.default):
        chosen = _precision(model, precision)
        try:
            found[model.name] = SimulatedModel(model, Gains.load(model.directory, chosen))
        except FileNotFoundError as error:
            if model.name == catalog.default:
                raise FileNotFoundError(
                    f"{model.directory} has no {GAINS_FILES[chosen]}; measure it: python -m models calibrate "
                    f"{model.directory} --data DIR --split val --precision {chosen}"
                ) from error
    return found


def _precision(model: ServedModel, asked: str) -> Precision:
    if asked == "auto":
        return "int8" if (model.directory / GAINS_FILES["int8"]).is_file() else "fp32"
    return "int8" if asked == "int8" else "fp32"


class SimulationProgress:
    """Says on the standard error stream how far the simulation is. A terminal shows every text, each in the place of
    the one before. A file or pipe gets one line for each load: the part of the text before its colon, once."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._said = ""

    def say(self, text: str) -> None:
        load = text.partition(":")[0]
        if self._on_terminal:
            print(f"\r{text:<78}", end="\r", file=sys.stderr, flush=True)
        elif load != self._said:
            print(f"{PROGRAM}: {load}", file=sys.stderr, flush=True)
        self._said = load

    def clear(self) -> None:
        """Clear the line of a terminal, unless it is clear."""
        if self._on_terminal and self._said:
            self.say("")
