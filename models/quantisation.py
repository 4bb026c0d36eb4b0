"""The scales of a model's features in eight bits. `int8.json` of a model directory, which `python -m models quantise`
writes. Needs no torch.

A feature follows a ReLU and is stored as uint8 with the zero point 0: its value is the stored number times the scale of
the feature. Weights are int8 with one scale for each output channel, which follows from the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from models.directory import SCALES_FILE, read_derived
from models.validation import value
from models.writing import write_text

Precision = Literal["fp32", "fp16", "int8"]
"""What a network is computed in: float32, float16, or features of uint8 and weights of int8."""
LARGEST = 255
"""The largest number that a feature in eight bits holds."""
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]
"""The value of one step of a feature in eight bits. Within these limits, float32 holds the scale and its reciprocal. A
scale that float32 rounds to 0 would be an error: the native code marks features in float32 by a scale of 0."""


@value()
class Scales:
    """How a network is computed in eight bits.

    `fingerprint`: of the weights that the scales were found for. `features`: the scale of each feature, by name; see
    `models/network/named.py`. `float_layers`: module paths of convolutions that stay in float32. `source`: the
    images that the scales were found with. `report`: what was measured.
    """

    fingerprint: str
    features: Mapping[str, Scale]
    float_layers: tuple[str, ...] = ()
    source: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "Scales | None":
        """The scales of a model directory; None if it has none. Raises ValueError if the file is broken or was made for
        other weights or another configuration than those that now lie beside it."""
        remedy = f"make it anew (python -m models quantise {directory} --data DIR) or delete the file"
        try:
            return read_derived(cls, directory / SCALES_FILE, "scales", remedy)
        except FileNotFoundError:
            return None

    def save(self, directory: Path) -> None:
        """Writes `int8.json`."""
        write_text(directory / SCALES_FILE, json.dumps(asdict(self), indent=1) + "\n")
