"""The registry of data sets, and which of them a folder holds.

A new data set is a reader module beside this one and a line in `SEGMENTATION` or `POSE`. What else is to be known of it
(its classes, its skeleton) comes with every example that the reader returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from models.data import camvid, cityscapes, lsp, mpii
from models.data.people import Person
from models.data.scenes import Scene

Example = TypeVar("Example")


@dataclass(frozen=True)
class DataSet(Generic[Example]):
    """`sign`: a glob pattern that matches in the data set's folder, and in no other's. `read`: the examples of a
    folder's split; raises ValueError on an unknown split."""

    name: str
    sign: str
    read: Callable[[Path, str], list[Example]]


SEGMENTATION = (DataSet("Cityscapes", "leftImg8bit", cityscapes.read), DataSet("CamVid", "*/labels", camvid.read))
POSE = (DataSet("MPII", "annot/*.json", mpii.read), DataSet("LSP", "joints.mat", lsp.read))


def scenes(directory: Path, split: str) -> list[Scene]:
    """The scenes of a split of CamVid or Cityscapes. Raises FileNotFoundError if the folder holds neither."""
    return _held(SEGMENTATION, directory).read(directory, split)


def people(directory: Path, split: str) -> list[Person]:
    """The people of a split of LSP or MPII. Raises FileNotFoundError if the folder holds neither."""
    return _held(POSE, directory).read(directory, split)


def _held(known: Sequence[DataSet[Example]], directory: Path) -> DataSet[Example]:
    for data_set in known:
        if next(directory.glob(data_set.sign), None) is not None:
            return data_set
    looked_for = " nor ".join(f"{data_set.sign} ({data_set.name})" for data_set in known)
    raise FileNotFoundError(f"{directory} holds neither {looked_for}; name the data set's own folder")
