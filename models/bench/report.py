"""What a benchmark prints and draws: its table, its figure, and the machine and versions that it ran with."""

import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from models.bench.cases import OWN
from models.bench.profile import lines
from models.bench.side_by_side import BenchResult, fastest
from models.executors.cpu.isa import Isa
from models.executors.processor import processor

EXITS = 4
RUNTIME_DISTRIBUTIONS = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "nncf": ("nncf",),
}


def table(results: Sequence[BenchResult]) -> Iterator[str]:
    """The lines of one comparison: results of one network and size."""
    case, scored = results[0].case, results[0].accuracy
    about = f"HRNet-{case.width.upper()} at {case.size[0]}x{case.size[1]}: milliseconds to every exit, medians"
    heads = "".join(f"{head:>9}" for head in ("exit 1", "2", "3", "4"))
    if scored is None:
        last = f"{'difference':>12}"
    else:
        about = f"{Path(case.model or '').name}, {about}; mIoU in percent over {scored.images} validation images"
        last = "".join(f"{head:>7}" for head in ("mIoU 1", "2", "3", "4"))
    yield about
    yield f"  {'runtime':<18}{'precision':<12}{'network':<28}{heads}{'speed-up':>10}{last}{'peak MiB':>10}"
    dense = fastest(results, "one exit", -1)
    for result in results:
        active = ", ".join(f"{share:.0%}" for share in result.case.active)
        network = f"{result.case.kind} {active}".rstrip()
        times = _at_exits([f"{1000 * second:.1f}" for second in result.seconds], 9)
        speed_up = "-" if dense is None else f"{dense.seconds[-1] / result.seconds[-1]:.2f}x"
        if result.accuracy is None:
            last = f"{'' if result.difference is None else f'{result.difference:.1e}':>12}"
        else:
            last = _at_exits(["-" if score is None else f"{score:.2f}" for score in result.accuracy.miou], 7)
        memory = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.0f}"
        yield (f"  {result.case.runtime:<18}{result.precision:<12}{network:<28}{times}{speed_up:>10}{last}{memory:>10}")
    if dense is not None:
        yield f"  speed-ups are over {dense.case.runtime} ({dense.precision}), one exit"
    yield from _shares(results)
    for result in results:
        if result.profile is not None:
            yield f"  {result.case.runtime}, {result.case.kind}: where the time goes, medians"
            yield from lines(result.profile)


def _at_exits(texts: Sequence[str], width: int) -> str:
    """A column for each exit; a network with one exit has the last."""
    return "".join(f"{text:>{width}}" for text in ([""] * (EXITS - len(texts)) + list(texts)))


def _shares(results: Sequence[BenchResult]) -> Iterator[str]:
    """Lines with two ratios: time to exit 1 over the fastest dense runtime's, and stage time with masks over that
    without."""
    for full in (each for each in results if each.case.runtime in OWN and each.case.kind == "anytime"):
        own = full.case.runtime
        if (exit_1 := fastest(results, "anytime", 0)) is not None:
            share = full.seconds[0] / exit_1.seconds[0]
            yield f"  {own} exit 1 takes {share:.2f} of the fastest dense runtime's time ({exit_1.case.runtime})"
        for result in results:
            shares = set(result.case.active)
            if len(shares) == 1 and result.case.runtime == own:
                stages = (result.seconds[-1] - result.seconds[0]) / (full.seconds[-1] - full.seconds[0])
                share_text = f"{stages:.3f} of their time when {shares.pop():.0%} are active"
                yield f"  {own}: the stages after exit 1 take {share_text}"


def plot(comparisons: Sequence[Sequence[BenchResult]], path: Path) -> None:
    """A PNG with a panel for each comparison: seconds over exits, a curve for each case."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    panels = len(comparisons)
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 4), squeeze=False, layout="constrained")
    for axis, results in zip(axes[0], comparisons, strict=True):
        for result in results:
            exits = range(1, len(result.seconds) + 1) if len(result.seconds) > 1 else [4]
            style = "o-" if result.case.runtime in OWN else "x--"
            axis.plot(exits, result.seconds, style, label=f"{result.case.runtime}, {result.case.kind}")
        case = results[0].case
        axis.set(title=f"{case.width.upper()}, {case.size[0]}x{case.size[1]}", xlabel="exit", ylabel="seconds")
        axis.set_xticks(range(1, 5))
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def machine() -> dict[str, str | int | None]:
    """The processor, its cores, the kernels that are built for it, and versions."""
    versions = {}
    for package, distributions in RUNTIME_DISTRIBUTIONS.items():
        versions[package] = "not installed"
        for distribution in distributions:
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(distribution)
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "kernels": Isa.find().name,
        "python": platform.python_version(),
        **versions,
    }
