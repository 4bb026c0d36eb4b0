"""The images of a load test: read, scaled and encoded once, before the start."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adpc_client.images import encode_image, open_image
from adpc_client.load.plan import PlannedRequest

_JPEG_QUALITY = 90
_LONGEST_PX, _MOST_PX = 65_535, 200_000_000
"""A JPEG has no longer side (ITU T.81). More pixels would take gigabytes while they are scaled."""


@dataclass(frozen=True)
class Payload:
    """An image file as it is sent."""

    data: bytes
    content_type: str
    width: int
    height: int


class Payloads:
    """The images of a plan in every size that it names. Request number N sends image N modulo their number."""

    def __init__(self, images: Sequence[bytes]) -> None:
        if not images:
            raise ValueError("a load test needs an image to send")
        self._images = [_as_it_is(data) for data in images]
        self._scaled: dict[tuple[int, int, int], Payload] = {}

    def prepare(self, requests: Sequence[PlannedRequest]) -> list[PlannedRequest]:
        """Encode the images of `requests`, and return these with `width` and `height` filled in."""
        sizes = [(payload.width, payload.height) for payload in map(self.pick, range(len(requests)), requests)]
        return [replace(request, width=w, height=h) for request, (w, h) in zip(requests, sizes, strict=True)]

    def pick(self, number: int, request: PlannedRequest) -> Payload:
        """The image of request `number`."""
        index = number % len(self._images)
        image = self._images[index]
        width, height = request.width or image.width, request.height or image.height
        if (width, height) == (image.width, image.height):
            return image
        key = index, width, height
        if key not in self._scaled:
            self._scaled[key] = _scale(image, width, height)
        return self._scaled[key]


def street(seed: int, height: int = 360, width: int = 480) -> bytes:
    """A drawn street as a JPEG file, for tests without a photo: sky, road, houses, noise."""
    return _jpeg(Image.fromarray(_scene(seed, height, width)))


def _as_it_is(data: bytes) -> Payload:
    data, kind = encode_image(data)
    return Payload(data, kind, *ImageOps.exif_transpose(open_image(data)).size)


def _scale(image: Payload, width: int, height: int) -> Payload:
    if max(width, height) > _LONGEST_PX or width * height > _MOST_PX:
        raise ValueError(
            f"an image of {width}x{height} pixels is too large; a load test sends at most {_LONGEST_PX:,} pixels a "
            f"side and {_MOST_PX:,} in all"
        )
    opened = ImageOps.exif_transpose(open_image(image.data)).convert("RGB")
    return Payload(_jpeg(opened.resize((width, height), Image.Resampling.BILINEAR)), "image/jpeg", width, height)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _scene(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(abs(seed))
    rows = np.linspace(0, 1, height)[:, None, None]
    scene = np.where(rows < 0.55, (150, 180, 220) * (1 - rows / 2), (90, 90, 95) * (0.7 + rows / 2))
    scene = np.repeat(scene, width, axis=1)
    for left in range(0, width, 60):
        top = int(random.integers(height // 8, height // 2))
        scene[top : int(height * 0.6), left : left + int(random.integers(30, 60))] = random.integers(60, 200, 3)
    return np.clip(scene + random.normal(0, 8, scene.shape), 0, 255).astype(np.uint8)
