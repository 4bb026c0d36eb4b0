"""How a network is trained: the values of a run, read from `train.json` beside a shipped model."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from models.network.configs import Positive, Whole
from models.reading import read_json
from models.training.augment import Augmentation
from models.validation import from_json, value
from models.writing import write_text

FILE = "train.json"
MAX_SEED = (1 << 32) - 1


@value()
class Phase:
    """A part of a run. `crop`: (height, width) of the network's input. `scale`: range of the zoom relative to the data
    set's own size (or to the person's square). `masks`: whether exits mask what follows, where the network can.
    """

    steps: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=2)]
    crop: tuple[Whole, Whole]
    scale: tuple[Positive, Positive]
    masks: bool = True

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from {self.scale[0]:g} to {self.scale[1]:g}; give the smaller one first")
        if self.crop[0] % 32 or self.crop[1] % 32:
            raise ValueError(f"the crop is {self.crop[0]}x{self.crop[1]}; both must be multiples of 32")


@value()
class Recipe:
    """How a network is trained. `splits`: the data set's splits to train on. `hold_out`: drives of CamVid, or cities of
    Cityscapes, that are left out of training and scored.

    `phases` run one after the other. The learning rate rises linearly over `warm_up` (a share of all steps), then falls
    along a cosine to 0. `class_softness`: see `losses.class_weights`. `ema_steps`: the weights that are scored and
    shipped are an exponential mean over about so many steps. `init`: a shipped model's name or a model directory, whose
    weights training starts from; only its backbone is taken if it has another task or other heads.
    """

    splits: tuple[str, ...]
    phases: tuple[Phase, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.05
    ema_steps: Whole = 500
    class_softness: Annotated[float, Field(gt=1)] = 1.1
    hold_out: tuple[str, ...] = ()
    init: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    def __post_init__(self) -> None:
        if not (self.splits and self.steps):
            raise ValueError(f"{len(self.splits)} splits and {self.steps} steps of training; give at least 1 of each")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError(f"the recipe ends after {self.steps} steps")

    def images_before(self, step: int) -> int:
        """How many images the steps before this one took."""
        images = 0
        for phase in self.phases:
            images += phase.batch * min(step, phase.steps)
            step -= min(step, phase.steps)
        return images

    def learning_rate_at(self, step: int) -> float:
        rising = (step + 1) / max(self.warm_up * self.steps, 1)
        falling = 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1)))
        return self.learning_rate * min(rising, 1) * falling

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Raises ValueError if a field is missing, unknown or invalid."""
        return from_json(cls, data, "a training recipe")

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Raises ValueError that names the file, and FileNotFoundError."""
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no recipe {path}; name one with --recipe") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, directory: Path) -> None:
        write_text(directory / FILE, json.dumps(self.to_json(), indent=1) + "\n")

    def check_same(self, directory: Path) -> None:
        """Raises ValueError if the run in `directory` used another recipe, and FileNotFoundError if there is no run."""
        path = directory / FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no run in {directory} to go on with; leave out --resume to start anew")
        theirs = Recipe.load(path)
        differing = [item.name for item in fields(self) if getattr(self, item.name) != getattr(theirs, item.name)]
        if differing:
            raise ValueError(
                f"{directory} was trained by a recipe with other {', '.join(differing)}; give its own, --recipe "
                f"{path}, or choose another --output"
            )

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """This recipe with some fields replaced. Fields of phase 0 are named `phases.0.NAME`, those of the augmentation
        `augmentation.NAME`. Raises ValueError if a field is unknown."""
        data = json.loads(json.dumps(self.to_json()))
        for name, given in settings.items():
            *path, last = name.split(".")
            target = data
            try:
                for part in path:
                    target = target[int(part) if isinstance(target, list) else part]
                target[last] = given
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(f"a recipe has no field {name!r}; its fields are {', '.join(data)}") from error
        return Recipe.from_json(data)


def setting(text: str) -> tuple[str, Any]:
    """Parses `NAME=JSON` into a name and a value for `Recipe.override`. Raises ValueError if that fails."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: give NAME=JSON, for example phases.0.steps=1000")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"--set {text}: {value!r} is not JSON ({error}); quote text, e.g. {name}='[\"a\"]'") from error
