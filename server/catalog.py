"""The served models, as the front end knows them: their configurations are read, their weights are not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from models.directory import find_models, read_config
from models.imaging.geometry import padded_px, padded_size
from models.network.configs import ModelConfig
from server.engine.shared_memory import Layout
from server.errors import InvalidError, NotFoundError
from server.scheduling.costs import Shape


@dataclass(frozen=True)
class ServedModel:
    """A model directory that is served. `name` is the folder's name, by which requests ask for the model."""

    name: str
    directory: Path
    config: ModelConfig

    @property
    def palette(self) -> bytes:
        """RGB of every class or joint, 3 bytes each."""
        return palette_bytes(self.config.palette, self.config.outputs)

    def class_numbers(self, classes: Sequence[str]) -> list[int]:
        """The numbers of classes that are given by name or number. Raises InvalidError on others, and if the model has
        no classes."""
        if self.config.task == "pose":
            raise InvalidError(f"classes is for segmentation; {self.name} does pose: leave it out", "bad_parameter")
        numbers = {name: number for number, name in enumerate(self.config.names)}
        numbers |= {str(number): number for number in range(self.config.outputs)}
        for name in classes:
            if name not in numbers:
                names = ", ".join(self.config.names)
                sentence = f"{self.name} has no class {name[:80]!r}; it has {names}, or their numbers from 0"
                raise InvalidError(sentence, "bad_parameter")
        return [numbers[name] for name in classes]

    def layout(self, height: int, width: int, *, extra: bool) -> Layout:
        """The layout of a job's image and maps in shared memory. `extra`: every exit has a further map."""
        joints = self.config.outputs if self.config.task == "pose" else 0
        return Layout(height, width, self.config.exits, joints, extra)

    def input_shape(self, height: int, width: int) -> Shape:
        """See `input_shape`."""
        return input_shape(self.config, height, width)

    def area_ratio(self, height: int, width: int) -> float:
        """The dense cost at an image of this size, relative to the cost at the configured size."""
        if self.config.task == "pose":
            return 1.0
        return padded_px(height, width) / padded_px(*self.config.size)


class Catalog:
    """The served models by name."""

    def __init__(self, models: list[ServedModel], default: str = "") -> None:
        self._models = {model.name: model for model in models}
        self.default = default or next(iter(self._models))
        self.get(self.default)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def served(self, name: Any) -> str | None:
        """The name of the served model that a client asks for: `name`, or the default if it is None. Returns None if no
        such model is served."""
        name = self.default if name is None else name
        return name if isinstance(name, str) and name in self._models else None

    def get(self, name: str | None) -> ServedModel:
        """The model called `name`, or the default one. Raises NotFoundError, which lists the served models."""
        name = self.default if name is None else name
        if name not in self._models:
            raise NotFoundError(
                f"no model is called {name[:80]!r}; served are {', '.join(self._models)}", "unknown_model"
            )
        return self._models[name]


def read_catalog(folder: Path, default: str = "") -> Catalog:
    """The model directories in `folder`, in the order of their names. Raises ValueError if there are none or one is
    broken, and NotFoundError if `default` is not among them."""
    try:
        found = find_models(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    models = [ServedModel(name, path, read_config(path)) for name, path in found.items()]
    if not models:
        raise ValueError(f"{folder} holds no model directory (NAME/config.json); name a folder with --models")
    return Catalog(models, default)


def input_shape(config: ModelConfig, height: int, width: int) -> Shape:
    """The network input's height and width for an image: the padded size, or the size of a person's crop."""
    if config.task == "pose":
        return config.size
    return padded_size(height, width)


def palette_bytes(palette: Sequence[tuple[int, int, int]], classes: int) -> bytes:
    """RGB of every class: 3 * `classes` bytes. Classes without a colour get one of PASCAL VOC's that is free."""
    fresh = (colour for index in count(len(palette)) if (colour := _voc_colour(index)) not in palette)
    return bytes(value for colour in islice(chain(palette, fresh), classes) for value in colour)


def _voc_colour(index: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour map: the bits of `index` go to red, green and blue in turn, to their highest bits first."""
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)
    )
    return red, green, blue
