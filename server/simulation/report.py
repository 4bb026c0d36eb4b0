"""What a simulation prints and draws."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.simulation.experiment import BOUND, OURS, DisciplineResult, LoadResult
from server.simulation.fleet import FleetResult


def table(result: LoadResult) -> Iterator[str]:
    """The lines of one load."""
    yield (
        f"load {result.load:.2g}x: {result.rate:.1f} requests a second, {result.requests} in all; intervals cover 95 %"
    )
    yield f"  {'discipline':<33}{'utility':<24}{'behind this server by':<24}{'no answer':>9}   exits 1, 2, .. in %"
    for discipline in sorted(result.disciplines, key=lambda each: -each.utility.mean):
        yield "  " + _row(discipline).rstrip()


def _row(result: DisciplineResult) -> str:
    utility = f"{result.utility.mean:.4f} ({result.utility.low:.3f}-{result.utility.high:.3f})"
    lead = f"{result.lead.mean:+.4f} ({result.lead.low:+.3f} {result.lead.high:+.3f})"
    if result.discipline == BOUND:
        return f"{BOUND:<33}{utility:<24}{lead}"
    exits = " ".join(f"{100 * share:4.1f}" for share in result.exits[1:])
    return (
        f"{result.discipline:<33}{utility:<24}{'' if result.discipline == OURS else lead:<24}"
        f"{result.without.mean:>8.2%}   {exits}"
    )


def fleet_row(result: FleetResult) -> str:
    exits = " ".join(f"{100 * share:4.1f}" for share in result.exits[1:])
    return (
        f"load {result.load:.2g}x  {result.routing:<26}{result.goodput:6.1f} in time a second and replica  "
        f"utility {result.utility:.4f}  no answer {result.without:6.2%}  exits 1, 2, .. in %: {exits}"
    )


def check_plot(path: Path) -> None:
    """Raises ValueError if `plot` cannot write to `path`."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error
    if not path.parent.is_dir():
        raise ValueError(f"--plot is {path}, but there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--plot is {path}, where no file can be written; name another one")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(f"--plot is {path}; its name must end with one of {', '.join(sorted(kinds))}")


def plot(results: Sequence[LoadResult], path: Path) -> None:
    """Utility over load, a curve for each discipline; the bound is dashed. Needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    names = dict.fromkeys(_curve(discipline.discipline) for result in results for discipline in result.disciplines)
    loads = [result.load for result in results]
    for name in names:
        found = [next(each for each in result.disciplines if _curve(each.discipline) == name) for result in results]
        style = "--" if name == BOUND else "-"
        (line,) = axes.plot(
            loads, [each.utility.mean for each in found], style, marker="o", label=name, lw=2.5 if name == OURS else 1.2
        )
        low, high = ([getattr(each.utility, end) for each in found] for end in ("low", "high"))
        axes.fill_between(loads, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xscale="log", xlabel="load", ylabel="mean utility of the answers", xticks=loads, ylim=(0, None))
    axes.set_xticklabels([f"{load:g}x" for load in loads])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _curve(name: str) -> str:
    """The name of a curve. It leaves out the number of the best fixed exit, which differs between loads."""
    return name.partition(" (")[0]
