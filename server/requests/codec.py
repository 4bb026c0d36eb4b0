"""The codec: decodes images and encodes maps on threads of its own, and learns how long that takes."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.requests.admission import decode
from server.scheduling.quantile import Quantile, RecentQuantile

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """An image, and how long it took.

    `pixels`: uint8 (H, W, 3) RGB. `decode_s`: seconds from the whole body to the pixels. `usual_end_s`: when the image
    would have been decoded if it had taken as long as images of its size usually do.
    """

    pixels: NDArray[np.uint8]
    decode_s: float
    usual_end_s: float


class Codec:
    """`threads` decode, and as many encode: in two pools, so that no answer that is due waits behind a large image.

    Images and maps of a similar size, by powers of two, count as equally fast.
    """

    SEND_S = 0.001
    """Reserved before each deadline, besides encoding: to hear of an exit and to hand over the answer."""
    ENCODE_S_PER_PX = 10e-9
    """Reserved for encoding until it has been measured."""
    ENCODED_SHARE = 0.98
    """The share of maps that are encoded within what is reserved."""

    def __init__(self, threads: int, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._encoders = ThreadPoolExecutor(threads, "encode")
        self._decode_s: dict[int, Quantile] = {}
        self._encode_s: dict[tuple[str, int], RecentQuantile] = {}

    def close(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def decode(self, body: bytes) -> DecodedImage:
        """See `admission.decode`. A request that is given up while it waits for a thread is not decoded."""
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        held, max_pixels = [body], self._max_pixels
        del body
        try:
            pixels, started_s = await loop.run_in_executor(
                self._decoders, lambda: _timed(lambda: decode(held.pop(), max_pixels))
            )
        except asyncio.CancelledError:
            # The call stays in the decoders' queue. Neither it nor the frames of this error may keep the body alive.
            held.clear()
            raise asyncio.CancelledError from None
        now_s = time.monotonic()
        height, width = pixels.shape[:2]
        usual = self._decode_s.setdefault((height * width).bit_length(), Quantile(0.9))
        usual.add(now_s - started_s)
        return DecodedImage(pixels, now_s - began_s, began_s + usual.value)

    def usual_decode_s(self, pixels: int) -> float:
        """Seconds that the decoding of an image of `pixels` usually takes; 0 until one was decoded."""
        measured = self._decode_s.get(pixels.bit_length())
        return 0.0 if measured is None else measured.value

    async def encode(self, encoding: str, pixels: int, function: Callable[[], T]) -> T:
        """Call `function`, which encodes a map of `pixels`, on a thread. What is learnt is the time until the event
        loop has the result: an answer that is due waits for both, also while the cores are busy."""
        began_s = time.monotonic()
        result = await asyncio.get_running_loop().run_in_executor(self._encoders, function)
        slow = self._encode_s.setdefault((encoding, pixels.bit_length()), RecentQuantile(self.ENCODED_SHARE))
        slow.add(time.monotonic() - began_s)
        return result

    def reserve_s(self, encoding: str, pixels: int) -> float:
        """The part of the time before a deadline that encoding and sending a map of `pixels` need."""
        measured = self._encode_s.get((encoding, pixels.bit_length()))
        return self.SEND_S + (self.ENCODE_S_PER_PX * pixels if measured is None else measured.value)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result, and when the call began. Time spent waiting for a thread is left out: it tells of the burst, not of
    the image."""
    started_s = time.monotonic()
    return function(), started_s
