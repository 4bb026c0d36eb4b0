"""Configurations of multiscale deep equilibrium networks (MDEQ; Bai, Koltun and Kolter, NeurIPS 2020).

Needs no torch.
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.network.configs import Channels, ModelConfig, Repeats
from models.network.labels import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
)
from models.validation import value

Solver = Literal["broyden", "anderson", "plain"]
FirstStep = Literal["corrected", "published"]
Iterations = Annotated[int, Field(ge=1, le=1000)]
MAX_EXITS = 32


@value(kw_only=True)
class MdeqConfig(ModelConfig):
    """One layer f, which a solver applies until z = f(z, u). Exits are decoded iterates.

    `channels`: of the branches at strides 4, 8, 16 and 32. `expansion`: how many times wider a block is inside.
    `groups`: of group norms; those after fusion have half as many. `decoded`: the iterations after which the answer is
    decoded, ascending; exit 1 is the first of them. `memory`: how many pairs of vectors the solver remembers.
    `first_step`: the sign of Broyden's first step, z = g(0) or, as in the code that was published first, z = -g(0).
    """

    family: ClassVar[str] = "mdeq"
    head_fields: ClassVar[tuple[str, ...]] = ("outputs", "channels")

    channels: tuple[Channels, Channels, Channels, Channels]
    expansion: Repeats = 5
    groups: Channels = 8
    decoded: tuple[Iterations, ...] = (4, 6, 8, 10)
    solver: Solver = "broyden"
    memory: Iterations = 27
    first_step: FirstStep = "corrected"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task != "segmentation":
            raise ValueError(f"task is {self.task}; MDEQ is here for segmentation only")
        if self.masking is not None:
            raise ValueError("masking is given; group norms couple all positions, so MDEQ has no masks: leave it out")
        if self.groups % 2:
            raise ValueError(f"groups is {self.groups}; half as many are used after fusion, so give an even number")
        for channels in self.channels:
            if channels % self.groups:
                raise ValueError(f"channels has {channels}; give multiples of groups, which is {self.groups}")
        if not self.decoded or any(after <= before for before, after in pairwise(self.decoded)):
            raise ValueError(f"decoded is {list(self.decoded)}; give ascending iterations, for example [4, 6, 8, 10]")

        if len(self.decoded) > MAX_EXITS:
            raise ValueError(f"decoded has {len(self.decoded)} iterations, each an exit; give at most {MAX_EXITS}")

    @property
    def exits(self) -> int:
        return len(self.decoded)

    @property
    def exit_numbers(self) -> tuple[int, ...]:
        return self.decoded


def _cityscapes(name: str, channels: tuple[int, int, int, int], expansion: int) -> MdeqConfig:
    return MdeqConfig(
        name=name,
        task="segmentation",
        outputs=19,
        labels=CITYSCAPES_CLASSES,
        palette=CITYSCAPES_PALETTE,
        channels=channels,
        expansion=expansion,
    )


NAMED: tuple[MdeqConfig, ...] = (
    _cityscapes("mdeq-small-cityscapes", (32, 64, 128, 256), 5),
    _cityscapes("mdeq-large-cityscapes", (80, 160, 320, 640), 5),
    _cityscapes("mdeq-xl-cityscapes", (88, 176, 352, 704), 6),
    MdeqConfig(
        name="camvid-mdeq-w18",
        task="segmentation",
        outputs=11,
        labels=CAMVID_CLASSES,
        palette=CAMVID_PALETTE,
        size=(360, 480),
        channels=(18, 36, 72, 144),
        groups=6,
        decoded=(2, 4, 6, 8),
        solver="plain",
    ),
)
