"""`python -m models bench`: seconds to every exit, side by side in one run: the sparse executor under given masks and
at full density, and dense runtimes on the one-exit and the anytime network.

The runs of all runtimes are interleaved, so that they meet the same machine. Weights are random; speed does not depend
on them.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.adpc import AdpcNet
from models.configs import config
from models.executors.native.programs import Isa
from models.executors.onnx import TOLERANCE, ExitGraph, graphs, groups, signatures
from models.executors.reference import ReferenceExecutor
from models.executors.sparse import SparseExecutor
from models.flops import Size, gmacs, parse_shares, parse_size
from models.preprocess import STRIDE, Frame, pad
from models.training.data import camvid, scenes

ACTIVE = {"w18": (0.837, 0.741, 0.523), "w48": (0.807, 0.616, 0.370)}
"""Shares that give the multiply-adds of the paper's tables 1 and 3."""
SIZES: tuple[Size, ...] = ((360, 480), (512, 1024), (1024, 2048))
RUNTIMES = ("sparse", "torch", "compile", "onnxruntime", "openvino")

REPEATS = 10


@dataclass(frozen=True)
class Pass:
    """One image through one runtime: seconds from the start to every exit, and the scores there."""

    seconds: list[float]
    scores: list[Any]


Run = Callable[[], Pass]


@dataclass(frozen=True)
class Task:
    """A runtime on a network. `kind`: "one exit" and "anytime" are dense; "masked" is anytime under masks."""

    runtime: str
    kind: str
    width: str
    size: Size
    active: tuple[float, ...] = ()
    seed: int = 0
    threads: int = 1
    data: str | None = None

    @property
    def config(self) -> str:
        family = {"one exit": "hrnet", "anytime": "rh", "masked": "adpc"}[self.kind]
        return f"{family}-{self.width}-cityscapes"


@dataclass
class Row:
    """What a task took. `seconds`: medians to every exit. `difference`: from the reference, of the largest score."""

    task: Task
    passes: list[list[float]] = field(default_factory=list)
    difference: float = float("nan")
    peak_bytes: int | None = None

    @property
    def seconds(self) -> list[float]:
        return [median(column) for column in zip(*self.passes, strict=True)]


def network(task: Task) -> AdpcNet:
    """Random weights under which activations keep their size; the same for every kind."""
    torch.manual_seed(task.seed)
    net = AdpcNet(config(task.config))
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        net.train()(torch.randn(2, 3, 128, 128), adaptive=False)
    return net.eval()


def image(task: Task) -> Tensor:
    """Noise, (1, 3, H, W) as a network takes it."""
    return pad(torch.randn(1, 3, *task.size, generator=torch.Generator().manual_seed(task.seed)))


