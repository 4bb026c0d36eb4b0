"""What the front end and a decoding process say to each other: one line each, in JSON.

A decoding process reads files that strangers made. So its messages are text that is checked, and never a pickle, which
could run code.
"""

import json
from dataclasses import asdict, dataclass

from server.errors import InvalidError, NotAnImageError, ServerError, TooLargeError

PAGE_BYTES = 1 << 16
"""A multiple of the page size of every system."""
_ERRORS = {error.__name__: error for error in (InvalidError, NotAnImageError, TooLargeError, ServerError)}


@dataclass(frozen=True)
class DecoderPlan:
    """What a decoding process is told at its start, as its argument.

    `max_body_bytes`, `max_pixels`: the largest file and image; its memory holds the one, then the other.
    `max_decode_s`: seconds of CPU that one image may take. `nice`: its niceness, relative to the front end's.
    """

    max_body_bytes: int
    max_pixels: int
    max_decode_s: float
    nice: int

    @property
    def pixels_at(self) -> int:
        """Where the pixels lie in the memory, behind the file: at the beginning of a page."""
        return -(-self.max_body_bytes // PAGE_BYTES) * PAGE_BYTES

    @property
    def memory_bytes(self) -> int:
        return self.pixels_at + 3 * self.max_pixels

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "DecoderPlan":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class DecoderAnswer:
    """What became of a file: the height and width of the image that now lies in the memory, or `error`."""

    height: int = 0
    width: int = 0
    error: ServerError | None = None

    def to_line(self) -> bytes:
        said: dict[str, object] = {"height": self.height, "width": self.width}
        if self.error is not None:
            kind = type(self.error).__name__
            said = {"error": kind, "message": str(self.error)[:1000], "code": self.error.code}
        return json.dumps(said).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes, max_pixels: int) -> "DecoderAnswer":
        """Raises KeyError, TypeError or ValueError on anything that `to_line` does not write, or on more pixels."""
        said = json.loads(line)
        if "error" in said:
            return cls(error=_ERRORS[said["error"]](str(said["message"]), str(said["code"])))
        height, width = int(said["height"]), int(said["width"])
        if height < 0 or not 0 <= height * width <= max_pixels:
            raise ValueError(f"an image of {width}x{height} is not possible")
        return cls(height, width)
