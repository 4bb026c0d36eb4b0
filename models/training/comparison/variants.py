"""The variants that the paper compares: for each, its network and the variant whose weights it takes. Users know them
as rows, because each is a row of the comparison's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.network.adpc_configs import AdpcConfig
from models.network.configs import Criterion, Masking, ModelConfig
from models.network.mdeq_configs import MdeqConfig

PaperFigure = Literal["exits", "criteria", "downsampling", "window"]
"""Where the paper shows a variant: figure 3 (tables 1 and 4), figure 5 right, figure 5 left, table 3."""

SWEEPS: Mapping[Criterion, tuple[float, ...]] = {
    "max_probability": (0.9, 0.95, 0.985, 0.998),
    "margin": (0.85, 0.95, 0.985, 0.998),
    "entropy": (0.35, 0.2, 0.08, 0.015),
    "top_k": (0.7, 0.5, 0.3, 0.1),
    "random": (0.5, 0.3, 0.1),
}
"""Thresholds of each criterion, from few active positions to many."""


@dataclass(frozen=True)
class PaperVariant:
    """A row of the comparison. `weights`: the name of the variant whose trained weights it takes; its own name if it is
    trained itself. `sampled`: its masks are those of `sampling.SampledNet`."""

    name: str
    title: str
    figure: PaperFigure
    model: ModelConfig
    weights: str
    sampled: bool = False


def variants(adpc: ModelConfig) -> tuple[PaperVariant, ...]:
    """Every variant. A variant comes before those that take its weights.

    `adpc`: the full method on some data set. Raises ValueError if it is not segmentation with redesigned heads and
    masks.
    """
    masking = adpc.masking
    if not isinstance(adpc, AdpcConfig) or adpc.task != "segmentation" or adpc.heads != "redesigned" or masking is None:
        raise ValueError(
            f"{adpc.name} is not ADP-C for segmentation; choose a configuration with redesigned heads and masks"
        )
    heads = replace(adpc, masking=None)
    found: list[PaperVariant] = []

    def add(
        name: str,
        title: str,
        model: ModelConfig,
        *,
        figure: PaperFigure = "exits",
        weights: str = "",
        sampled: bool = False,
    ) -> None:
        found.append(PaperVariant(name, title, figure, replace(model, name=name), weights or name, sampled))

    add("hrnet", "one-exit HRNet", replace(heads, heads="one"))
    add("ee", "EE: four exits", replace(heads, heads="plain"))
    add("rh", "EE + RH: redesigned heads, D = 3/2/1", heads)
    add("adpc", "ADP-C: masks in training and inference", adpc)
    add("adpc-inference", "ADP-C: masks at inference only", adpc, weights="rh")
    add("adpc-dense", "ADP-C: masks in training only", heads, weights="adpc")
    add("mdeq", "MDEQ of the same width, unrolled", _mdeq(adpc))
    add("sampling", "feature-based stochastic sampling", adpc, sampled=True)
    for depths in ((1, 1, 1), (3, 3, 3)):
        name = "".join(map(str, depths))
        title = f"EE + RH, D = {'/'.join(map(str, depths))}"
        add(f"d{name}", title, replace(heads, downsamplings=depths), figure="downsampling")
    for window in (3, 5, 9):
        model = replace(adpc, masking=replace(masking, window=window))
        add(f"window{window}", f"ADP-C, {window}x{window} window", model, figure="window")
    for criterion, thresholds in SWEEPS.items():
        for threshold in thresholds:
            model = replace(adpc, masking=Masking(criterion, threshold, masking.window))
            title = f"{criterion.replace('_', ' ')} {threshold:g}"
            add(f"{criterion}-{threshold:g}", title, model, figure="criteria", weights="rh")
    return tuple(found)


def _mdeq(adpc: AdpcConfig) -> MdeqConfig:
    """An MDEQ for the task of `adpc` whose branches are as wide as its backbone's last stage."""
    width, *others = adpc.backbone.channels(4)
    return MdeqConfig(
        name="mdeq",
        task=adpc.task,
        outputs=adpc.outputs,
        size=adpc.size,
        labels=adpc.labels,
        palette=adpc.palette,
        channels=(width, others[0], others[1], others[2]),
        groups=2 * max(groups for groups in range(1, 5) if width % (2 * groups) == 0),
        decoded=(2, 4, 6, 8),
        solver="plain",
    )


def select(every: Sequence[PaperVariant], names: str | None) -> list[PaperVariant]:
    """The variants in `names`, which are separated by commas; None means all. The name of a figure stands for its
    variants. Raises ValueError if a name is unknown."""
    if names is None:
        return list(every)
    known = {variant.name for variant in every} | {variant.figure for variant in every}
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no row is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [variant for variant in every if variant.name in wanted or variant.figure in wanted]


def at_inference(chosen: Sequence[PaperVariant]) -> list[PaperVariant]:
    """The variants that differ from ADP-C only in their masks, so that one trained model can run as each of them."""
    return [variant for variant in chosen if variant.weights == "adpc" or variant.figure in ("criteria", "window")]