def masks(task: Task) -> list[Tensor]:
    """bool (h, w) after every exit but the last. `task.data`: a folder of CamVid; None: a drawn scene."""
    height, width = (side // STRIDE for side in image(task).shape[-2:])
    if task.data is None:
        labels = scenes.draw(2 * height, 2 * width, task.seed)
    else:
        found = camvid.read(Path(task.data), "val")
        labels = found[task.seed % len(found)].labels()
    return [torch.from_numpy(mask) for mask in scenes.masks(labels, height, width, task.active)]


def prepare(task: Task) -> Run:
    """Raises ModuleNotFoundError for a runtime that is not installed."""
    net, inputs = network(task), image(task)
    torch.set_num_threads(task.threads)
    if task.runtime == "sparse":
        given = masks(task) if task.kind == "masked" else []
        return partial(sparse, SparseExecutor(net, task.threads), inputs, given)
    if task.runtime in ("torch", "compile"):
        return partial(chained, eager(net, compiled=task.runtime == "compile"), inputs)
    make = onnxruntime if task.runtime == "onnxruntime" else openvino
    return partial(chained, make(net, shapes(net, inputs), task.threads), inputs.numpy())


def sparse(model: SparseExecutor, inputs: Tensor, given: Sequence[Tensor]) -> Pass:
    state = model.start(inputs, Frame(*inputs.shape[-2:]))
    begin, found = time.perf_counter(), Pass([], [])
    for step in model.steps:
        model.advance([state])
        if step.exit is None or state.exit is None:
            continue
        found.seconds.append(time.perf_counter() - begin)
        found.scores.append(state.exit.scores[None])
        if given and step.exit < model.config.exits:
            model.override(state, given[step.exit - 1], shrinking=True)
    return found


Stage = Callable[..., Sequence[Any]]
"""What leads from one exit to the next: branches (or the image) in; scores and branches out."""


def chained(stages: Sequence[Stage], inputs: Any) -> Pass:
    begin, found, values = time.perf_counter(), Pass([], []), [inputs]
    with torch.inference_mode():
        for stage in stages:
            scores, *values = stage(*values)
            found.seconds.append(time.perf_counter() - begin)
            found.scores.append(scores)
    return found


def eager(net: AdpcNet, *, compiled: bool) -> list[Stage]:
    stages = [ExitGraph(net, steps, masked=False).to(memory_format=torch.channels_last) for steps in groups(net)]  # type: ignore[call-overload]
    return [torch.compile(stage) for stage in stages] if compiled else stages


def shapes(net: AdpcNet, inputs: Tensor) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of every exit's inputs by name: runtimes are fastest when they know them beforehand."""
    with torch.device("meta"):
        meta = AdpcNet(net.config).eval()
    values, found = (inputs.to("meta"),), []
    for steps, signature in zip(groups(meta), signatures(net), strict=True):
        found.append({name: tuple(x.shape) for name, x in zip(signature.inputs, values, strict=True)})
        _, *values = ExitGraph(meta, steps, masked=False)(*values)
    return found


def onnxruntime(net: AdpcNet, known: Sequence[dict[str, tuple[int, ...]]], threads: int) -> list[Stage]:
    runtime = importlib.import_module("onnxruntime")
    stages: list[Stage] = []
    for graph, by_name in zip(graphs(net), known, strict=True):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        for name, shape in by_name.items():
            for axis, value in (("batch", 0), (f"{name}_height", 2), (f"{name}_width", 3)):
                options.add_free_dimension_override_by_name(axis, shape[value])
        session = runtime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        stages.append(
            lambda *values, session=session, names=tuple(by_name): session.run(
                None, dict(zip(names, values, strict=True))
            )
        )
    return stages


def openvino(net: AdpcNet, known: Sequence[dict[str, tuple[int, ...]]], threads: int) -> list[Stage]:
    core = importlib.import_module("openvino").Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    stages: list[Stage] = []
    for graph, by_name in zip(graphs(net), known, strict=True):
        model = core.read_model(graph)
        model.reshape({name: list(shape) for name, shape in by_name.items()})
        compiled = core.compile_model(model, "CPU", options)
        stages.append(lambda *values, compiled=compiled: [np.array(x) for x in compiled(list(values)).to_tuple()])
    return stages


def expected(task: Task) -> list[Tensor]:
    """What the reference says at every exit."""
    net, inputs = network(task), image(task)
    if task.kind != "masked":
        with torch.inference_mode():
            return list(net(inputs, adaptive=False))
    reference, found = ReferenceExecutor(net), []
    state = reference.start(inputs, Frame(*inputs.shape[-2:]))
    given = masks(task)
    for step in reference.steps:
        reference.advance([state])
        if step.exit is not None and state.exit is not None:
            found.append(state.exit.scores[None])
            if step.exit < net.config.exits:
                reference.override(state, given[step.exit - 1])
    return found


def peak(task: Task) -> int:
    """Bytes resident at most in a process that serves one image, this program's own among them."""
    prepare(task)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(tasks: Sequence[Task], repeats: int, *, check: bool, memory: bool) -> list[Row]:
    """The tasks side by side; those whose runtime is not there are left out, with a line that says so."""
    rows, runs, references = [], [], {}
    for task in tqdm(tasks, desc="prepare", leave=False):
        try:
            run = prepare(task)
            warm = run()
        except (ImportError, RuntimeError) as error:  # torch.compile without a compiler raises a RuntimeError
            print(f"left out: {task.runtime} ({str(error).splitlines()[0]})", file=sys.stderr)
            continue
        row = Row(task)
        if check:
            key = (task.kind, task.active)
            if key not in references:
                references[key] = expected(task)
            pairs = zip((torch.as_tensor(x) for x in warm.scores), references[key], strict=True)
            row.difference = max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)
        rows.append(row)
        runs.append(run)
    for _ in tqdm(range(repeats), desc="measure", leave=False):
        for row, run in zip(rows, runs, strict=True):
            row.passes.append(run().seconds)
    if memory:
        runs.clear()
        for row in rows:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row.peak_bytes = pool.apply(peak, (row.task,))
    return rows


def fastest(rows: Sequence[Row], kind: str, exit_index: int) -> float:
    """Seconds of the fastest dense runtime to an exit; nan if none ran."""
    dense = [row.seconds[exit_index] for row in rows if row.task.kind == kind and row.task.runtime != "sparse"]
    return min(dense, default=float("nan"))


