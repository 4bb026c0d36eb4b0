"""Named configurations of networks: every row of the paper's tables, and the shipped models.

Values only; imports nothing but their checks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from models import checks
from models.imaging.geometry import MAX_SIDE

Task = Literal["segmentation", "pose"]
Heads = Literal["one", "plain", "redesigned"]
Criterion = Literal["max_probability", "margin", "entropy", "top_k", "random", "max_score"]
Adaptivity = Literal["training", "inference", "both"]
Upsample = Literal["bilinear", "nearest"]

GROWING: tuple[Criterion, ...] = ("top_k", "random")
"""Criteria that settle a share of the positions, so that an exit may take up again what an earlier one settled."""
Extra = Literal["confidence", "exit", "unsure"]
"""A further map of an exit; see `AnytimeModel.render`."""

GIGA = 1024**3
"""The paper's unit of multiply-adds."""
MAX_OUTPUTS = 256
"""Labels of a map have 8 bits."""


@dataclass(frozen=True)
class Backbone:
    """An HRNet (Wang et al., TPAMI 2020): `width` channels in the finest branch, doubled in each coarser one."""

    width: int
    layer1_blocks: int
    modules: tuple[int, int, int]
    blocks: int
    fuse_upsample: Upsample = "bilinear"
    last_module_fuses_finest_only: bool = False
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        checks.one_of("fuse_upsample", self.fuse_upsample, get_args(Upsample))
        for name in ("width", "layer1_blocks", "blocks"):
            checks.whole(name, getattr(self, name))
        checks.several("modules", self.modules, 3, checks.whole)
        checks.kind("last_module_fuses_finest_only", self.last_module_fuses_finest_only, bool)
        checks.number("bn_momentum", self.bn_momentum, 0, 1)

    def channels(self, branches: int) -> tuple[int, ...]:
        return tuple(self.width << branch for branch in range(branches))


@dataclass(frozen=True)
class Masking:
    """Which positions an exit settles for the exits after it (section 2, equations 2-7).

    `threshold` is read by `criterion`: `max_probability` settles confidence above it, `margin` (the largest probability
    less the second) likewise, `entropy` (nats) below it, `max_score` (pose) scores below it; for `top_k` and `random`
    it is the share of positions settled at each exit.
    `window`: side of the square of neighbours that an unconvolved position is interpolated from.
    """

    criterion: Criterion
    threshold: float
    window: int = 7
    adaptivity: Adaptivity = "both"

    def __post_init__(self) -> None:
        checks.one_of("criterion", self.criterion, get_args(Criterion))
        checks.one_of("adaptivity", self.adaptivity, get_args(Adaptivity))
        checks.number("threshold", self.threshold)
        checks.whole("window", self.window)
        if self.window % 2 == 0 or self.window < 3:
            raise ValueError(f"window is {self.window}; it must be odd and at least 3, for example 7")
        if self.criterion in GROWING and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; for {self.criterion} it is a share between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a network and to read its answers; `config.json` of a model directory.

    `size`: (height, width) at which the paper counts operations; for pose, the size of the person's crop.
    `labels`: names of the classes or joints. `palette`: RGB of each. `skeleton`: pairs of joints joined by a limb.
    `flip_pairs`: joints that change places when the image is mirrored.
    """

    name: str
    task: Task
    backbone: Backbone
    heads: Heads
    outputs: int
    head_channels: int = 64
    downsamplings: tuple[int, ...] = (3, 2, 1)
    masking: Masking | None = None
    size: tuple[int, int] = (1024, 2048)
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    licence: str = ""

    def __post_init__(self) -> None:
        checks.one_of("task", self.task, get_args(Task))
        checks.one_of("heads", self.heads, get_args(Heads))
        checks.whole("outputs", self.outputs, 1, MAX_OUTPUTS)
        checks.whole("head_channels", self.head_channels)
        # Of an input of 32 pixels the finest branch has 8, which can be halved three times.
        checks.several("downsamplings", self.downsamplings, 3, checks.whole, 1, 3)
        checks.several("size", self.size, 2, checks.whole, 1, MAX_SIDE)
        checks.several("mean", self.mean, 3, checks.number)
        checks.several("std", self.std, 3, checks.above, 0)
        for name in ("name", "licence"):
            checks.kind(name, getattr(self, name), str)
        checks.several("labels", self.labels, None, checks.kind, str)
        checks.several("palette", self.palette, None, checks.several, 3, checks.whole, 0, 255)
        for name in ("skeleton", "flip_pairs"):
            checks.several(name, getattr(self, name), None, checks.several, 2, checks.whole, 0, self.outputs - 1)
        for name in ("labels", "palette"):
            if len(getattr(self, name)) > self.outputs:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {self.outputs} outputs; leave some out"
                )
        if self.task == "segmentation" and self.backbone.last_module_fuses_finest_only:
            raise ValueError("last_module_fuses_finest_only is for pose; segmentation reads every branch: give false")
        if self.task == "pose" and (self.size[0] != self.size[1] or self.size[0] % 32):
            raise ValueError(f"size is {self.size}; a person's crop is square, its side a multiple of 32: (256, 256)")

    @property
    def exits(self) -> int:
        return 1 if self.heads == "one" else 4

    @property
    def names(self) -> tuple[str, ...]:
        """Of all classes or joints: the labels, and numbers where there are none."""
        return *self.labels, *(str(index) for index in range(len(self.labels), self.outputs))

    @property
    def settles(self) -> bool:
        """Whether exits mask what follows at inference."""
        return self.masking is not None and self.masking.adaptivity in ("both", "inference")

    def settles_after(self, exit_index: int) -> bool:
        """Whether this exit does: the last masks nothing."""
        return self.settles and exit_index < self.exits

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Raises ValueError on a field that is missing, unknown or without meaning."""
        try:
            values = {name: checks.tuples(value) for name, value in data.items()}
            values["backbone"] = Backbone(**{k: checks.tuples(v) for k, v in data["backbone"].items()})
            values["masking"] = Masking(**data["masking"]) if data.get("masking") else None
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"not a model configuration: {error}; its fields are {known}") from error


