"""What the configurations of all families hold: the task, the size, the labels, the masks.

A model directory stores its configuration in `config.json`. Needs no torch.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from models.imaging.geometry import MAX_SIDE, MULTIPLE, padded_px
from models.validation import value

Task = Literal["segmentation", "pose"]
Criterion = Literal["max_probability", "margin", "entropy", "top_k", "random", "max_score"]
Adaptivity = Literal["training", "inference", "both"]
Extra = Literal["confidence", "exit", "unsure"]
"""A further map of an exit; see `AnytimeModel.render`."""

GIGA = 1024**3
"""The paper's unit of multiply-adds."""
MAX_OUTPUTS = 256
"""A map's labels have 8 bits."""
MAX_SIZE_PX = 1 << 24
"""The largest size at which a model is counted and warmed up; Cityscapes has an eighth of it."""
FIRST_FAMILY = "adpc"
"""The family of a configuration that names none."""
RANKED: frozenset[Criterion] = frozenset({"top_k", "random"})
"""Criteria that choose a share of all positions, by rank or by lot; see `Masking.shrinks`."""

Whole = Annotated[int, Field(ge=1)]
Channels = Annotated[int, Field(ge=1, le=1024)]
"""The largest width of a layer. The widest published finest branch has 88; the limit keeps a broken file from filling
the memory."""
Repeats = Annotated[int, Field(ge=1, le=16)]
"""The largest number of blocks or modules in a row; published networks have up to 4."""
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Colour = Annotated[int, Field(ge=0, le=255)]
Joint = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@value()
class Masking:
    """Which positions an exit makes inactive for the exits after it (section 2, equations 2-7).

    `threshold` is read by `criterion`: `max_probability` makes a position inactive if its confidence is above it,
    `margin` if the largest probability less the second is above it, `entropy` if the entropy in nats is below it,
    `max_score` (pose) if the largest score is below it; for `top_k` and `random` it is the share of positions that is
    inactive after each exit.
    `window`: side of the square of neighbours that an inactive position is interpolated from.
    """

    criterion: Criterion
    threshold: float
    window: Annotated[int, Field(ge=1, le=63)] = 7
    adaptivity: Adaptivity = "both"

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.window < 3:
            raise ValueError(f"window is {self.window}; it must be odd and at least 3, for example 7")
        if self.criterion in RANKED and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; for {self.criterion} it is a share between 0 and 1")

    @property
    def shrinks(self) -> bool:
        """Whether the mask of every exit lies within that of the exit before.

        It does where a position's own scores alone decide: equation 7 carries the scores of an inactive position over,
        so they no longer change, and neither does what they decide. `top_k` and `random` choose anew at every exit.
        """
        return self.criterion not in RANKED


PAPER_MASKING = {"segmentation": Masking("max_probability", 0.998), "pose": Masking("max_score", 0.002)}
"""The paper's masks for each task. A network without masks reports the active share that these would give."""


@value(kw_only=True)
class ModelConfig(ABC):
    """What is needed to build a network and to read its answers; families add what their networks are built from.

    `size`: (height, width) at which the paper counts operations; for pose, the size of the person's crop.
    `labels`: names of the classes or joints. `palette`: RGB of each. `skeleton`: pairs of joints joined by a limb.
    `flip_pairs`: joints that change places when the image is mirrored.
    """

    family: ClassVar[str]
    head_fields: ClassVar[tuple[str, ...]]
    """Fields that the weights of heads depend on."""

    name: str
    task: Task
    outputs: Annotated[int, Field(ge=1, le=MAX_OUTPUTS)]
    masking: Masking | None = None
    size: tuple[Side, Side] = (1024, 2048)
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[Colour, Colour, Colour], ...] = ()
    skeleton: tuple[tuple[Joint, Joint], ...] = ()
    flip_pairs: tuple[tuple[Joint, Joint], ...] = ()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    licence: str = ""

    def __post_init__(self) -> None:
        for name in ("labels", "palette"):
            if len(getattr(self, name)) > self.outputs:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {self.outputs} outputs; leave some out"
                )
        for index, colour in enumerate(self.palette):
            first = self.palette.index(colour)
            if first < index and self.task == "segmentation":
                raise ValueError(
                    f"palette gives {self.names[first]} and {self.names[index]} the same colour, {list(colour)}; give "
                    "each class a colour of its own, by which a picture of the mask tells them apart"
                )
        for name in ("skeleton", "flip_pairs"):
            for index, pair in enumerate(getattr(self, name)):
                if max(pair) >= self.outputs:
                    raise ValueError(
                        f"{name}[{index}] is {list(pair)}; joints are numbered from 0 to {self.outputs - 1}"
                    )
        if (area_px := padded_px(*self.size)) > MAX_SIZE_PX:
            raise ValueError(
                f"size is {list(self.size)}, which is {area_px:,} pixels; it may be at most {MAX_SIZE_PX:,}"
            )
        if self.task == "pose" and (self.size[0] != self.size[1] or self.size[0] % MULTIPLE):
            raise ValueError(f"size is {self.size}; a person's crop is square, its side a multiple of 32: (256, 256)")
        if self.masking is not None and self.masking.criterion == "margin" and self.outputs < 2:
            raise ValueError(
                f"masking.criterion is margin, which compares the two likeliest of several classes, and outputs is "
                f"{self.outputs}; choose another criterion, for example max_score"
            )

    @property
    @abstractmethod
    def exits(self) -> int:
        """How many exits the network has."""

    @property
    def exit_numbers(self) -> tuple[int, ...]:
        """The number under which `models flops` and `models run` show each exit: 1, 2, .., or what the family counts
        instead."""
        return tuple(range(1, self.exits + 1))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every class or joint: its label, or its number where it has none."""
        return *self.labels, *(str(index) for index in range(len(self.labels), self.outputs))

    @property
    def exit_masking(self) -> Masking:
        """How every exit computes its mask; the paper's masks if the network has none, see `PAPER_MASKING`."""
        return self.masking or PAPER_MASKING[self.task]

    @property
    def adaptive(self) -> bool:
        """Whether exits mask what follows at inference."""
        return self.masking is not None and self.masking.adaptivity in ("both", "inference")

    def masks_after(self, exit_index: int) -> bool:
        """Whether this exit masks what follows at inference; the last one never does."""
        return self.adaptive and exit_index < self.exits

    def to_json(self) -> dict[str, Any]:
        """The object in `config.json`: name and task, what the family adds, then the rest."""
        values = asdict(self)
        common = [field.name for field in fields(ModelConfig)]
        own = [name for name in values if name not in common]
        family = {} if self.family == FIRST_FAMILY else {"family": self.family}
        return family | {name: values[name] for name in ("name", "task", *own, *common[2:])}
