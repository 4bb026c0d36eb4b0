"""`python -m server simulate`: the scheduler and the admission of this server against baselines and a bound."""

import argparse
import json
import sys
from collections.abc import Sequence
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
from server.simulation.report import fleet_row, plot, table
from server.simulation.traffic import PROCESSES, read_trace
from server.simulation.workload import FrontEnd, SimulatedModel, Workload, rate_1x

PROGRAM = "python -m server simulate"


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
        default=[0.5, 1, 2, 4],
        metavar="X",
        help="1: all exits of all requests take exactly the device's time; default: 0.5 1 2 4",
    )
    found.add_argument("--seeds", type=int, default=10, help="default: 10")
    found.add_argument("--duration-s", type=float, default=20.0, help="seconds of arrivals for each seed; default: 20")
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
        "--budget", type=Path, metavar="FILE", help="budget file of this server; the simulation begins at midnight UTC"
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
    """Runs the command and returns its exit status: 0, 1 (failed) or 2 (wrong usage)."""
    args = parser().parse_args(argv)
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
    check(args)
    catalog = read_catalog(args.models, args.model)
    models = measured(catalog, args.precision)
    head_s, image_s, reply_s = (milliseconds / 1000 for milliseconds in args.front_end_ms)
    front_end = FrontEnd(head_s, image_s, reply_s, speed_left=1 - 1 / args.cores if args.cores else 1.0)
    workload = Workload(models, tuple(args.deadline_ms))
    if args.replicas is not None:
        run_fleet(Fleet(workload, front_end, args.replicas, args.duration_s), args)
        return
    experiment = Experiment(
        workload,
        front_end,
        read_trace(args.trace) if args.trace else PROCESSES[args.traffic or "poisson"],
        read_budget_file(args.budget, models).policies(Terms()) if args.budget else Policies(),
        tuple(args.load),
        args.seeds,
        args.duration_s,
        progress=_say if sys.stderr.isatty() else lambda _: None,
    )
    gains = workload.default.gains
    if not args.json:
        print(
            f"{workload.default.served.name} in {gains.precision}, measured on {gains.images} images of {gains.source} "
            f"({gains.machine}); load 1x is {rate_1x(workload.default, front_end):.1f} requests a second"
        )
    results = []
    for result in experiment.run():
        results.append(result)
        if not args.json:
            print("\n" + "\n".join(table(result)), flush=True)
    if args.json:
        about = {"model": workload.default.served.name, "precision": gains.precision, "machine": gains.machine}
        print(json.dumps(about | {"loads": [asdict(result) for result in results]}))
    if args.plot:
        plot(results, args.plot)


def run_fleet(fleet: Fleet, args: argparse.Namespace) -> None:
    results = []
    for result in fleet.run(args.load):
        results.append(result)
        if not args.json:
            print(fleet_row(result), flush=True)
    if args.json:
        print(json.dumps({"replicas": fleet.replicas, "routings": [asdict(result) for result in results]}))


def check(args: argparse.Namespace) -> None:
    low, high = args.deadline_ms
    if not 0 < low <= high:
        raise ValueError(f"--deadline-ms is {low:g} {high:g}; the first must be above 0 and not above the second")
    for name, values in (("load", args.load), ("seeds", [args.seeds]), ("duration-s", [args.duration_s])):
        if min(values) <= 0:
            raise ValueError(f"--{name} is {min(values):g}; it must be above 0")
    if args.cores < 0 or args.cores == 1:
        raise ValueError(f"--cores is {args.cores}; it must be 0, or at least 2")
    if args.replicas is not None and args.replicas < 1:
        raise ValueError(f"--replicas is {args.replicas}; it must be at least 1")
    if min(args.front_end_ms) <= 0:
        raise ValueError(f"--front-end-ms is {min(args.front_end_ms):g}; all three must be above 0")


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


def _say(text: str) -> None:
    print(f"\r{text:<60}", end="\r", file=sys.stderr, flush=True)
