"""Configurations of HRNet with exits: every row of the paper's tables, and the shipped models.

One family holds one-exit HRNet, early exits (EE), redesigned heads (RH) and ADP-C. Needs no torch.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.network.configs import PAPER_MASKING, Channels, Masking, ModelConfig, Repeats
from models.network.labels import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    MPII_FLIP_PAIRS,
    MPII_JOINTS,
    MPII_PALETTE,
    MPII_SKELETON,
)
from models.validation import value

Heads = Literal["one", "plain", "redesigned"]
Upsample = Literal["bilinear", "nearest"]
Downsampling = Annotated[int, Field(ge=1, le=3)]
"""How often a redesigned head halves its input: at most 3 times, since a 32-pixel input has 8 positions a side."""


@value()
class Backbone:
    """An HRNet (Wang et al., TPAMI 2020): `width` channels in the finest branch, doubled in each coarser one."""

    width: Channels
    layer1_blocks: Repeats
    modules: tuple[Repeats, Repeats, Repeats]
    blocks: Repeats
    fuse_upsample: Upsample = "bilinear"
    last_module_fuses_finest_only: bool = False
    bn_momentum: Annotated[float, Field(ge=0, le=1)] = 0.01

    def channels(self, branches: int) -> tuple[int, ...]:
        return tuple(self.width << branch for branch in range(branches))


@value(kw_only=True)
class AdpcConfig(ModelConfig):
    """An HRNet with one exit, or with an exit after each stage. `heads`: one at the end, four plain ones, or four of
    which the first three are redesigned (section 2), `head_channels` wide and downsampled `downsamplings` times."""

    family: ClassVar[str] = "adpc"
    head_fields: ClassVar[tuple[str, ...]] = ("task", "outputs", "heads", "head_channels", "downsamplings")

    backbone: Backbone
    heads: Heads
    head_channels: Channels = 64
    downsamplings: tuple[Downsampling, Downsampling, Downsampling] = (3, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task == "segmentation" and self.backbone.last_module_fuses_finest_only:
            raise ValueError("last_module_fuses_finest_only is for pose; segmentation reads every branch: give false")

    @property
    def exits(self) -> int:
        return 1 if self.heads == "one" else len(self.backbone.modules) + 1


W18 = Backbone(width=18, layer1_blocks=2, modules=(1, 3, 2), blocks=2)
W48 = Backbone(width=48, layer1_blocks=4, modules=(1, 4, 3), blocks=4)
W18_POSE = replace(W18, fuse_upsample="nearest", last_module_fuses_finest_only=True, bn_momentum=0.1)
W32_POSE = Backbone(32, 4, (1, 4, 3), 4, "nearest", last_module_fuses_finest_only=True, bn_momentum=0.1)
W48_POSE = replace(W32_POSE, width=48)


def _family(one: AdpcConfig, dataset: str, width: str, head_channels: int, masking: Masking) -> list[AdpcConfig]:
    """The four rows of a table: one-exit HRNet, EE, EE+RH and ADP-C."""
    return [
        replace(one, name=f"hrnet-{width}-{dataset}"),
        replace(one, name=f"ee-{width}-{dataset}", heads="plain"),
        replace(one, name=f"rh-{width}-{dataset}", heads="redesigned", head_channels=head_channels),
        replace(
            one,
            name=f"adpc-{width}-{dataset}",
            heads="redesigned",
            head_channels=head_channels,
            masking=masking,
        ),
    ]


_CITYSCAPES = AdpcConfig(
    name="",
    task="segmentation",
    backbone=W48,
    heads="one",
    outputs=19,
    labels=CITYSCAPES_CLASSES,
    palette=CITYSCAPES_PALETTE,
)
_PASCAL_CONTEXT = AdpcConfig(
    name="",
    task="segmentation",
    backbone=W48,
    heads="one",
    outputs=59,
    size=(480, 480),
    labels=tuple(f"class {index}" for index in range(59)),
)
_MPII = AdpcConfig(
    name="",
    task="pose",
    backbone=W32_POSE,
    heads="one",
    outputs=16,
    size=(256, 256),
    labels=MPII_JOINTS,
    palette=MPII_PALETTE,
    skeleton=MPII_SKELETON,
    flip_pairs=MPII_FLIP_PAIRS,
)
_CAMVID = AdpcConfig(
    name="",
    task="segmentation",
    backbone=W18,
    heads="one",
    outputs=11,
    size=(360, 480),
    labels=CAMVID_CLASSES,
    palette=CAMVID_PALETTE,
)
_LSP = replace(_MPII, backbone=W18_POSE)

CAMVID_ADPC_W18 = replace(
    _CAMVID,
    name="camvid-adpc-w18",
    heads="redesigned",
    masking=Masking("max_probability", 0.985),  # chosen on a drive held out, see the model card
    licence="research use only: trained on CamVid (CC BY-NC 4.0)",
)
LSP_ADPC_W18 = replace(
    _LSP,
    name="lsp-adpc-w18",
    heads="redesigned",
    masking=PAPER_MASKING["pose"],
    licence="research use only: trained on LSP extended (no licence stated) and CamVid (CC BY-NC 4.0)",
)

NAMED = (
    *_family(_CITYSCAPES, "cityscapes", "w48", 128, PAPER_MASKING["segmentation"]),
    *_family(replace(_CITYSCAPES, backbone=W18), "cityscapes", "w18", 64, PAPER_MASKING["segmentation"]),
    *_family(_PASCAL_CONTEXT, "pascal-context", "w48", 64, Masking("max_probability", 0.995)),
    *_family(_MPII, "mpii", "w32", 64, PAPER_MASKING["pose"]),
    *_family(replace(_MPII, backbone=W48_POSE), "mpii", "w48", 64, PAPER_MASKING["pose"]),
    *_family(_CAMVID, "camvid", "w18", 64, PAPER_MASKING["segmentation"]),
    *_family(_LSP, "lsp", "w18", 64, PAPER_MASKING["pose"]),
    CAMVID_ADPC_W18,
    LSP_ADPC_W18,
)
"""Every named configuration of the family."""
