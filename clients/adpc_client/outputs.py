"""The files that `adpc` writes. Their paths are checked before anything is asked, so that no answer is lost.

Missing folders are made when the first file is written, so that a command that fails leaves nothing behind.
"""

import os
from pathlib import Path

from adpc_client.arguments import UsageError
from adpc_client.images import ImageSource
from adpc_client.results import Exit
from adpc_client.video import VIDEO_FILES

_INDEXED = (".png", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of pictures that hold class numbers and a palette."""
_COLOURED = (".jpg", ".jpeg", ".webp")
"""Endings of pictures that hold only the colours."""
VIDEOS = (*VIDEO_FILES, ".avi", ".webm", ".mpg", ".m4v", ".ts")
"""Endings of videos."""
_NO_FOLDER = (*_INDEXED, *_COLOURED, *VIDEOS)
"""File endings that are never taken for a folder."""


def check_picture(path: Path) -> None:
    """Check a picture that will be written. Raises UsageError for an unknown ending, a folder, or where none may be."""
    known = (*_INDEXED, *_COLOURED)
    if path.suffix.lower() not in known:
        raise UsageError(f"--output {path} must end in one of {', '.join(known)}")
    check_file("--output", path)


def is_video(path: Path) -> bool:
    """Whether the frames go into one video. Raises UsageError for another file, or where none may be written."""
    if path.suffix.lower() in VIDEO_FILES:
        check_file("--output", path)
        return True
    if not path.is_dir() and (path.exists() or path.suffix.lower() in _NO_FOLDER):
        raise UsageError(f"--output {path} is a file; name a folder, or a video that ends in {', '.join(VIDEO_FILES)}")
    check_folder("--output", path)
    return False


def save_picture(answer: Exit, image: ImageSource, path: Path, *, over_photo: bool) -> None:
    """Write the mask as an indexed picture where the format has such, or drawn over its photo as poses always are."""
    picture = answer.overlay(image) if over_photo or answer.task == "pose" else answer.picture()
    if path.suffix.lower() in _COLOURED:
        picture = picture.convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def check_file(option: str, path: Path) -> None:
    """Raises UsageError if the file `path` cannot be written. `option` names it."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file")
    if not path.exists():
        check_folder(option, path.parent)
    elif not os.access(path, os.W_OK):
        raise UsageError(f"{option} {path} is a file that you may not write to; name another file")


def check_folder(option: str, folder: Path) -> None:
    """Raises UsageError if files cannot be written into `folder`, which need not be there yet. `option` names it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{option} needs the folder {folder}, but {existing} is a file; name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{option} needs the folder {existing}, which you may not write to; name another folder")
