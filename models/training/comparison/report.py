"""What a comparison found: its JSON, a table of every variant, and a figure like the paper's figures 3 and 5."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.directory import WEIGHTS_FILE
from models.reading import read_json
from models.training.comparison.variants import PaperFigure, PaperVariant
from models.writing import write_text

JSON, TABLE, PLOT = "comparison.json", "comparison.md", "comparison.png"
EXITS = 4
TITLES: Mapping[PaperFigure, str] = {
    "exits": "Methods (figure 3, tables 1 and 4)",
    "downsampling": "Downsampling at exits 1/2/3 (figure 5, left)",
    "window": "Window of the interpolation (table 3)",
    "criteria": "Masking criteria, at inference only (figure 5, right)",
}

PANELS: Mapping[PaperFigure, str] = {"exits": "GMACs", "criteria": "GMACs, mean of exits", "downsampling": "exit"}
"""The panels of the plot, and what their x axes show."""


@dataclass
class ComparisonReport:
    """The results of every variant that has been scored.

    `about`: what all variants share, as JSON. `found`: for each variant, the result of `evaluate.segmentation`, the
    `step` of its weights and the `hardware`. JSON and table are written after every variant, so that a run that is
    stopped keeps its results.
    """

    output: Path
    about: dict[str, Any]
    variants: Sequence[PaperVariant]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, output: Path, about: dict[str, Any], variants: Sequence[PaperVariant], *, resume: bool
    ) -> "ComparisonReport":
        """A new report in the folder `output`, or with `resume` the one that it holds.

        Raises ValueError if `output` holds a report that is not to be resumed or is broken, or one with another
        `about`, whose results could not be compared with these.
        """
        report = cls(output, json.loads(json.dumps(about)), variants)
        if not resume and (output / JSON).exists():
            raise ValueError(f"{output} holds a comparison; --resume goes on with it, or choose another --output")
        if resume and (output / JSON).is_file():
            try:
                before = read_json(output / JSON)
            except ValueError as error:
                raise ValueError(f"{output / JSON}: {error}; remove it to score every row again") from error
            report.found = before.pop("rows")
            for name, value in report.about.items():
                if before.get(name) != value:
                    raise ValueError(
                        f"{output / JSON} is of another comparison: its {name} was {json.dumps(before.get(name))}; "
                        "choose another --output"
                    )
        output.mkdir(parents=True, exist_ok=True)
        report.write()
        return report

    def add(self, variant: PaperVariant, result: dict[str, Any]) -> None:
        self.found[variant.name] = result
        self.write()

    def write(self) -> None:
        write_text(self.output / JSON, json.dumps(self.to_json(), indent=1) + "\n")
        write_text(self.output / TABLE, self.markdown())

    def to_json(self) -> dict[str, Any]:
        return {**self.about, "rows": self.found}

    def markdown(self) -> str:
        """A table for each of the paper's figures, with a row for each of its variants."""
        numbers = " | ".join(map(str, range(1, EXITS + 1)))
        machines = dict.fromkeys(result["hardware"] for result in self.found.values())
        about = f"mIoU in percent over {self.about['images']} images of {self.about['scored_on']}"
        parts = [f"{about}; computed on {', '.join(machines)}." if machines else f"{about}."]
        for figure, title in TITLES.items():
            lines = [self._line(variant) for variant in self.variants if variant.figure == figure]
            head = f"| | mIoU {numbers} | mean | GMACs {numbers} | mean | trained | `--rows` |"
            parts.append("\n".join([f"**{title}**\n", head, "|" + "---|" * (2 * EXITS + 5), *lines]))
        return "\n\n".join(parts) + "\n"

    def _line(self, variant: PaperVariant) -> str:
        result = self.found.get(variant.name)
        scores, gmacs = ([], []) if result is None else _values(result)
        cells = [*_cells(scores, 1), *_cells(gmacs, 2)]
        return f"| {variant.title} | {' | '.join(cells)} | {self._trained(variant)} | `{variant.name}` |"

    def _trained(self, variant: PaperVariant) -> str:
        """How long the weights of a variant were trained, in the table's words."""
        result = self.found.get(variant.name)
        if result is None:
            return "not scored" if (self.output / variant.weights / WEIGHTS_FILE).is_file() else "not trained"
        if result["step"] is None:
            return str(self.about["weights"])
        steps = sum(phase["steps"] for phase in self.about["recipe"]["phases"])
        return f"{steps} steps" if result["step"] == steps else f"stopped at step {result['step']} of {steps}"

    def plot(self) -> None:
        """Writes the plot, a PNG of the panels that have results, or removes it if there are none."""
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (an optional dependency, wanted only here)

        panels = [panel for panel in PANELS if list(self._curves(panel))]
        path = self.output / PLOT
        if not panels:
            path.unlink(missing_ok=True)
            return
        canvas = Canvas(figsize=(6 * len(panels), 4.5), layout="constrained")
        for axes, panel in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for label, x, y in self._curves(panel):
                axes.plot(x, y, "rx" if len(x) == 1 and panel == "exits" else "o-", markersize=5, label=label)
            score = "mIoU, mean of exits" if panel == "criteria" else "mIoU"
            axes.set(title=TITLES[panel], xlabel=PANELS[panel], ylabel=score)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        canvas.savefig(path, dpi=120)

    def _curves(self, panel: PaperFigure) -> Iterator[tuple[str, list[float], list[float]]]:
        """Label, x and y of each curve of a panel."""
        scored = [variant for variant in self.variants if variant.name in self.found]
        if panel == "criteria":
            points: dict[str, list[tuple[float, float]]] = {}
            for variant in scored:
                if variant.figure == panel and variant.model.masking:
                    scores, gmacs = _values(self.found[variant.name])
                    criterion = variant.model.masking.criterion.replace("_", " ")
                    points.setdefault(criterion, []).append((statistics.fmean(gmacs), statistics.fmean(scores)))
            for criterion, pairs in points.items():
                x, y = zip(*sorted(pairs), strict=True)
                yield criterion, list(x), list(y)
        elif panel != "downsampling" or any(variant.figure == panel for variant in scored):
            for variant in scored:
                scores, gmacs = _values(self.found[variant.name])
                if variant.figure == panel or (panel == "downsampling" and variant.name == "rh"):
                    yield variant.title, gmacs if panel == "exits" else list(range(1, len(scores) + 1)), scores


def _values(result: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """mIoU (nan where nothing is labelled) and GMACs of every exit."""
    miou = [math.nan if exit_["miou"] is None else exit_["miou"] for exit_ in result["exits"]]
    return miou, [exit_["gmacs"] for exit_ in result["exits"]]


def _cells(values: Sequence[float], digits: int) -> list[str]:
    """A cell for each exit and one for their mean. A network with one exit fills the cell of the last exit."""
    shown = [f"{value:.{digits}f}" for value in values]
    mean = f"{statistics.fmean(values):.{digits}f}" if len(values) > 1 else "-"
    return [*["-"] * (EXITS - len(values)), *shown, mean]