W18 = Backbone(width=18, layer1_blocks=2, modules=(1, 3, 2), blocks=2)
W48 = Backbone(width=48, layer1_blocks=4, modules=(1, 4, 3), blocks=4)
W18_POSE = replace(W18, fuse_upsample="nearest", last_module_fuses_finest_only=True, bn_momentum=0.1)
W32_POSE = Backbone(32, 4, (1, 4, 3), 4, "nearest", last_module_fuses_finest_only=True, bn_momentum=0.1)
W48_POSE = replace(W32_POSE, width=48)

UNSURE = {"segmentation": Masking("max_probability", 0.998), "pose": Masking("max_score", 0.002)}
"""The paper's masks; what `unsure` means for networks without any."""

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
MPII_JOINTS = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "pelvis", "thorax", "upper neck",
    "head top", "right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist",
)  # fmt: skip
MPII_SKELETON = (
    (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7), (7, 13),
    (13, 14), (14, 15),
)  # fmt: skip
MPII_FLIP_PAIRS = ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
MPII_PALETTE = (
    (0, 114, 178), (0, 114, 178), (0, 114, 178), (213, 94, 0), (213, 94, 0), (213, 94, 0), (0, 158, 115),
    (0, 158, 115), (0, 158, 115), (0, 158, 115), (86, 180, 233), (86, 180, 233), (86, 180, 233), (230, 159, 0),
    (230, 159, 0), (230, 159, 0),
)  # fmt: skip


def _family(one: ModelConfig, dataset: str, width: str, head_channels: int, masking: Masking) -> list[ModelConfig]:
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


_CITYSCAPES = ModelConfig(
    name="",
    task="segmentation",
    backbone=W48,
    heads="one",
    outputs=19,
    labels=CITYSCAPES_CLASSES,
    palette=CITYSCAPES_PALETTE,
)
_PASCAL_CONTEXT = ModelConfig(
    name="",
    task="segmentation",
    backbone=W48,
    heads="one",
    outputs=59,
    size=(480, 480),
    labels=tuple(f"class {index}" for index in range(59)),
)
_MPII = ModelConfig(
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
_CAMVID = ModelConfig(
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
    masking=UNSURE["pose"],
    licence="research use only: trained on LSP extended (no licence stated) and CamVid (CC BY-NC 4.0)",
)

CONFIGS: Mapping[str, ModelConfig] = {
    config.name: config
    for config in [
        *_family(_CITYSCAPES, "cityscapes", "w48", 128, UNSURE["segmentation"]),
        *_family(replace(_CITYSCAPES, backbone=W18), "cityscapes", "w18", 64, UNSURE["segmentation"]),
        *_family(_PASCAL_CONTEXT, "pascal-context", "w48", 64, Masking("max_probability", 0.995)),
        *_family(_MPII, "mpii", "w32", 64, UNSURE["pose"]),
        *_family(replace(_MPII, backbone=W48_POSE), "mpii", "w48", 64, UNSURE["pose"]),
        *_family(_CAMVID, "camvid", "w18", 64, UNSURE["segmentation"]),
        *_family(_LSP, "lsp", "w18", 64, UNSURE["pose"]),
        CAMVID_ADPC_W18,
        LSP_ADPC_W18,
    ]
}
"""Every named configuration."""


def config(name: str) -> ModelConfig:
    """Raises ValueError for an unknown name, and lists the known ones."""
    if name not in CONFIGS:
        raise ValueError(f"no configuration is called {name!r}; there are {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]
