"""python -m models picture: what every exit says of an image, how sure it is, and what it settles (figure 4).

Imports executors, no training loop; matplotlib only when it draws.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.anytime import AnytimeModel, exits_of
from models.checkpoint import load_directory
from models.commands.options import add_executor, add_threshold, with_threshold
from models.directory import resolve
from models.executors.selection import build
from models.imaging.geometry import Box, Frame
from models.imaging.images import read_image
from models.imaging.postprocess import extra_map
from models.network.configs import GIGA, Extra, ModelConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image3 = NDArray[np.float64]
"""float64 (H, W, 3), RGB in 0..1."""

OPACITY = 0.65
"""Of colours over the image."""
MIN_SCORE = 0.1
"""Joints below this score are guesses and are not drawn."""
SETTLED = "#22a455"
DECIDED = ("#22a455", "#7fd3e8", "#f5a623", "#d0312d")
"""Of pixels whose prediction is that of exit 1, 2, 3, 4; settled at exit 1 is settled for good."""
COLUMN_INCHES, DPI = 3.2, 100


@dataclass(frozen=True)
class Shown:
    """What an exit's column shows, at the image's size.

    `prediction`: uint8 (H, W) labels or float32 (J, 3) keypoints. `confidence`: uint8 (H, W), 255 for 1. `settled`:
    bool (H, W), what later exits leave out. `decided`: uint8 (H, W), the exit whose prediction stands. `gmacs`: from
    the image to this exit. `share`: of positions settled.
    """

    index: int
    prediction: NDArray[Any]
    confidence: NDArray[np.uint8]
    settled: NDArray[np.bool_]
    decided: NDArray[np.uint8]
    gmacs: float
    share: float


def look(model: AnytimeModel, image: NDArray[np.uint8], box: Box | None = None) -> tuple[list[Shown], Frame]:
    """Every exit of `image`, uint8 (H, W, 3), and where the network's input lies in it."""
    state, config = model.begin(image, box), model.config
    shown = []
    for exit_index in exits_of(model, [state]):
        found = state.latest()
        extras: tuple[Extra, ...] = ("confidence", "exit", "unsure")
        confidence, decided, unsure = (extra_map(found, config, state.frame, extra) for extra in extras)
        settles = config.masks_after(exit_index)
        shown.append(
            Shown(
                index=exit_index,
                prediction=model.render(state).array,
                confidence=confidence,
                settled=(unsure == 0) & settles,
                decided=decided,
                gmacs=found.macs / GIGA,
                share=(1 - found.active_share) * settles,
            )
        )
    return shown, state.frame


def draw(image: NDArray[np.uint8], shown: list[Shown], frame: Frame, config: ModelConfig, title: str) -> "Figure":
    """A column for the image and one for each exit; rows of predictions, confidence and positions settled, the last of
    which says whose prediction stands. Raises ValueError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  (an optional dependency, wanted only here)
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install --editable '.[train]'") from error
    left, top, right, bottom = seen(frame, config)
    height_inches = COLUMN_INCHES * (bottom - top) / (right - left)
    columns = len(shown) + 1
    figure = Figure(figsize=(COLUMN_INCHES * columns, 3 * height_inches + 1.3), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(3, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    grey: Image3 = np.repeat(image.mean(2, keepdims=True), 3, 2) / 255
    colours = _palette(config)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("the image", fontsize=12)
    for exit_, (prediction, confidence, positions) in zip(shown, axes[:, 1:].T, strict=True):
        last = exit_ is shown[-1]
        found = "the answer" if last else f"{exit_.share:.0%} settled"
        prediction.set_title(f"exit {exit_.index}: {found}, {exit_.gmacs:.3g} GMACs", fontsize=12)
        if config.task == "pose":
            prediction.imshow(image)
            _skeleton(prediction, exit_.prediction, config, colours)
        else:
            prediction.imshow(_over(image / 255, colours[exit_.prediction]))
        confidence.imshow(exit_.confidence / 255, cmap="viridis", vmin=0, vmax=1)
        if last:
            positions.imshow(_over(grey, _rgb(("black", *DECIDED))[exit_.decided]))
            positions.set_title("which exit decided", fontsize=12)
        else:
            positions.imshow(np.where(exit_.settled[:, :, None], _over(grey, _rgb([SETTLED])), grey))
    for axis in (axes[0, 0], *axes[:, 1:].flat):
        axis.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    _explain_confidence(axes[1, 0], config)
    _explain_positions(axes[2, 0], len(shown), config)
    _legend(figure, shown, config, colours)
    return figure


def seen(frame: Frame, config: ModelConfig) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what the network sees of the image, in pixels."""
    if config.task == "segmentation":
        return 0, 0, frame.width, frame.height
    left, top, side = round(frame.left), round(frame.top), round(frame.scale * config.size[0])
    return max(left, 0), max(top, 0), min(left + side, frame.width), min(top + side, frame.height)