def table(rows: Sequence[Row]) -> Iterator[str]:
    task = rows[0].task
    yield f"HRNet-{task.width.upper()} at {task.size[0]}x{task.size[1]}: milliseconds to every exit, medians"
    heads = "".join(f"{head:>9}" for head in ("exit 1", "2", "3", "4"))
    yield f"  {'runtime':<12}{'network':<28}{heads}{'speed-up':>10}{'difference':>12}{'peak MiB':>10}"
    one = fastest(rows, "one exit", -1)
    for row in rows:
        active = ", ".join(f"{share:.0%}" for share in row.task.active)
        times = [f"{1000 * second:.1f}" for second in row.seconds]
        times = times if len(times) > 1 else ["", "", "", *times]
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        yield (
            f"  {row.task.runtime:<12}{row.task.kind + (f' {active}' if active else ''):<28}"
            + "".join(f"{text:>9}" for text in times)
            + f"{one / row.seconds[-1]:>9.2f}x{row.difference:>12.1e}{memory:>10}"
        )
    full = next((row.seconds for row in rows if row.task.runtime == "sparse" and row.task.kind == "anytime"), None)
    if full is None:
        return
    yield f"  sparse exit 1 takes {full[0] / fastest(rows, 'anytime', 0):.2f} of the fastest dense runtime's time"
    for row in rows:
        shares = set(row.task.active)
        if len(shares) == 1:
            stages = (row.seconds[-1] - row.seconds[0]) / (full[-1] - full[0])
            yield f"  the stages after exit 1 take {stages:.3f} of their time when {shares.pop():.0%} are active"


def plot(cases: Sequence[Sequence[Row]], path: Path) -> None:
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5 * len(cases), 4), squeeze=False, layout="constrained")
    for axis, rows in zip(axes[0], cases, strict=True):
        for row in rows:
            exits = range(1, len(row.seconds) + 1) if len(row.seconds) > 1 else [4]
            style = "o-" if row.task.runtime == "sparse" else "x--"
            axis.plot(exits, row.seconds, style, label=f"{row.task.runtime}, {row.task.kind}")
        task = rows[0].task
        axis.set(title=f"{task.width.upper()}, {task.size[0]}x{task.size[1]}", xlabel="exit", ylabel="seconds")
        axis.set_xticks(range(1, 5))
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def machine() -> dict[str, str | int | None]:
    """What ran what."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    versions = {}
    for package in ("torch", "onnxruntime", "openvino"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernels": Isa.find().name,
        "python": platform.python_version(),
        **versions,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", nargs="+", choices=sorted(ACTIVE), default=["w18", "w48"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--active", type=parse_shares, metavar="p1,p2,p3", help="default: the paper's operation counts")
    parser.add_argument(
        "--sweep", type=parse_shares, default=(), metavar="p,..", help="also these shares at every exit"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="CamVid, whose label maps shape the masks; default: a drawn scene"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each, in a process of its own")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare with the reference")
    parser.add_argument("--output", type=Path, metavar="DIR", help="bench.json and bench.png are written there")
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    """Status 1 if a sparse run differs from the reference by more than 1e-4 of the largest score."""
    if args.device == "cuda":
        return int(importlib.import_module("models.training.bench_gpu").main(args, ACTIVE))  # needs Triton
    about = {"command": shlex.join(sys.argv), "seed": args.seed, "threads": args.threads, **machine()}
    cases = []
    for width in args.widths:
        for size in args.sizes:
            active = args.active or ACTIVE[width]
            of = partial(Task, width=width, size=size, seed=args.seed, threads=args.threads, data=args.data)
            tasks = []
            for runtime in args.runtimes:
                if runtime == "sparse":
                    shares = [active, *((share,) * 3 for share in args.sweep)]
                    tasks += [of(runtime, "masked", active=found) for found in shares]
                tasks += [of(runtime, "anytime"), of(runtime, "one exit")]
            cases.append(measure(tasks, args.repeats, check=args.check, memory=args.memory))
            if not args.json:
                print("\n".join(table(cases[-1])), flush=True)
    report = {
        **about,
        "rows": [{**asdict(row), "seconds": row.seconds, "gmacs": _gmacs(row.task)} for rows in cases for row in rows],
    }
    print(json.dumps(report) if args.json else "\n".join(f"{name}: {value}" for name, value in about.items()))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(cases, args.output / "bench.png")
    wrong = [row for rows in cases for row in rows if row.task.runtime == "sparse" and row.difference > TOLERANCE]
    return 1 if wrong else 0


def _gmacs(task: Task) -> list[float]:
    return gmacs(config(task.config), *task.size, task.active)
