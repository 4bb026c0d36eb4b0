"""Draws what every exit says of an image, how sure it is, and which positions it leaves inactive (the paper's figure
4).

matplotlib is optional and imported only to draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.anytime import AnytimeModel, exits_of
from models.imaging.geometry import Box, Frame
from models.imaging.postprocess import extra_map
from models.network.configs import GIGA, Extra, ModelConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image3 = NDArray[np.float64]
"""float64 (H, W, 3), RGB in 0..1."""

OPACITY = 0.65
"""How much colours cover the image, 0..1."""
MIN_SCORE = 0.1
"""Joints below this score are guesses and are not drawn."""
INACTIVE = "#22a455"
DECIDED = ("#22a455", "#7fd3e8", "#f5a623", "#d0312d")
"""Colours of pixels that exit 1, 2, 3, 4 decided; see `_decided`."""
COLUMN_INCHES, DPI = 3.2, 100


@dataclass(frozen=True)
class ExitView:
    """What an exit's column shows, at the image's size.

    `prediction`: uint8 (H, W) labels or float32 (J, 3) keypoints. `confidence`: uint8 (H, W), 255 for 1. `inactive`:
    bool (H, W), what later exits leave out. `decided`: uint8 (H, W), the exit whose prediction stands. `gmacs`: from
    the image to this exit. `inactive_share`: the share of positions that are inactive, 0..1.
    """

    index: int
    prediction: NDArray[Any]
    confidence: NDArray[np.uint8]
    inactive: NDArray[np.bool_]
    decided: NDArray[np.uint8]
    gmacs: float
    inactive_share: float


def view_exits(model: AnytimeModel, image: NDArray[np.uint8], box: Box | None = None) -> tuple[list[ExitView], Frame]:
    """The views of every exit on `image`, uint8 (H, W, 3), and where the network's input lies in it."""
    state, config = model.begin(image, box), model.config
    views = []
    for exit_index in exits_of(model, [state]):
        found = state.latest()
        extras: tuple[Extra, ...] = ("confidence", "exit", "unsure")
        confidence, decided, active = (extra_map(found, config, state.frame, extra) for extra in extras)
        masks = config.masks_after(exit_index)
        views.append(
            ExitView(
                index=exit_index,
                prediction=model.render(state).array,
                confidence=confidence,
                inactive=(active == 0) & masks,
                decided=decided,
                gmacs=found.macs / GIGA,
                inactive_share=(1 - found.active_share) * masks,
            )
        )
    return views, state.frame


def draw(image: NDArray[np.uint8], views: list[ExitView], frame: Frame, config: ModelConfig, title: str) -> "Figure":
    """Draws a column for the image and one for each exit, which shows its prediction, its confidence and its inactive
    positions. The last exit leaves nothing inactive; its column shows which exit decided each pixel. Raises ValueError
    if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  (an optional dependency, wanted only here)
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install --editable '.[train]'") from error
    left, top, right, bottom = seen(frame, config)
    height_inches = COLUMN_INCHES * (bottom - top) / (right - left)
    columns = len(views) + 1
    figure = Figure(figsize=(COLUMN_INCHES * columns, 3 * height_inches + 1.3), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(3, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    grey: Image3 = np.repeat(image.mean(2, keepdims=True), 3, 2) / 255
    colours = _palette(config)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("the image", fontsize=12)
    for exit_, (prediction, confidence, positions) in zip(views, axes[:, 1:].T, strict=True):
        last = exit_ is views[-1]
        found = "the answer" if last else f"{exit_.inactive_share:.0%} inactive"
        prediction.set_title(f"exit {exit_.index}: {found}, {exit_.gmacs:.3g} GMACs", fontsize=12)
        if config.task == "pose":
            prediction.imshow(image)
            _skeleton(prediction, exit_.prediction, config, colours)
        else:
            prediction.imshow(_over(image / 255, colours[exit_.prediction]))
        confidence.imshow(exit_.confidence / 255, cmap="viridis", vmin=0, vmax=1)
        if last:
            positions.imshow(_over(grey, _rgb(["black", *_decided(len(views))])[exit_.decided]))
            positions.set_title("which exit decided", fontsize=12)
        else:
            positions.imshow(np.where(exit_.inactive[:, :, None], _over(grey, _rgb([INACTIVE])), grey))
    for axis in (axes[0, 0], *axes[:, 1:].flat):
        axis.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    _explain_confidence(axes[1, 0], config)
    _explain_positions(axes[2, 0], len(views), config)
    _legend(figure, views, config, colours)
    return figure


def seen(frame: Frame, config: ModelConfig) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the part of the image that the network sees, in pixels."""
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
        Patch(color=INACTIVE, label="inactive: left out from here"),
        Patch(color="0.6", label="active: still computed"),
    ]
    handles += [Patch(color=colour, label=f"decided at exit {1 + k}") for k, colour in enumerate(_decided(exits))]
    axis.legend(
        handles=handles, loc="center", fontsize=10, frameon=False, title=f"positions\n({rule})", title_fontsize=12
    )


def _legend(figure: "Figure", views: list[ExitView], config: ModelConfig, colours: Image3) -> None:
    """The colours of the classes that any exit found, or of the body's parts."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    if config.task == "segmentation":
        found = sorted(set().union(*(np.unique(exit_.prediction).tolist() for exit_ in views)))
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
    """The colour of each class or joint, (outputs, 3); those without one get well separated hues."""
    from matplotlib import colormaps  # noqa: PLC0415

    found = np.asarray(colormaps["turbo"](np.arange(config.outputs) * 0.618 % 1))[:, :3]
    found[: len(config.palette)] = np.array(config.palette).reshape(-1, 3) / 255
    return found


def _decided(exits: int) -> list[str]:
    """The colour of pixels that each exit decided. A network may have more exits than `DECIDED` has colours."""
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.colors import to_hex  # noqa: PLC0415

    if exits <= len(DECIDED):
        return list(DECIDED[:exits])
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0, 1, exits))]


def _rgb(names: Sequence[str]) -> Image3:
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    return np.array([to_rgb(name) for name in names])
