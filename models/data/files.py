"""Finds and decodes the files of a data set, for all readers."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.imaging.images import broken_named

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
THREADS = 16
"""How many threads decode images."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def images_in(folder: Path) -> list[Path]:
    """The image files of `folder`, sorted by name. Raises FileNotFoundError if there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"there is no image in {folder}; expected files ending in {', '.join(SUFFIXES)}")
    return found


def read_labels(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W). Raises ValueError if the file is broken, or has more than one 8-bit channel."""
    with broken_named(path), Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"{path} is of mode {image.mode}; labels are one 8-bit channel")
        return np.asarray(image)


def read_mat(path: Path, *names: str) -> list[NDArray[Any]]:
    """Variables of a MATLAB file, in the order of `names`. Raises FileNotFoundError, and ValueError on a file that is
    broken, of version 7.3 or without one of them."""
    try:
        from scipy.io import loadmat  # noqa: PLC0415  (an optional dependency, wanted only here)
        from scipy.io.matlab import MatReadError  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(f"reading {path} needs SciPy: pip install --editable '.[train]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        held = loadmat(path)
    except NotImplementedError as error:
        raise ValueError(f"{path} is of MATLAB's version 7.3 (HDF5); save it with -v7") from error
    except (MatReadError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    missing = [name for name in names if name not in held]
    if missing:
        found = ", ".join(name for name in held if not name.startswith("__"))
        raise ValueError(f"{path} has no {', '.join(missing)}; it holds {found or 'nothing'}")
    return [np.asarray(held[name]) for name in names]


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Calls `function` on every item, on threads; returns the results in order. Decoders release the interpreter's
    lock, so the threads run side by side."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, starts no further item
