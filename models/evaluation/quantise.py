"""Quantises a model: finds the scales of its features on images, keeps in float32 the layers that cost too much, and
compares both precisions on other images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.anytime import AnytimeModel, exits_of
from models.data import datasets
from models.data.files import SUFFIXES, images_in
from models.data.people import Person
from models.data.scenes import Scene
from models.evaluation.evaluate import ExitCosts, pose, segmentation
from models.evaluation.observations import BoxedImage
from models.evaluation.ranges import RangeObserver
from models.imaging.images import read_image
from models.network.adpc import AdpcNet
from models.network.configs import ModelConfig
from models.network.named import feature_names, readers
from models.quantisation import Scales

LOSS_LIMIT = 0.3
"""How many points of its score (mIoU, PCK) an exit may lose before layers stay in float32."""

Example = Scene | Person | Path
"""With labels, or a file without."""
Losses = Callable[[tuple[str, ...]], Sequence[float]]
"""(float_layers) -> the points that each exit loses."""


@dataclass(frozen=True)
class Examples:
    """`calibration`: what the scales are found on, `source` says which. `held_out`: what both precisions are compared
    on, none of it in `calibration`; `compared_on` says which."""

    calibration: Sequence[Example]
    held_out: Sequence[Example]
    source: str
    compared_on: str


def examples(
    config: ModelConfig, directory: Path, splits: tuple[str, str], images: int, compared: int | None
) -> Examples:
    """At most `images` examples for calibration and `compared` (None: all) for the comparison, evenly spaced.

    `directory` holds a data set with both `splits`, the first of which is for calibration; or images without labels,
    every other one of which is for calibration, as in a data set if both splits are the same one. Raises ValueError if
    there are fewer than two, and what the reader of the data set raises.
    """
    split, check = splits
    read: Callable[[Path, str], Sequence[Example]] = datasets.people if config.task == "pose" else datasets.scenes
    files = any(path.suffix.lower() in SUFFIXES for path in directory.glob("*"))
    first: Sequence[Example] = images_in(directory) if files else read(directory, split)
    name = directory.resolve().name if files else split
    if files or split == check:
        if len(first) < 2:
            raise ValueError(f"{directory} has {len(first)} image; give 2 or more, half of which show what is lost")
        halves, names = (first[::2], first[1::2]), (f"every other image of {name}", f"the other images of {name}")
    else:
        halves, names = (first, read(directory, check)), (split, check)
    return Examples(_spread(halves[0], images), _spread(halves[1], compared), *names)


def _spread(items: Sequence[Example], count: int | None) -> list[Example]:
    if count is None or count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def boxed(example: Example) -> BoxedImage:
    if isinstance(example, Path):
        return read_image(example), None
    return example.image(), example.box if isinstance(example, Person) else None


def find_scales(network: AdpcNet, given: Sequence[Example], percentile: float) -> dict[str, float]:
    """The scale of each feature, by name; see `RangeObserver.scales`."""
    observer = RangeObserver(network)
    observer.observe(boxed(example) for example in tqdm(given, unit=" images", desc="ranges"))
    return observer.scales(percentile)


def layer_groups(network: AdpcNet) -> dict[str, tuple[str, ...]]:
    """The module paths of the convolutions, in groups that stay in float32 together: the heads, then
    each stage, with the transition into it. The stem belongs to the first stage."""
    heads = {layer for head in network.heads() for layer in head.modules()}
    groups: dict[str, tuple[str, ...]] = {"heads": ()}
    by_path = dict(network.named_modules())
    paths = {path for convs in readers(network).values() for path in convs}
    for path in (path for path in by_path if path in paths):
        top = path.partition(".")[0]
        stage = f"stage{int(top.removeprefix('transition')) + 1}" if top.startswith("transition") else top
        name = "heads" if by_path[path] in heads else "layer1" if top in ("conv1", "conv2") else stage
        groups[name] = (*groups.get(name, ()), path)
    return groups


def stored_features(network: AdpcNet, float_layers: Sequence[str]) -> list[str]:
    """The names of the features that are stored in eight bits: those that a quantised convolution reads, and those that
    only a pooling reads, if a quantised convolution makes them."""
    by_feature = readers(network)
    kept = set(float_layers)
    return [name for name in feature_names(network) if not kept.issuperset(by_feature[name] or [name])]


def choose_float_layers(losses: Losses, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The groups that stay in float32, as measured by `losses`. Greedy: first none, then the heads, then the stage that
    reduces the loss most, until no exit loses more than LOSS_LIMIT."""
    chosen: list[str] = []

    def worst(names: Sequence[str]) -> float:
        return max(losses(tuple(path for name in names for path in groups[name])))

    if worst(chosen) <= LOSS_LIMIT:
        return chosen
    chosen = ["heads"]
    left = [name for name in groups if name != "heads"]
    while left and worst(chosen) > LOSS_LIMIT:
        best = min(left, key=lambda name: worst([*chosen, name]))
        chosen.append(best)
        left.remove(best)
    return chosen


