"""What the next exit of an image is worth: `gains.json` in a model directory, or `gains-int8.json` for the model in
eight bits. `python -m models calibrate` writes both, from labelled images. Needs no torch.

The utility of an exit is the quality of its answer, 0..1: for segmentation the mean IoU over the classes that are
labelled in the image, for pose the share of the joints found (PCK@0.2). No answer has utility 0. A gain is the utility
of an exit less that of the exit before. A scheduler spends its device's time where it expects the largest gain.

The gain of the next exit is expected to be its mean over the images, plus a slope for each predictor: what the latest
exit shows of its own answer. Predictors that did not help on images kept aside are not in the file, so that the mean is
often all that there is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from models.directory import GAINS_FILES, fingerprint
from models.network.configs import Share, Whole
from models.quantisation import Precision
from models.reading import read_json
from models.validation import from_json, value
from models.writing import write_text

Predictor = Literal["active_share", "confidence", "change"]
"""What an exit shows of its answer, each 0..1. `active_share`: the active positions of its mask. `confidence`: the mean
over the image, see `quality.uncertainty`. `change`: the share of the pixels or joints whose answer differs from the
exit before, see `evaluation.calibrate.difference`; exit 1 has none."""
PREDICTORS: tuple[Predictor, ...] = ("active_share", "confidence", "change")


@value()
class Term:
    """A predictor of the gain. `mean`: of the predictor over the images. `slope`: gain for each unit of it."""

    predictor: Predictor
    mean: float
    slope: float


@value()
class NextGain:
    """Predicts an exit's gain from the exit before it.

    `mean`: over the images. `terms`: the predictors that help. `error`: root mean square error of the prediction on
    held-out images. `mean_error`: that error if the mean is predicted for every image; equal to `error` without terms.
    """

    mean: float
    error: Annotated[float, Field(ge=0)]
    mean_error: Annotated[float, Field(ge=0)]
    terms: tuple[Term, ...] = ()

    def expected(self, shown: Mapping[Predictor, float]) -> float:
        """The gain to expect of an image whose latest exit shows these predictors, at least 0. One that is missing
        counts as its mean."""
        return max(
            0.0, self.mean + sum(t.slope * (shown[t.predictor] - t.mean) for t in self.terms if t.predictor in shown)
        )


@value()
class Profile:
    """What one image showed at every exit; each tuple has a value for each exit.

    `stage_ms`: milliseconds from the exit before to this one, its map included. `change` is 0 at exit 1.
    """

    utility: tuple[Share, ...]
    active_share: tuple[Share, ...]
    confidence: tuple[Share, ...]
    change: tuple[Share, ...]
    stage_ms: tuple[Annotated[float, Field(gt=0)], ...]


@value()
class Gains:
    """The gains of one model.

    `exits`: the gain of each exit as expected from the exit before; that of exit 1 is its utility, since no answer has
    utility 0. `profiles`: some of the images, for the simulator. `images`: how many were measured. `source`,
    `fingerprint`, `precision`: as in `quality.Quality`. `machine`: what the stages were timed on.
    """

    exits: tuple[NextGain, ...]
    profiles: tuple[Profile, ...]
    images: Whole
    source: str
    machine: str
    fingerprint: str
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for index, profile in enumerate(self.profiles):
            lengths = {name: len(values) for name, values in asdict(profile).items()}
            if set(lengths.values()) != {len(self.exits)}:
                raise ValueError(f"profiles[{index}] has {lengths}; give {len(self.exits)} values of each, one an exit")

    @classmethod
    def load(cls, directory: Path, precision: Precision = "fp32") -> "Gains":
        """Raises FileNotFoundError if the gains of the model in `precision` were not measured, and ValueError if the
        file is broken or was made for other weights, another configuration or another precision."""
        path = directory / GAINS_FILES[precision]
        remedy = f"measure them anew (python -m models calibrate {directory}) or delete the file"
        try:
            found = from_json(cls, read_json(path), "a model's gains")
        except ValueError as error:
            raise ValueError(f"{path} does not hold gains: {error}; {remedy}") from error
        if found.fingerprint != (now := fingerprint(directory)):
            raise ValueError(
                f"{path} was made for a model with fingerprint {found.fingerprint[:8]}, but the model beside it has "
                f"{now[:8]}; {remedy}"
            )
        if GAINS_FILES[found.precision] != path.name:
            raise ValueError(f"{path} was made for {found.precision}, but its name says {precision}; {remedy}")
        return found

    def save(self, directory: Path) -> None:
        """Writes the file of its precision, an exit or an image a line."""
        lists = {name: getattr(self, name) for name in ("exits", "profiles")}
        head = {name: text for name, text in asdict(self).items() if name not in lists}
        text = json.dumps(head, indent=1).removesuffix("\n}")
        for name, values in lists.items():
            lines = ",\n  ".join(json.dumps(asdict(each)) for each in values)
            text += f',\n "{name}": [\n  {lines}\n ]'
        write_text(directory / GAINS_FILES[self.precision], text + "\n}\n")
