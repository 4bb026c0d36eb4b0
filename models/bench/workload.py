"""The work of a case: its network, its inputs and its masks, and what the reference makes of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anytime import exits_of
from models.bench import street_masks
from models.bench.cases import BenchCase
from models.checkpoint import load_directory
from models.data import camvid, datasets
from models.data.scenes import Scene
from models.evaluation.ranges import RangeObserver
from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import STRIDE, Frame
from models.imaging.preprocess import normalise, prepare
from models.network.adpc import AdpcNet
from models.network.named import feature_names
from models.network.network import build_network
from models.quantisation import Scales

RANDOM_IMAGES = 4
"""How many images random weights are quantised on: only the time counts."""
TRAINED_IMAGES = 100
"""How many training images a trained model is quantised on, as `python -m models quantise` does."""


def network(case: BenchCase) -> AdpcNet:
    """The network of a case. Random weights are such that activations keep their size, and the same for every kind."""
    if case.model is not None:
        trained = load_directory(Path(case.model)).state_dict()
        net = build_network(case.config)
        net.load_state_dict({name: trained[name] for name in net.state_dict()})
    else:
        torch.manual_seed(case.seed)
        net = build_network(case.config)
        with torch.no_grad():
            for layer in net.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
                elif isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            net.train()(torch.randn(2, 3, 128, 128), adaptive=False)
    assert isinstance(net, AdpcNet)
    return net.eval()


def validation(case: BenchCase) -> list[Scene]:
    """The images that a trained model runs on. Raises ValueError if the data set has fewer."""
    assert case.data is not None
    found = datasets.scenes(Path(case.data), "val")
    if len(found) < case.images:
        raise ValueError(f"val of {case.data} has {len(found)} images; give at most --images {len(found)}")
    return found[: case.images]


def inputs(case: BenchCase, number: int = 0) -> Tensor:
    """A network's input, float32 (1, 3, H, W), padded to multiples of 32: random pixels, or for a trained model the
    validation image of that number, counted round and round. Raises ValueError if the image has another size than the
    case."""
    if case.model is None:
        pixels = np.random.default_rng(case.seed).integers(0, 256, (*case.size, 3), dtype=np.uint8)
        return prepare(pixels, case.config)[0]
    scene = validation(case)[number % case.images]
    return of_size(case, scene)


def of_size(case: BenchCase, scene: Scene) -> Tensor:
    """A scene as a network's input. Raises ValueError if it has another size than the case."""
    image = scene.image()
    if image.shape[:2] != case.size:
        raise ValueError(
            f"{scene.image_path} is {image.shape[0]}x{image.shape[1]}, the first image {case.size[0]}x{case.size[1]}; "
            "bench needs images of one size"
        )
    return prepare(image, case.config)[0]


def masks(case: BenchCase) -> list[Tensor]:
    """The masks that random weights are given after every exit but the last, bool (h, w) each, a quarter of the input.
    Empty where there are none, or where a trained model goes by its own."""
    if case.kind != "masked" or case.model is not None:
        return []
    height, width = (side // STRIDE for side in inputs(case).shape[-2:])
    if case.data is None:
        labels = street_masks.draw(2 * height, 2 * width, case.seed)
    else:
        found = camvid.read(Path(case.data), "val")
        labels = found[case.seed % len(found)].labels()
    return [torch.from_numpy(mask) for mask in street_masks.masks(labels, height, width, case.active)]


def calibration(case: BenchCase) -> Iterator[Tensor]:
    """Inputs to quantise with, float32 (1, 3, H, W) each: training images of the data set, resized to the case's size
    for random weights; noise without a data set."""
    if case.data is None:
        for index in range(RANDOM_IMAGES):
            yield inputs(replace(case, seed=case.seed + 1 + index))
    elif case.model is None:
        for scene in camvid.read(Path(case.data), "train")[:RANDOM_IMAGES]:
            image = normalise(scene.image(), case.config)
            yield F.interpolate(image, size=inputs(case).shape[-2:], mode="bilinear", align_corners=False)
    else:
        for scene in datasets.scenes(Path(case.data), "train")[:TRAINED_IMAGES]:
            yield of_size(case, scene)


def scales(case: BenchCase, net: AdpcNet) -> Scales:
    """The scales of the sparse executor: a trained model's own, of those features that `net` has. Raises ValueError if
    it has none."""
    if case.model is None:
        observer = RangeObserver(net)
        observer.observe_inputs(calibration(case))
        return Scales("", observer.scales())
    found = Scales.load(Path(case.model))
    if found is None:
        raise ValueError(f"{case.model} has no scales; make them with python -m models quantise")
    features = {name: found.features[name] for name in feature_names(net) if name in found.features}
    paths = {path for path, _ in net.named_modules()}
    return replace(found, features=features, float_layers=tuple(path for path in found.float_layers if path in paths))


def expected(case: BenchCase) -> list[Tensor]:
    """The reference's scores of random weights at every exit, (1, C, h, w)."""
    net, given = network(case), masks(case)
    if not given:
        with torch.inference_mode():
            return list(net(inputs(case), adaptive=False))
    reference, found = ReferenceExecutor(net), []
    state = reference.start(inputs(case), Frame(*case.size))
    for exit_index in exits_of(reference, [state]):
        found.append(state.latest().scores[None])
        if exit_index <= len(given):
            reference.override(state, given[exit_index - 1])
    return found
