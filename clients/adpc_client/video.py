"""Reads and writes videos with PyAV, which is FFmpeg."""

import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adpc_client.errors import ImageError
from adpc_client.frames import Source, SourceFrame

VIDEO_FILES = (".mp4", ".mkv", ".mov")
"""The endings of the videos that `VideoWriter` writes."""
_USUAL_FPS = 25.0
"""The pace of a video that names none."""
_LONGEST_GAP_S = 10.0
"""A longer gap between two frames is a mistake of the file's time stamps."""
_CAMERA = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""FFmpeg's input format and device name of a camera, by the start of `sys.platform`."""
_SILENCE_S = 10.0
"""How long a network stream may be silent while it is opened, and between two packets."""
_REOPEN_S = 1.0
"""The time before a network stream that broke is opened again."""


def open_video(file: "Path | ReadableFile", name: str, fps: float | None, bgr: bool) -> Source:
    """A video file, which need not be able to seek. Its first frame is due at once, the others when a player would show
    them. Raises ImageError if it is empty.

    Frames are arrays, uint8 (H, W, 3), upright. What is damaged is left out. Reading raises ImageError if nothing can
    be read.
    """
    empty = (
        file.stat().st_size == 0 if isinstance(file, Path) else isinstance(file, io.BytesIO) and not file.getbuffer()
    )
    if empty:
        raise ImageError(f"{name} cannot be read as an image or a video, because it is empty")
    if isinstance(file, io.BytesIO):
        file.seek(0)  # Pillow has looked whether it is an image
    opened = str(file) if isinstance(file, Path) else file
    return Source(_read(opened, name, fps, bgr), paced=True, period_s=None if fps is None else 1 / fps)


def open_camera(number: str, fps: float | None, bgr: bool) -> Source:
    """A camera of this machine, which is asked for `fps` frames a second. Raises ValueError if `number` is none."""
    if sys.platform.startswith("linux") and not number.isdecimal():
        raise ValueError(f"camera:{number} names no camera; give its number, for example camera:0 for /dev/video0")
    for platform, (container, name) in _CAMERA.items():
        if sys.platform.startswith(platform):
            options = {} if fps is None else {"framerate": f"{fps:g}"}
            frames = _read_camera(name.format(number), f"camera:{number}", bgr, format=container, options=options)
            return Source(_numbered(frames), paced=True)
    raise ImageError(f"cameras are not supported on {sys.platform}; stream a video file instead")


def open_network(url: str, bgr: bool, sleep: Callable[[float], object] = time.sleep) -> Source:
    """A live stream such as `rtsp://..`, which is opened again whenever it breaks or ends after its first frame."""
    return Source(_numbered(_reopened(url, bgr, sleep)), paced=True)


class ReadableFile(Protocol):
    """A file that FFmpeg reads. If it has `seek` and `tell`, too, FFmpeg uses them."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class VideoWriter:
    """Writes pictures into a video file, each at its own time. The first one makes the file and its folder.

    Raises OSError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._av = _import_av(str(path))
        self._container = self._av.open(str(path), "w")
        self._folder = path.parent
        self._stream: Any = None
        self._last_ms = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, picture: Image.Image, at_s: float) -> None:
        """Show `picture` from `at_s` on, which is later than the pictures before."""
        if self._stream is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stream = self._container.add_stream(self._container.default_video_codec, rate=int(_USUAL_FPS))
            self._stream.width, self._stream.height = (max(2, length // 2 * 2) for length in picture.size)
            self._stream.pix_fmt = "yuv420p"  # which every player knows; it needs even lengths
            self._stream.codec_context.time_base = Fraction(1, 1000)
        size = self._stream.width, self._stream.height
        frame = self._av.VideoFrame.from_image(picture if picture.size == size else picture.resize(size))
        frame.pts = self._last_ms = max(round(1000 * at_s), self._last_ms + 1)
        frame.time_base = Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))


