"""The codec: which images are large, and what decoding usually takes."""

import asyncio
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from live import photo, until
from scripted_decoder import ScriptedDecoder

from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.requests.codec import Codec, copy_pixels
from server.settings import Settings

PNG_HEADER = b"\x89PNG\r\n\x1a\n" + bytes(8)


class Played:
    """A codec with one process for usual images, whose processes the test plays."""

    def __init__(self) -> None:
        self.decoders: list[ScriptedDecoder] = []
        self.codec = Codec(Settings(codec_threads=1), self._launch)
        self.codec.start()

    def _launch(self, plan: DecoderPlan) -> ScriptedDecoder:
        self.decoders.append(ScriptedDecoder(plan))
        self.decoders[-1].say(DecoderAnswer().to_line())
        return self.decoders[-1]

    async def lanes(self) -> tuple[ScriptedDecoder, ScriptedDecoder]:
        """The process for usual images, and the one for large ones."""
        await until(lambda: len(self.decoders) == 2)
        usual, large = sorted(self.decoders, key=lambda decoder: decoder.plan.nice)
        return usual, large

    def decode(self, body: bytes) -> asyncio.Task[tuple[float, float]]:
        async def times() -> tuple[float, float]:
            async with self.codec.decoded(body) as image:
                return image.decode_s, image.usual_end_s

        return asyncio.create_task(times())


def test_a_large_image_has_a_process_of_its_own_that_steps_back() -> None:
    async def scenario() -> None:
        played = Played()
        usual, large = await played.lanes()
        slow = played.decode(PNG_HEADER + struct.pack(">II", 3000, 2000))
        await large.hear()
        assert large.plan.nice > usual.plan.nice == 0 and not usual.hears()
        fast = played.decode(photo())
        await usual.hear()
        usual.show(1)
        await fast
        large.show(1)
        await slow
        played.codec.close()
        assert usual.killed and large.killed

    asyncio.run(scenario())


def test_what_waits_for_a_decoder_is_not_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)
        monkeypatch.setattr("server.requests.codec.time", clock)
        monkeypatch.setattr("server.decoding.lane.time", clock)
        played = Played()
        usual, _ = await played.lanes()
        first, second, third = (played.decode(photo()) for _ in range(3))
        await usual.hear()
        clock.now_s = 2.0
        usual.show(1)
        assert await first == (2.0, 2.0)
        await usual.hear()
        assert played.codec.prepare_s(60 * 90) == 2.0, "the third one waits, and each takes 2 s"
        assert played.codec.prepare_s(8) == 2.0, "a smaller one would not wait, and takes 2 s"
        assert played.codec.prepare_s(2 * Codec.LARGE_PX) == 0.0, "large ones have a queue of their own"
        clock.now_s = 3.0
        usual.show(1)
        assert await second == (3.0, 2.0)  # 2 s of waiting, 1 s of decoding; usual is the slower of the two
        third.cancel()
        await asyncio.wait({third})
        assert played.codec.prepare_s(8) == 2.0
        assert played.codec.prepare_s(2 * Codec.LARGE_PX) == 0.0, "none of this size was decoded"
        assert played.codec.usual_decode_s(8) == 2.0
        played.codec._threads = 4
        assert played.codec.delays_s(8) == 0.5
        played.codec._decode_s[(2 * Codec.LARGE_PX).bit_length()] = played.codec._decode_s[(8).bit_length()]
        assert played.codec.usual_decode_s(2 * Codec.LARGE_PX) == 2.0
        assert played.codec.delays_s(2 * Codec.LARGE_PX) == 0.0, "large images are decoded apart"
        played.codec.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("encoding", "pixels", "extra", "on_the_loop"),
    [
        *((cheap, Codec.INLINE_PX, False, True) for cheap in sorted(Codec.INLINE)),
        ("image/png", Codec.INLINE_PX + 1, False, False),
        ("image/png", 1, True, False),
        *((costly, 1, False, False) for costly in ("rle", "v2 json", "v2 binary gzip")),
    ],
)
def test_only_what_is_cheap_is_encoded_on_the_event_loop(
    encoding: str, pixels: int, extra: bool, on_the_loop: bool
) -> None:
    async def scenario() -> None:
        codec = Codec(Settings(codec_threads=1), ScriptedDecoder)
        thread = await codec.encode(encoding, pixels, threading.current_thread, extra=extra)
        assert (thread is threading.current_thread()) == on_the_loop
        codec.close()

    asyncio.run(scenario())


def test_pixels_are_copied_a_megabyte_in_a_turn_of_the_event_loop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2000, 600, 3), dtype=np.uint8)
    target = np.zeros_like(image)

    async def turns() -> int:
        copying, count = asyncio.ensure_future(copy_pixels(image, target)), 0
        while not copying.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert asyncio.run(turns()) >= 4 and (target == image).all()
