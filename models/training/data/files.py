"""Finding and decoding the files of a data set; what every reader shares. Imports no network."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Item = TypeVar("Item")
Result = TypeVar("Result")


def images_in(folder: Path) -> list[Path]:
    """The image files of `folder`, sorted by name. Raises FileNotFoundError if there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"there is no image in {folder}; expected files ending in {', '.join(SUFFIXES)}")
    return found


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_labels(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W). Raises ValueError unless the file has one 8-bit channel."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"{path} is of mode {image.mode}; labels are one 8-bit channel")
        return np.asarray(image)


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], threads: int = 16) -> list[Result]:
    """`function` of every item, in order. Decoders leave the interpreter's lock, so threads help."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