def score(model: AnytimeModel, given: Sequence[Example]) -> list[dict[str, Any]]:
    """The costs and, if the examples have labels, scores of each exit; see `evaluate`. Pose without mirrored images."""
    scenes = [example for example in given if isinstance(example, Scene)]
    people = [example for example in given if isinstance(example, Person)]
    if scenes:
        found: list[dict[str, Any]] = segmentation(model, scenes)["exits"]
    elif people:
        found = pose(model, people, flip=False)["exits"]
    else:
        costs = ExitCosts(model.config.exits)
        for example in given:
            for _ in costs.watch(model, [model.begin(*boxed(example))]):
                pass
        found = costs.by_exit()
    return found


def score_name(config: ModelConfig) -> str:
    return "pck" if config.task == "pose" else "miou"


def differences(fp32: AnytimeModel, int8: AnytimeModel, given: Sequence[Example]) -> list[dict[str, float]]:
    """For each exit `equal`, the mean share of pixels with the same label, or, for pose, `shift`, the mean distance of
    a joint's two positions as a share of the crop's side."""
    name = "shift" if fp32.config.task == "pose" else "equal"
    found: list[list[float]] = [[] for _ in range(fp32.config.exits)]
    for example in tqdm(given, unit=" images", desc="fp32 against int8"):
        image, box = boxed(example)
        states = [(model, model.begin(image, box)) for model in (fp32, int8)]
        answers = [list(_answers(model, state)) for model, state in states]
        side_px = states[0][1].frame.scale * fp32.config.size[0]
        for values, one, other in zip(found, *answers, strict=True):
            if name == "equal":
                values.append(float((one == other).mean()))
            else:
                values.append(float(np.hypot(*(one - other)[:, :2].T).mean() / side_px))
    return [{name: round(float(np.mean(values)), 5)} for values in found]


def _answers(model: AnytimeModel, state: Any) -> Iterator[Any]:
    for _ in exits_of(model, [state]):
        yield model.render(state).array


def compare(
    config: ModelConfig, fp32: Sequence[Mapping[str, Any]], int8: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each exit the score in both precisions and what int8 loses, None without labels, and the share of positions
    that it leaves active."""
    name, rows = score_name(config), []
    for one, other in zip(fp32, int8, strict=True):
        before, after = one.get(name), other.get(name)
        rows.append(
            {
                "exit": one["exit"],
                f"{name}_fp32": before,
                f"{name}_int8": after,
                "lost": None if before is None or after is None else round(before - after, 2),
                "active_fp32": round(1 - one["masked"], 4),
                "active_int8": round(1 - other["masked"], 4),
            }
        )
    return rows


def quantise(
    network: AdpcNet,
    given: Examples,
    make: Callable[[Scales | None], AnytimeModel],
    *,
    fingerprint: str,
    percentile: float,
) -> Scales:
    """The scales of a network, with what they cost on the examples held out in their report.

    `make`: the model in eight bits by these scales, or in float32 (None). `fingerprint`: of the network's weights.
    Layers stay in float32 as `choose_float_layers` finds; without labels none.
    """
    features = find_scales(network, given.calibration, percentile)
    fp32_model = make(None)
    fp32 = score(fp32_model, given.held_out)
    name, groups = score_name(network.config), layer_groups(network)
    measured: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def of(float_layers: tuple[str, ...]) -> Scales:
        kept = {name: features[name] for name in stored_features(network, float_layers)}
        return Scales(fingerprint, kept, float_layers, given.source)

    def scored(float_layers: tuple[str, ...]) -> list[dict[str, Any]]:
        if float_layers not in measured:
            measured[float_layers] = score(make(of(float_layers)), given.held_out)
        return measured[float_layers]

    def losses(float_layers: tuple[str, ...]) -> list[float]:
        pairs = zip(fp32, scored(float_layers), strict=True)
        return [(before[name] or 0.0) - (after[name] or 0.0) for before, after in pairs]

    chosen = choose_float_layers(losses, groups) if name in fp32[0] else []
    found = of(tuple(path for group in chosen for path in groups[group]))
    int8_model = make(found)
    compared = compare(network.config, fp32, scored(found.float_layers))
    differing = differences(fp32_model, int8_model, given.held_out)
    report = {
        "images": len(given.calibration),
        "percentile": percentile,
        "compared_on": given.compared_on,
        "compared_images": len(given.held_out),
        "executors": {"fp32": fp32_model.executor, "int8": int8_model.executor},
        "float_groups": chosen,
        "exits": [exit_ | more for exit_, more in zip(compared, differing, strict=True)],
    }
    return replace(found, report=report)
