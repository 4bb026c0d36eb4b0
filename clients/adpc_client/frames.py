"""Reads frames from folders, animations, videos and cameras, and keeps the newest of them."""

import importlib
import io
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from PIL import Image, ImageSequence, UnidentifiedImageError

from adpc_client.errors import ImageError
from adpc_client.images import ImageSource

_FILES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_ANIMATED = ("GIF", "WEBP", "PNG")
"""Formats whose further images are frames. In others they are previews (MPO, from phones) or pages (TIFF)."""
_CAMERA = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""FFmpeg's input format and device name of a camera, by the start of `sys.platform`."""


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. `index` counts from 0.

    `due_s` is its time in seconds from the start of the source. None means that it is due as soon as it is read.
    """

    index: int
    image: ImageSource
    due_s: float | None = None


@dataclass(frozen=True)
class Source:
    """Where frames come from. `frames` reads them one by one.

    A `still` source has exactly one frame. The frames of a `paced` source come at their own times, whether or not
    anyone takes them.
    """

    frames: Iterator[SourceFrame]
    still: bool = False
    paced: bool = False


def open_source(name: str, fps: float | None = None) -> Source:
    """Open an image, an animation, a folder of images, a video file or a camera (`camera:0`).

    `fps` sets the pace of animations and videos, and gives folders one; without it, each image of a folder is due when
    it is read. Raises OSError if the file does not exist, and ImageError if a folder holds no images. Reading the
    frames raises ImageError if the file cannot be read or needs the `video` extra.
    """
    if name.startswith("camera:"):
        return Source(_video(*_camera(name.removeprefix("camera:")), live=True, fps=None), paced=True)
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _FILES)
        if not files:
            raise ImageError(f"the folder {name} holds no {', '.join(sorted(_FILES))} files")
        frames = (SourceFrame(index, file, index / fps if fps else None) for index, file in enumerate(files))
        return Source(frames, paced=fps is not None)
    data = path.read_bytes() if path.stat().st_size < 1 << 28 else b""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        return Source(_video(name, None, live=False, fps=fps), paced=True)
    if image.format in _ANIMATED and getattr(image, "is_animated", False):
        return Source(_animation(image, fps), paced=True)
    return Source(iter([SourceFrame(0, path)]), still=True)


class NewestFrame:
    """The newest frame of a paced source.

    Inside its `with` block a thread reads the source; a new frame replaces one that nobody has taken. `dropped` counts
    the replaced frames. Tests pass their own `clock` (in seconds) and `sleep`.
    """

    def __init__(
        self,
        frames: Iterator[SourceFrame],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.dropped = 0
        self._frames, self._clock = frames, clock
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._frame: SourceFrame | None = None
        self._over = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="frames", daemon=True)

    def __enter__(self) -> "NewestFrame":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(timeout=1.0)

    @property
    def waiting(self) -> bool:
        """Whether a frame has come since the last `take`."""
        return self._frame is not None

    def take(self) -> SourceFrame | None:
        """Wait for a new frame and return it; None once the source has ended. Raises the source's errors."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._over)
            frame, self._frame = self._frame, None
        if frame is None and self._error is not None:
            raise self._error
        return frame

    def _read(self) -> None:
        start_s = self._clock()
        try:
            for frame in self._frames:
                wait_s = start_s + (frame.due_s or 0.0) - self._clock()
                if wait_s > 0:
                    self._sleep(wait_s)
                if self._closing.is_set():
                    return
                with self._changed:
                    self.dropped += self._frame is not None
                    self._frame = frame
                    self._changed.notify()
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify()


def _animation(image: Image.Image, fps: float | None) -> Iterator[SourceFrame]:
    due_s = 0.0
    for index, frame in enumerate(ImageSequence.Iterator(image)):
        yield SourceFrame(index, frame.convert("RGB"), due_s)
        due_s += 1 / fps if fps else max(float(frame.info.get("duration") or 100), 20) / 1000


def _camera(number: str) -> tuple[str, str]:
    for platform, (container, name) in _CAMERA.items():
        if sys.platform.startswith(platform):
            return name.format(number), container
    raise ImageError(f"cameras are not supported on {sys.platform}; stream a video file instead")


def _video(name: str, container: str | None, *, live: bool, fps: float | None) -> Iterator[SourceFrame]:
    av = _import_av(name)
    try:
        with av.open(name, format=container) as video:
            for index, frame in zip(itertools.count(), video.decode(video=0), strict=False):
                due_s = None if live else index / fps if fps else float(frame.time or 0.0)
                file = io.BytesIO()
                frame.to_image().save(file, "JPEG", quality=92)
                yield SourceFrame(index, file.getvalue(), due_s)
    except (av.error.FFmpegError, IndexError) as error:
        raise ImageError(f"{name} cannot be read as an image or a video: {error}") from error


def _import_av(name: str) -> ModuleType:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImageError(
            f"{name} is no image; if it is a video or a camera: pip install 'adpc-client[video]'"
        ) from error
