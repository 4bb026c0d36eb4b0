"""The scales of a model's features in eight bits. `int8.json` of a model directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

SCALES_FILE = "int8.json"
Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class Scales:
    """How a network is computed in eight bits.

    `fingerprint`: of the weights that the scales were found for. `features`: by feature name, the value of a step; a
    feature is stored as uint8 with the zero point 0. `float_layers`: module paths of convolutions that stay in float32.
    `source`: the images that they come from. `report`: what was measured.
    """

    fingerprint: str
    features: Mapping[str, float]
    float_layers: tuple[str, ...] = ()
    source: str = ""
    report: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "Scales | None":
        """Those of a model directory; None if it has none, or has those of other weights."""
        path = directory / SCALES_FILE
        if not path.is_file():
            return None
        from models.quality import fingerprint  # noqa: PLC0415 - it imports torch

        found = cls(**json.loads(path.read_text()))
        return found if found.fingerprint == fingerprint(directory) else None

    def save(self, directory: Path) -> None:
        (directory / SCALES_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")
