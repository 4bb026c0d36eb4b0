"""Model directories: their files, how they are found, and their configuration.

Needs no torch, so that the server's front end reads directories as the commands and the worker do. Weights are read by
`models/checkpoint.py`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Protocol, TypeVar

from models.network.configs import ModelConfig
from models.network.families import config_from_json
from models.reading import check_readable, read_json
from models.validation import from_json

ZOO = Path(__file__).parent / "zoo"
"""The shipped models."""
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, QUALITY_FILE = "config.json", "model.safetensors", "README.md", "quality.json"
SCALES_FILE = "int8.json"
QUALITY_FILES = {"fp32": QUALITY_FILE, "fp16": QUALITY_FILE, "int8": "quality-int8.json"}
"""The calibration of the quality stop, by precision. Half precision changes too little to need one of its own."""
GAINS_FILES = {"fp32": "gains.json", "fp16": "gains.json", "int8": "gains-int8.json"}
"""What each exit of the model is worth, by precision."""
DESCRIBES = ("name", "labels", "palette", "skeleton", "flip_pairs", "licence")
"""Fields of a configuration that describe answers and change none of them."""


class Derived(Protocol):
    """A file that was derived from one model, for example a calibration. `fingerprint`: that of the model; see the
    function `fingerprint`."""

    @property
    def fingerprint(self) -> str: ...


FromModel = TypeVar("FromModel", bound=Derived)


def find_models(directory: Path = ZOO) -> dict[str, Path]:
    """The model directories in `directory`, by name, sorted. Raises FileNotFoundError if there is no such folder."""
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}; name one that holds model directories")
    return {path.name: path for path in sorted(directory.iterdir()) if _is_model(path)}


def resolve(model: str) -> Path:
    """The model directory at a path, or the shipped one of that name. Raises ValueError, which lists the shipped
    models, if there is neither."""
    path = Path(model)
    if _is_model(path):
        return path
    shipped = find_models()
    if model in shipped:
        return shipped[model]
    raise ValueError(f"{model!r} is neither a model directory nor a shipped model; shipped are {', '.join(shipped)}")


def _is_model(directory: Path) -> bool:
    """Whether the folder holds a configuration, even an unreadable one: a broken model is refused with an error, never
    skipped."""
    return os.path.lexists(directory / CONFIG_FILE)


def read_config(directory: Path) -> ModelConfig:
    """`config.json` of a model directory. Raises ValueError that names the file, and FileNotFoundError."""
    path = directory / CONFIG_FILE
    try:
        return config_from_json(read_json(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{directory} is not a model directory: it has no {CONFIG_FILE}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def fingerprint(directory: Path) -> str:
    """SHA-256 of the files that decide a model's answers: its weights, and its configuration without names and colours.

    Raises ValueError and FileNotFoundError as `read_config` does.
    """
    path = directory / WEIGHTS_FILE
    try:
        check_readable(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    decides = {name: value for name, value in read_config(directory).to_json().items() if name not in DESCRIBES}
    digest.update(json.dumps(decides, sort_keys=True).encode())
    return digest.hexdigest()


def read_derived(kind: type[FromModel], path: Path, what: str, remedy: str) -> FromModel:
    """The value of class `kind` in a file of a model directory. `what` names it in errors, for example "a calibration".

    Raises FileNotFoundError, and ValueError with the remedy if the file is broken or was made for other weights or
    another configuration than those that now lie beside it.
    """
    try:
        found = from_json(kind, read_json(path), what)
    except ValueError as error:
        raise ValueError(f"{path} does not hold {what}: {error}; {remedy}") from error
    if found.fingerprint != (now := fingerprint(path.parent)):
        raise ValueError(
            f"{path} was made for weights and a configuration {found.fingerprint[:8]}, but those beside it are "
            f"{now[:8]}; {remedy}"
        )
    return found
