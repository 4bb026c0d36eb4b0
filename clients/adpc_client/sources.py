"""Opens what frames come from: images, folders, globs, animations, videos, cameras, iterators and callables."""

import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from adpc_client.errors import ImageError
from adpc_client.frames import Source, SourceFrame
from adpc_client.images import BROKEN_IMAGE
from adpc_client.video import open_camera, open_network, open_video

FollowSource = str | int | os.PathLike[str] | Iterable[Any] | Callable[[], Any]
"""What `open_source` opens."""

_FILES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_ANIMATED = ("GIF", "WEBP", "PNG")
"""Formats whose further images are frames. In others they are previews (MPO, from phones) or pages (TIFF)."""


def open_source(source: FollowSource, fps: float | None = None, *, bgr: bool = False) -> Source:
    """Open a source by its name, or an iterator or callable that gives images.

    A name is that of an image, an animation, a video, a folder of images, a glob such as `drive/*.jpg`, a camera
    (`camera:0`), or a URL that FFmpeg reads, such as `rtsp://..`. A number is that of a camera. A callable is asked
    again and again; it returns an image, or like OpenCV's `VideoCapture.read` a pair whose first part is False at the
    end. None ends it too.

    `fps` sets the pace of animations and videos, and gives folders, iterators and callables one; a camera is asked for
    it. Without it, an image of a folder or an iterator is due when it is read, and a callable sets the pace itself.
    Videos give arrays, BGR if `bgr` is set. Raises ValueError for an `fps` that makes no sense, TypeError for a single
    image, OSError if a file does not exist, and ImageError if a folder or a glob holds no images. Reading the frames
    raises ImageError if the file cannot be read or needs the `video` extra.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps is {fps}; it must be a finite number above 0, or None for the source's own pace")
    if isinstance(source, int):
        return open_camera(str(source), fps, bgr)
    if isinstance(source, str | os.PathLike):
        return _named(os.fspath(source), fps, bgr)
    if isinstance(source, bytes | bytearray | memoryview | np.ndarray | Image.Image):
        raise TypeError(f"a {type(source).__name__} is one image, not a source of them; send it with `predict`")
    period_s = None if fps is None else 1 / fps
    if callable(source):
        return Source(_spaced(_called(source), period_s), paced=True, period_s=period_s)
    return Source(_spaced(iter(source), period_s), paced=fps is not None, period_s=period_s)


def open_bytes(data: bytes, fps: float | None = None, *, bgr: bool = False) -> Source:
    """Open the bytes of an image, an animation or a video, for example from standard input."""
    return _opened(io.BytesIO(data), data, "the input", fps, bgr)


def _named(name: str, fps: float | None, bgr: bool) -> Source:
    if name.startswith("camera:"):
        return open_camera(name.removeprefix("camera:"), fps, bgr)
    if re.match(r"[a-z][a-z0-9+.-]+://", name):
        if fps is not None:
            raise ValueError(f"{name} has a pace of its own; leave fps out")
        return open_network(name, bgr)
    path = Path(name)
    if path.is_dir():
        return _files(path.iterdir(), f"the folder {name}", fps)
    if glob.has_magic(name) and not path.exists():
        found = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        return _files(map(Path, found), f"the glob {name}", fps)
    if path.is_file():
        return _opened(path, path, name, fps, bgr)
    data = path.read_bytes()  # a pipe can be read only once
    return _opened(io.BytesIO(data), data, name, fps, bgr)


def _files(paths: Iterable[Path], name: str, fps: float | None) -> Source:
    """The images among `paths`, in the order in which people count: 1, 2, 10. Hidden files are left out."""
    images = (path for path in paths if path.suffix.lower() in _FILES and not path.name.startswith("."))
    files = sorted(images, key=_natural_order)
    if not files:
        raise ImageError(f"{name} holds no {', '.join(sorted(_FILES))} files")
    period_s = None if fps is None else 1 / fps
    return Source(_spaced(iter(files), period_s), paced=fps is not None, period_s=period_s)


def _natural_order(path: Path) -> list[tuple[str, int]]:
    pieces = re.findall(r"(\D*)(\d*)", str(path).lower())
    return [(text, int(number or -1)) for text, number in pieces]


def _opened(file: Path | io.BytesIO, still: Path | bytes, name: str, fps: float | None, bgr: bool) -> Source:
    """A file that has been found: an animation, a still image, which is sent as `still`, or else a video."""
    try:
        with Image.open(file) as image:
            animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        return open_video(file, name, fps, bgr)
    except Image.DecompressionBombError:  # the server says how large an image may be
        animated = False
    except BROKEN_IMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: the file may not be read
        raise _broken(name, error) from error
    if not animated and fps is not None:
        raise ValueError(f"{name} is one image, which has no pace; leave fps out")
    if not animated:
        return Source(iter([SourceFrame(0, still)]), still=True)
    data = still if isinstance(still, bytes) else still.read_bytes()
    return Source(_animation(data, name, fps), paced=True, period_s=None if fps is None else 1 / fps)


def _animation(data: bytes, name: str, fps: float | None) -> Iterator[SourceFrame]:
    due_s = 0.0
    try:
        for index, frame in enumerate(ImageSequence.Iterator(Image.open(io.BytesIO(data)))):
            yield SourceFrame(index, frame.convert("RGB"), due_s)
            due_s += 1 / fps if fps else max(float(frame.info.get("duration") or 100), 20) / 1000
    except BROKEN_IMAGE as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is broken or cut off: {error}")


def _spaced(images: Iterator[Any], period_s: float | None) -> Iterator[SourceFrame]:
    for index, image in enumerate(images):
        yield SourceFrame(index, image, None if period_s is None else index * period_s)


def _called(read: Callable[[], Any]) -> Iterator[Any]:
    while (image := read()) is not None:
        if isinstance(image, tuple):
            more, image = image
            if not more:
                return
        yield image
