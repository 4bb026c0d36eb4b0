"""The models that are served, as the front end knows them: from their configurations, before any is loaded.

Imports the configurations only, never torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.directory import find_models, read_config
from models.imaging.geometry import padded_px
from models.network.configs import ModelConfig
from server.engine.messages import Layout
from server.errors import NotFoundError
from server.protocols.encoder import palette_bytes


@dataclass(frozen=True)
class ServedModel:
    """A model directory. `name` is the folder's, by which requests ask for it."""

    name: str
    directory: Path
    config: ModelConfig

    @property
    def palette(self) -> bytes:
        """RGB of every class or joint."""
        return palette_bytes(self.config.palette, self.config.outputs)

    def layout(self, height: int, width: int, *, extra: bool) -> Layout:
        joints = self.config.outputs if self.config.task == "pose" else 0
        return Layout(height, width, self.config.exits, joints, extra)

    def area_ratio(self, height: int, width: int) -> float:
        """How much larger the input for an image is than that of the configured size: the dense cost's factor."""
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
        """The model that a request means by `name`, None being the default; None if it is none of the served ones."""
        name = self.default if name is None else name
        return name if isinstance(name, str) and name in self._models else None

    def get(self, name: str | None) -> ServedModel:
        """The model called `name`, or the default one. Raises NotFoundError and lists them."""
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
