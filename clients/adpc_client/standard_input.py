"""Opens what comes through standard input: an image, an animation or a video."""

from typing import BinaryIO

from adpc_client.errors import ImageError
from adpc_client.frames import Source
from adpc_client.sources import open_bytes
from adpc_client.video import open_video

_HEAD_BYTES = 12
_STREAMED = (b"\x47", b"\x1a\x45\xdf\xa3", b"\0\0\0\1", b"\0\0\1\xba", b"FLV")
"""The first bytes of videos that can be played while they come: MPEG-TS (as are those of GIF), Matroska and WebM, raw
H.264 and H.265, MPEG-PS, FLV. Others, such as MP4, may have at their end what a player needs first."""


class Pipe:
    """A file that cannot seek, from its first bytes on, which have been read already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end."""
        head, self._head = self._head[:size], self._head[size:]
        return head or self._file.read(size)


def open_input(file: BinaryIO, fps: float | None = None) -> Source:
    """The source in `file`, which has no buffer, so that a read returns what has come so far.

    A video that can be played while it comes is not waited for; all else is read to its end first. Raises ImageError if
    the input is empty.
    """
    head = b""
    while len(head) < _HEAD_BYTES and (more := file.read(_HEAD_BYTES - len(head))):
        head += more
    if not head:
        raise ImageError("standard input is empty; send the bytes of an image or a video: adpc stream - < video.mp4")
    if head.startswith(_STREAMED) and not head.startswith(b"GIF8"):
        return open_video(Pipe(head, file), "the input", fps, bgr=False)
    return open_bytes(head + file.read(), fps)
