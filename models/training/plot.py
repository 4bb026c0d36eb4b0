"""The picture of a run: losses and scores of every exit over its steps. Imports no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def history(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A PNG of `Run.history`: rows of `step`, `losses` and `scores` (percent), one value an exit."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (an optional dependency, wanted only here)

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, values, label in zip(figure.subplots(1, 2), ("losses", "scores"), ("loss", "score, %"), strict=True):
        for exit_index in range(len(rows[0][values])):
            steps, points = [row["step"] for row in rows], [row[values][exit_index] for row in rows]
            axes.plot(steps, points, marker=".", label=f"exit {exit_index + 1}")
        axes.set(xlabel="step", ylabel=label)
        axes.legend()
    figure.savefig(path, dpi=120)
