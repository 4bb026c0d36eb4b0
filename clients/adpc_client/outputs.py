"""The files that `adpc` writes. Their paths are checked before anything is asked, so that no answer is lost."""

from pathlib import Path

from adpc_client.arguments import UsageError
from adpc_client.images import ImageSource
from adpc_client.results import Exit
from adpc_client.video import VIDEO_FILES

_INDEXED = (".png", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of pictures that hold class numbers and a palette."""
_COLOURED = (".jpg", ".jpeg", ".webp")
"""Endings of pictures that hold only the colours."""
_NO_FOLDER = (*_INDEXED, *_COLOURED, ".avi", ".webm", ".mpg", ".m4v")
"""File endings that are never taken for a folder."""


def check_picture(path: Path) -> None:
    """Make the folder of a picture that will be written. Raises UsageError for an unknown ending or a folder."""
    known = (*_INDEXED, *_COLOURED)
    if path.suffix.lower() not in known:
        raise UsageError(f"--output {path} must end in one of {', '.join(known)}")
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)


def is_video(path: Path) -> bool:
    """Whether the frames go into one video. Makes the folder that is needed. Raises UsageError for another file."""
    if path.suffix.lower() in VIDEO_FILES:
        path.parent.mkdir(parents=True, exist_ok=True)
        return True
    if not path.is_dir() and (path.exists() or path.suffix.lower() in _NO_FOLDER):
        raise UsageError(f"--output {path} is a file; name a folder, or a video that ends in {', '.join(VIDEO_FILES)}")
    path.mkdir(parents=True, exist_ok=True)
    return False


def save_picture(answer: Exit, image: ImageSource, path: Path, *, over_photo: bool) -> None:
    """Write the mask as an indexed picture where the format has such, or drawn over its photo as poses always are."""
    picture = answer.overlay(image) if over_photo or answer.task == "pose" else answer.picture()
    if path.suffix.lower() in _COLOURED:
        picture = picture.convert("RGB")
    picture.save(path)
