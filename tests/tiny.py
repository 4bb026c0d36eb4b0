"""Networks small enough for tests, with weights that depend on nothing but the seed."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.imaging.preprocess import prepare
from models.network.adpc import AdpcNet
from models.network.adpc_configs import AdpcConfig, Backbone
from models.network.configs import Masking
from models.network.labels import MPII_FLIP_PAIRS, MPII_JOINTS, MPII_PALETTE, MPII_SKELETON

BACKBONE = Backbone(width=4, layer1_blocks=1, modules=(1, 1, 1), blocks=1)

SEGMENTATION = AdpcConfig(
    name="tiny-segmentation",
    task="segmentation",
    backbone=BACKBONE,
    heads="redesigned",
    outputs=3,
    head_channels=8,
    masking=Masking("max_probability", 0.6),
    size=(64, 96),
    labels=("sky", "road", "car"),
    palette=((128, 128, 128), (128, 64, 128), (64, 0, 128)),
)
POSE = AdpcConfig(
    name="tiny-pose",
    task="pose",
    backbone=replace(BACKBONE, fuse_upsample="nearest", last_module_fuses_finest_only=True),
    heads="redesigned",
    outputs=16,
    head_channels=8,
    masking=Masking("max_score", 1.5),
    size=(64, 64),
    labels=MPII_JOINTS,
    palette=MPII_PALETTE,
    skeleton=MPII_SKELETON,
    flip_pairs=MPII_FLIP_PAIRS,
)


def network(config: AdpcConfig = SEGMENTATION, seed: int = 0) -> AdpcNet:
    """A network of one's own, whose exits disagree and whose masks are neither empty nor full."""
    return deepcopy(_drawn(config, seed))


@cache
def _drawn(config: AdpcConfig, seed: int) -> AdpcNet:
    generator = torch.Generator().manual_seed(seed)
    net = AdpcNet(config)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("Lambda"):
                tensor.fill_(0.6)
            elif tensor.ndim == 4:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        images = [prepare(image(seed=index), SEGMENTATION)[0] for index in range(4)]
        net.train()(torch.cat(images), adaptive=False)  # statistics that fit the weights
    return net.eval()


def image(height: int = 60, width: int = 90, seed: int = 0) -> NDArray[np.uint8]:
    """Noise that is smooth enough to have regions: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def write_scenes(directory: Path) -> None:
    """A data set of CamVid's layout: in either split five noisy scenes with labels that follow their brightness."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (directory / split / kind).mkdir(parents=True)
        for index in range(5):
            pixels = image(48, 64, seed=index)
            labels = (pixels.mean(2) // 86).astype(np.uint8)
            Image.fromarray(pixels).save(directory / split / "images" / f"drive{index % 2}_{index}.png")
            Image.fromarray(labels).save(directory / split / "labels" / f"drive{index % 2}_{index}.png")
