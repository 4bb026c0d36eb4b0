"""A small file of people cut out of their images, with which a machine without the data set can train and score a pose
network.

For each split, the file holds the crops as WebP, one after the other, and their joints. It also holds the skeleton; the
joints of a file without one are MPII's.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from PIL import Image

from models.data import mpii
from models.data.files import in_parallel
from models.data.people import Person, Skeleton, crop
from models.writing import replacing

SKELETON = "skeleton"
METHOD = 6
"""WebP's slowest encoding method, which makes the smallest files."""


@dataclass(frozen=True)
class Part:
    """How a split is stored: crops of `side` pixels, `room` times as wide as the person's square, at a WebP `quality`
    of 0 to 100."""

    side: int
    room: float
    quality: int


def save(path: Path, parts: Mapping[str, tuple[Part, Sequence[Person]]]) -> None:
    """Writes the crops of every split. The file appears when it is complete. Raises ValueError if people differ in
    their skeletons."""
    skeletons = {person.skeleton for _, people in parts.values() for person in people}
    if len(skeletons) != 1:
        raise ValueError(f"the people have {len(skeletons)} skeletons; a file holds people of one")
    arrays: dict[str, NDArray[np.generic]] = {SKELETON: np.array(json.dumps(asdict(skeletons.pop())))}
    for split, (part, people) in parts.items():
        found = in_parallel(_encoder(part), people)
        arrays[f"{split}.crops"] = np.frombuffer(b"".join(data for data, _ in found), np.uint8)
        arrays[f"{split}.ends"] = np.cumsum([len(data) for data, _ in found])
        arrays[f"{split}.joints"] = np.stack([joints for _, joints in found])
        arrays[f"{split}.side"] = np.array(part.side)
        arrays[f"{split}.room"] = np.array(part.room)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _opened(path: Path) -> NpzFile:
    """The arrays of a file. Raises ValueError if it is no archive."""
    if not is_zipfile(path):
        raise ValueError(
            f"{path} is no file of crops; give the data set's folder, or a file of python -m models.gpu_day.crops"
        )
    found: NpzFile = np.load(path, allow_pickle=False)
    return found


def load_skeleton(path: Path) -> Skeleton:
    """The skeleton of the people in a file."""
    with _opened(path) as held:
        if SKELETON not in held:
            return mpii.SKELETON
        found = json.loads(str(held[SKELETON]))
    torsos = tuple((int(a), int(b)) for a, b in found["torsos"])
    head, neck = found["head"]
    return Skeleton(found["joints"], torsos, (head, neck), tuple(found["unscored"]))


def load(path: Path, split: str, side: int, room: float) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """The crops of a split, enlarged to `side` pixels: uint8 (side, side, 3) and joints float32 (J, 3) in its pixels.

    Raises ValueError if the file has no such split, or if its crops are wider or narrower than `room`.
    """
    with _opened(path) as held:
        if f"{split}.crops" not in held:
            splits = ", ".join(name.removesuffix(".ends") for name in held.files if name.endswith(".ends"))
            raise ValueError(f"{path} has no split {split!r}; it has {splits}")
        crops, ends, joints = (held[f"{split}.{name}"] for name in ("crops", "ends", "joints"))
        stored, stored_room = int(held[f"{split}.side"]), float(held[f"{split}.room"])
    if abs(stored_room - room) > 1e-6:
        raise ValueError(
            f"the crops of {split} in {path} are {stored_room:g} times as wide as the person; the task needs {room:g}, "
            "so save the file anew with that room"
        )
    scaled = joints.copy()
    scaled[:, :, :2] = (joints[:, :, :2] + 0.5) * (side / stored) - 0.5

    def decode(index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        data = crops[int(ends[index - 1]) if index else 0 : int(ends[index])].tobytes()
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)), scaled[index]

    return in_parallel(decode, range(len(ends)))


def _encoder(part: Part) -> Callable[[Person], tuple[bytes, NDArray[np.float32]]]:
    def encode(person: Person) -> tuple[bytes, NDArray[np.float32]]:
        image, joints = crop(person, part.side, part.room)
        held = io.BytesIO()
        Image.fromarray(image).save(held, "WEBP", quality=part.quality, method=METHOD)
        return held.getvalue(), joints

    return encode
