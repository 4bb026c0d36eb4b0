"""A load report as a picture."""

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpc_client.load.outcome import Outcome


def check_plotting(path: Path) -> None:
    """Raises ValueError if matplotlib is missing, or does not draw files with the suffix of `path`."""
    try:
        importlib.import_module("matplotlib")
        canvas = importlib.import_module("matplotlib.backend_bases").FigureCanvasBase
    except ImportError as error:
        raise ValueError("a plot needs matplotlib: pip install 'adpc-client[plot]'") from error
    known = canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"the plot {path} must end in one of {', '.join(f'.{name}' for name in sorted(known))}")


def plot(outcomes: Sequence[Outcome], grace_ms: float, path: Path) -> None:
    """Draw `outcomes` into a file. The suffix of `path` chooses its format."""
    check_plotting(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(outcomes, grace_ms).savefig(path)


def draw(outcomes: Sequence[Outcome], grace_ms: float) -> Any:
    """A figure of requests and exits over time, of lateness, and of each client's exits."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(12, 8), layout="constrained")
    (rates, lateness), (exits, clients) = figure.subplots(2, 2)
    _draw_rates(rates, outcomes, grace_ms)
    _draw_lateness(lateness, outcomes)
    _draw_exits(exits, outcomes)
    _draw_clients(clients, outcomes)
    return figure


def _seconds(outcomes: Sequence[Outcome]) -> NDArray[np.int64]:
    """The second in which each request was due."""
    return np.array([outcome.request.at_s for outcome in outcomes]).astype(np.int64)


def _named(exit: int) -> str:
    return f"exit {exit}" if exit else "no exit"


def _draw_rates(axes: Any, outcomes: Sequence[Outcome], grace_ms: float) -> None:
    seconds = _seconds(outcomes)
    in_time = np.array([outcome.exit_in_time(grace_ms) > 0 and not outcome.given_up for outcome in outcomes], bool)
    for name, chosen in (("offered", seconds), ("in time", seconds[in_time])):
        axes.stairs(np.bincount(chosen, minlength=seconds.max(initial=0) + 1), label=name)
    axes.set(xlabel="due, seconds from the start", ylabel="requests a second", ylim=(0, None))
    axes.legend()


def _draw_exits(axes: Any, outcomes: Sequence[Outcome]) -> None:
    seconds = _seconds(outcomes)
    exits = np.array([outcome.exit for outcome in outcomes], np.int64)
    below = np.zeros(seconds.max(initial=0) + 1, np.int64)
    for exit in np.unique(exits):
        counts = np.bincount(seconds[exits == exit], minlength=len(below))
        axes.stairs(below + counts, baseline=below, fill=True, label=_named(exit))
        below += counts
    axes.set(xlabel="due, seconds from the start", ylabel="requests a second")
    axes.legend()


def _draw_lateness(axes: Any, outcomes: Sequence[Outcome]) -> None:
    late_ms = np.sort([outcome.late_ms for outcome in outcomes if outcome.exit > 0 and not outcome.given_up])
    axes.step(late_ms, np.arange(1, len(late_ms) + 1) / max(1, len(late_ms)), where="post")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(xlabel="milliseconds after the deadline", ylabel="share of answers", ylim=(0, 1))


def _draw_clients(axes: Any, outcomes: Sequence[Outcome]) -> None:
    clients = sorted({outcome.request.client for outcome in outcomes}, key=lambda name: (len(name), name))
    below = np.zeros(len(clients), np.int64)
    for exit in sorted({outcome.exit for outcome in outcomes}):
        of_exit = Counter(outcome.request.client for outcome in outcomes if outcome.exit == exit)
        counts = np.array([of_exit[client] for client in clients])
        axes.bar(clients, counts, bottom=below, label=_named(exit))
        below += counts
    axes.set(xlabel="client", ylabel="requests")
    axes.legend()