def _skeleton(axis: "Axes", keypoints: NDArray[np.float32], config: ModelConfig, colours: Image3) -> None:
    x, y, score = keypoints.T
    drawn = score >= MIN_SCORE
    for a, b in config.skeleton:
        if drawn[a] and drawn[b]:
            axis.plot(x[[a, b]], y[[a, b]], color=colours[b], linewidth=3, solid_capstyle="round")
    axis.scatter(x[drawn], y[drawn], c=colours[drawn], s=30, edgecolors="white", linewidths=0.8, zorder=3)


def _explain_confidence(axis: "Axes", config: ModelConfig) -> None:
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415

    meaning = "probability of the\nlikeliest class" if config.task == "segmentation" else "highest joint's score"
    axis.text(0.5, 0.62, f"confidence\n({meaning})", ha="center", va="center", fontsize=12)
    bar = axis.inset_axes((0.1, 0.3, 0.8, 0.08))
    axis.figure.colorbar(ScalarMappable(cmap="viridis"), cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])


def _explain_positions(axis: "Axes", exits: int, config: ModelConfig) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    masking = config.masking
    rule = f"{masking.criterion}, threshold {masking.threshold:g}" if masking and config.adaptive else "without masks"
    handles = [
        Patch(color=SETTLED, label="settled, left out from here"),
        Patch(color="0.6", label="still computed"),
    ]
    handles += [Patch(color=colour, label=f"decided at exit {1 + k}") for k, colour in enumerate(DECIDED[:exits])]
    axis.legend(
        handles=handles, loc="center", fontsize=10, frameon=False, title=f"positions\n({rule})", title_fontsize=12
    )


def _legend(figure: "Figure", shown: list[Shown], config: ModelConfig, colours: Image3) -> None:
    """The colours of the classes that any exit found, or of the body's parts."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    if config.task == "segmentation":
        found = sorted(set().union(*(np.unique(exit_.prediction).tolist() for exit_ in shown)))
        handles = [Patch(color=colours[index], label=config.names[index]) for index in found]
    else:
        parts: dict[tuple[float, float, float], list[str]] = {}
        for (red, green, blue), name in zip(colours.tolist(), config.names, strict=True):
            parts.setdefault((red, green, blue), []).append(name)
        handles = [Patch(color=colour, label=", ".join(part)) for colour, part in parts.items()]
    columns = 10 if config.task == "segmentation" else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), frameon=False)


def _over(ground: Image3, colours: Image3) -> Image3:
    return (1 - OPACITY) * ground + OPACITY * colours


def _palette(config: ModelConfig) -> Image3:
    """(outputs, 3); well separated hues for what has no colour."""
    from matplotlib import colormaps  # noqa: PLC0415

    found = np.asarray(colormaps["turbo"](np.arange(config.outputs) * 0.618 % 1))[:, :3]
    found[: len(config.palette)] = np.array(config.palette).reshape(-1, 3) / 255
    return found


def _rgb(names: tuple[str, ...] | list[str]) -> Image3:
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    return np.array([to_rgb(name) for name in names])


def box(text: str) -> Box:
    """`X,Y,W,H`. Raises ValueError on anything else."""
    x, y, width, height = (float(part) for part in text.split(","))
    return x, y, width, height


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped model or a model directory")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where NAME-MODEL.png go; default: here"
    )
    add_executor(parser)
    add_threshold(parser)
    parser.add_argument(
        "--box", type=box, metavar="X,Y,W,H", help="the person in the images, for pose; default: all of it"
    )


def main(args: argparse.Namespace) -> int:
    network = load_directory(resolve(args.model))
    network.config = with_threshold(network.config, args.threshold)
    if args.box is not None and network.config.task != "pose":
        raise ValueError(f"--box is for pose; {network.config.name} does segmentation: leave it out")
    model = build(network, args.device, args.executor)
    args.output.mkdir(parents=True, exist_ok=True)
    outputs = [args.output / f"{path.stem}-{model.config.name}.png" for path in args.images]
    if len(set(outputs)) < len(outputs):
        raise ValueError("two images have one name, so that their pictures would too; give them in two calls")
    for path, output in zip(args.images, outputs, strict=True):
        image = read_image(path)
        shown, frame = look(model, image, args.box)
        title = f"{path.name}, {model.config.name}"
        draw(image, shown, frame, model.config, title).savefig(output)
        print(output)
    return 0