class FrameTimes:
    """When the frames of a video are due, from their time stamps: seconds, None for a frame without one."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._due_s = 0.0
        self._last: float | None = None
        self._first = True

    def due_s(self, stamp_s: float | None) -> float:
        """The time of the next frame, in seconds from the first one, whatever the time stamp of that."""
        if not self._first:
            gap_s = -1.0 if stamp_s is None or self._last is None else stamp_s - self._last
            self._due_s += gap_s if 0 < gap_s < _LONGEST_GAP_S else self._period_s
        self._first, self._last = False, stamp_s
        return self._due_s


def _read(file: Any, name: str, fps: float | None, bgr: bool) -> Iterator[SourceFrame]:
    av = _import_av(name)
    with _ffmpeg_errors(av, name), av.open(file) as container:
        stream = _video_stream(container, name)
        named = stream.codec_context.framerate or stream.average_rate  # the container of raw H.264 makes one up
        times = FrameTimes(1 / (fps or float(named or _USUAL_FPS)))
        for index, frame in enumerate(_decoded(av, container, stream)):
            yield SourceFrame(index, _upright(frame, bgr), times.due_s(None if fps else frame.time))


def _read_live(address: str, name: str, bgr: bool, **options: Any) -> Iterator[NDArray[np.uint8]]:
    av = _import_av(name)
    with _ffmpeg_errors(av, name), av.open(address, **options) as container:
        for frame in _decoded(av, container, _video_stream(container, name)):
            yield _upright(frame, bgr)


def _read_camera(device: str, name: str, bgr: bool, **options: Any) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames of a camera. Raises ImageError if the camera cannot be opened; the error says what to do."""
    _import_av(name)
    begun = False
    try:
        for image in _read_live(device, name, bgr, **options):
            begun = True
            yield image
    except ImageError as error:
        if begun:
            raise
        raise ImageError(f"{name} cannot be opened: {_camera_remedy(device, error)}") from None


def _camera_remedy(device: str, error: ImageError) -> str:
    reason, instead = error.__cause__ or error, "or stream a video file instead"
    if not sys.platform.startswith("linux"):
        return f"{reason}; check that it is connected and that programs may use it, {instead}"
    if not Path(device).exists():
        others = ", ".join(sorted(str(path) for path in Path(device).parent.glob("video*")))
        remedy = f"there are {others}: give the number of one of them" if others else "connect a camera"
        return f"there is no {device}; {remedy}, {instead}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"you may not use {device}; join its group (sudo usermod -aG video $USER) and log in again, {instead}"
    return f"{reason}; check that no other program uses {device}, {instead}"


def _reopened(url: str, bgr: bool, sleep: Callable[[float], object]) -> Iterator[NDArray[np.uint8]]:
    rtsp = {"rtsp_transport": "tcp", "fflags": "nobuffer"} if url.startswith("rtsp") else {}
    begun = False
    while True:
        try:
            for image in _read_live(url, url, bgr, options=rtsp, timeout=_SILENCE_S):
                begun = True
                yield image
        except ImageError:
            if not begun:
                raise
        else:
            if url.startswith("http"):  # a file, which has ended
                return
            if not begun:
                raise ImageError(f"{url} ended before its first frame")
        sleep(_REOPEN_S)


def _numbered(images: Iterator[NDArray[np.uint8]]) -> Iterator[SourceFrame]:
    return (SourceFrame(index, image) for index, image in enumerate(images))


def _decoded(av: ModuleType, container: Any, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded. Raises FFmpegError if there are none."""
    found, failure = False, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:  # players skip what is damaged, too
            failure = error
            continue
        for frame in frames:
            found = True
            yield frame
    if failure is not None and not found:
        raise failure


def _upright(frame: Any, bgr: bool) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="bgr24" if bgr else "rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # both count counterclockwise


def _video_stream(container: Any, name: str) -> Any:
    if not container.streams.video:
        raise ImageError(f"{name} has no pictures; it may be a sound file")
    return container.streams.video[0]


@contextmanager
def _ffmpeg_errors(av: ModuleType, name: str) -> Iterator[None]:
    """Raises FFmpeg's failures as ImageErrors."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise ImageError(f"{name} cannot be read as an image or a video: {error.strerror or error}") from error


def _import_av(name: str) -> ModuleType:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        sentence = f"{name} is no image; if it is a video or a camera: pip install 'adpc-client[video]'"
        raise ImageError(sentence) from error
