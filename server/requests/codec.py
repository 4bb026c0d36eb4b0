"""The codec: has images decoded by processes, learns how long that takes, and has maps encoded."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.decoding.header import work_px
from server.decoding.lane import Lane
from server.decoding.messages import DecoderPlan
from server.decoding.process import ChildDecoder, DecoderProcess
from server.scheduling.quantile import Quantile
from server.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, and the time that decoding took.

    `pixels`: uint8 (H, W, 3) RGB. `decode_s`: seconds from the whole body to the pixels. `usual_end_s`: when the image
    would have been decoded if it had taken as long as images of its size usually do.
    """

    pixels: NDArray[np.uint8]
    decode_s: float
    usual_end_s: float


class Codec:
    """Decodes images in processes, and encodes maps on threads where that takes long, `settings.codec_threads` of each.
    One more process decodes large images, so that no small image waits behind them. `launch` starts a process.

    Images of a similar size, by powers of two, count as equally fast to decode.
    """

    INLINE_PX = 2**18
    """A label map of at most so many pixels is encoded on the event loop, in one of the encodings `INLINE`. A thread
    would add 0.25 ms until it is woken and the event loop has its result."""
    INLINE = frozenset(
        ("image/png", "png", "raw", "delta", "application/octet-stream", "application/json", "json", "v2 binary")
    )
    """The encodings that take at most about 0.3 ms at 480x360. Run lengths may take 9 ms there, tensors in JSON 5 ms,
    and the PNG of a further map 0.7 ms."""
    LARGE_PX = 4 * 2**20
    """An image of more work than this is large: it takes more than about 40 ms to decode."""
    LARGE_NICE = 5
    """Large images are decoded with the priority of a worker, behind usual ones and the event loop."""

    def __init__(self, settings: Settings, launch: Callable[[DecoderPlan], DecoderProcess] | None = None) -> None:
        launch = launch or ChildDecoder
        usual = DecoderPlan(settings.max_body_bytes, settings.max_pixels, settings.max_decode_ms / 1000, nice=0)
        self._usual = Lane(usual, settings.codec_threads, launch)
        self._large = Lane(replace(usual, nice=self.LARGE_NICE), 1, launch)
        self._encoders = ThreadPoolExecutor(settings.codec_threads, "encode")
        self._threads = settings.codec_threads
        self._decode_s: dict[int, Quantile] = {}

    def start(self) -> None:
        self._usual.start()
        self._large.start()

    def close(self) -> None:
        self._usual.close()
        self._large.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def decoded(self, body: bytes | memoryview) -> AsyncIterator[DecodedImage]:
        """The image in a file, whose pixels are valid in the `async with` block. Raises ServerError, see
        `decoding.decode`. A request that is given up while it waits for a decoder is not decoded."""
        began_s = time.monotonic()
        work = work_px(body)
        image = (self._large if work > self.LARGE_PX else self._usual).decoded(body, work)
        del body  # see `Lane.decoded`
        async with image as (pixels, took_s):
            height, width = pixels.shape[:2]
            usual = self._decode_s.setdefault((height * width).bit_length(), Quantile(0.9))
            usual.add(took_s)
            yield DecodedImage(pixels, time.monotonic() - began_s, began_s + usual.value)

    def usual_decode_s(self, pixels: int) -> float:
        """Seconds that the decoding of an image of `pixels` usually takes; 0 until one was decoded."""
        measured = self._decode_s.get(pixels.bit_length())
        return 0.0 if measured is None else measured.value

    def prepare_s(self, pixels: int) -> float:
        """Seconds until an image of `pixels` that comes now will be decoded, if it is an ordinary photo."""
        lane = self._large if pixels > self.LARGE_PX else self._usual
        return lane.queue_s(pixels) + self.usual_decode_s(pixels)

    def delays_s(self, pixels: int) -> float:
        """For how many seconds the decoding of an image of `pixels` usually delays other requests. A large image delays
        none, because a separate process decodes it at low priority."""
        return 0.0 if pixels > self.LARGE_PX else self.usual_decode_s(pixels) / self._threads

    async def encode(self, encoding: str, pixels: int, function: Callable[[], T], *, extra: bool) -> T:
        """Call `function`, which encodes a label map of `pixels`, and return its result. `extra`: it encodes a further
        map, too."""
        if encoding in self.INLINE and pixels <= self.INLINE_PX and not extra:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._encoders, function)


async def copy_pixels(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """Copy an image, uint8 (H, W, 3), and yield to the event loop after each megabyte."""
    rows = max(1, 2**20 // (3 * image.shape[1]))
    for top in range(0, len(image), rows):
        if top:
            await asyncio.sleep(0)
        np.copyto(target[top : top + rows], image[top : top + rows])
