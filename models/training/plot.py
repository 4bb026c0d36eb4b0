"""The plot of a training run: losses and scores of every exit over its steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG of `Run.history`, whose entries hold a `step`, and `losses` and `scores` (percent) of every exit."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (an optional dependency, wanted only here)

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, values, label in zip(figure.subplots(1, 2), ("losses", "scores"), ("loss", "score, %"), strict=True):
        for exit_index in range(len(history[0][values])):
            steps, points = [entry["step"] for entry in history], [entry[values][exit_index] for entry in history]
            axes.plot(steps, points, marker=".", label=f"exit {exit_index + 1}")
        axes.set(xlabel="step", ylabel=label)
        axes.legend()
    figure.savefig(path, dpi=120)
