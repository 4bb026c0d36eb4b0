"""Lanes: which file goes to which process when, and what becomes of it when a process ends. The tests play them."""

import asyncio
import gc
import mmap
import signal
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from live import until
from scripted_decoder import ScriptedDecoder

from server.decoding.lane import Lane
from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.decoding.process import KEPT_BYTES, Decoder
from server.errors import DecoderLostError, InvalidError, NotAnImageError, ServerError

PLAN = DecoderPlan(max_body_bytes=100_000, max_pixels=64, max_decode_s=2.0, nice=0)


class Started:
    """A lane whose processes the test plays."""

    def __init__(self, processes: int = 1, plan: DecoderPlan = PLAN) -> None:
        self.decoders: list[ScriptedDecoder] = []
        self.lane = Lane(plan, processes, self._launch)
        self.lane.start()

    def _launch(self, plan: DecoderPlan) -> ScriptedDecoder:
        self.decoders.append(ScriptedDecoder(plan))
        return self.decoders[-1]

    async def decoder(self, number: int = 0) -> ScriptedDecoder:
        """The process of that number, which has said hello."""
        await until(lambda: len(self.decoders) > number)
        self.decoders[number].say(DecoderAnswer().to_line())
        return self.decoders[number]

    def decode(self, body: Any, work_px: int = 1) -> asyncio.Task[int]:
        """The shade of the image that a file is decoded to."""
        image = self.lane.decoded(body, work_px)

        async def shade() -> int:
            async with image as (pixels, _):
                assert pixels.shape == (2, 4, 3) and pixels.dtype == np.uint8
                return int(pixels[1, 3, 2])

        return asyncio.create_task(shade())


def played(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_the_least_work_goes_first_and_equals_in_their_order() -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        tasks = [started.decode(b"first", 9000)]
        assert await decoder.hear() == b"first"
        for body, work in ((b"large", 5000), (b"small", 100), (b"same", 70), (b"tiny", 3)):
            tasks.append(started.decode(body, work))
            await asyncio.sleep(0)
        for shade, body in enumerate((b"tiny", b"small", b"same", b"large")):
            assert not decoder.hears()
            decoder.show(shade)
            assert await decoder.hear() == body
        decoder.show(9)
        assert await asyncio.gather(*tasks) == [0, 9, 2, 3, 1]
        started.lane.close()

    played(scenario)


def test_processes_decode_side_by_side() -> None:
    async def scenario() -> None:
        started = Started(2)
        one, two = await started.decoder(0), await started.decoder(1)
        tasks = [started.decode(b"a"), started.decode(b"b")]
        assert {await one.hear(), await two.hear()} == {b"a", b"b"}
        two.show(2)
        one.show(1)
        assert sorted(await asyncio.gather(*tasks)) == [1, 2]
        started.lane.close()
        assert one.killed and two.killed

    played(scenario)


def test_a_file_is_forgotten_when_it_is_given_up_while_it_waits() -> None:
    class Body:
        def __len__(self) -> int:
            return 1

    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first, body = started.decode(b"first"), Body()
        await decoder.hear()
        waiting, there = started.decode(body), weakref.ref(body)
        del body
        await asyncio.sleep(0)
        assert there() is not None
        waiting.cancel()
        await asyncio.wait({waiting})
        gc.collect()
        assert there() is None
        third = started.decode(b"third")
        decoder.show(1)
        assert await decoder.hear() == b"third"
        decoder.show(3)
        assert (await first, await third) == (1, 3)
        started.lane.close()

    played(scenario)


def test_a_process_may_finish_soon_what_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(Lane, "MIN_WORK_S", 3600.0)
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        first.cancel()
        second = started.decode(b"second")
        decoder.show(1)
        assert await decoder.hear() == b"second" and not decoder.killed
        decoder.show(2)
        assert await second == 2
        started.lane.close()

    played(scenario)


def test_a_process_is_replaced_that_works_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(Lane, "MIN_WORK_S", 0.0)
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        first.cancel()
        await until(lambda: decoder.killed)
        second, other = started.decode(b"second"), await started.decoder(1)
        assert await other.hear() == b"second"
        other.show(2)
        assert await second == 2
        started.lane.close()

    played(scenario)


LOSSES: dict[str, tuple[Callable[[ScriptedDecoder], None], type[ServerError], str]] = {
    "CPU": (lambda decoder: decoder.die(-signal.SIGPROF), InvalidError, r"over 2000 ms of CPU .* \(--max-decode-ms\)"),
    "crash": (lambda decoder: decoder.die(-signal.SIGSEGV), DecoderLostError, "status -11"),
    "nonsense": (lambda decoder: decoder.say(b"nonsense\n"), DecoderLostError, "status -9"),
    "unknown error": (lambda decoder: decoder.say(b'{"error": "SystemExit"}\n'), DecoderLostError, "status -9"),
    "too many pixels": (lambda decoder: decoder.say(DecoderAnswer(8, 9).to_line()), DecoderLostError, "status -9"),
    "endless line": (lambda decoder: decoder.say(b"x" * 5000), DecoderLostError, "status -9"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_image_that_ends_a_process_is_refused_and_the_next_one_gets_another(loss: str) -> None:
    act, kind, sentence = LOSSES[loss]

    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        act(decoder)
        with pytest.raises(kind, match=sentence):
            await first
        second, other = started.decode(b"second"), await started.decoder(1)
        assert await other.hear() == b"second"
        other.show(2)
        assert await second == 2
        started.lane.close()

    played(scenario)


def test_a_process_that_ends_while_it_waits_costs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(Lane, "RETRY_S", 0.0)
        started = Started()
        (await started.decoder()).die(-signal.SIGKILL)
        await until(lambda: len(started.decoders) > 1)
        started.decoders[1].die(1)  # before it is ready
        only, third = started.decode(b"only"), await started.decoder(2)
        assert await third.hear() == b"only"
        third.show(3)
        assert await only == 3
        started.lane.close()

    played(scenario)


def test_a_client_gets_the_error_of_its_file() -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        task = started.decode(b"hello")
        await decoder.hear()
        decoder.say(DecoderAnswer(error=NotAnImageError("5 bytes are no image", "not_an_image")).to_line())
        with pytest.raises(NotAnImageError, match="5 bytes are no image") as caught:
            await task
        assert caught.value.code == "not_an_image"
        started.lane.close()

    played(scenario)


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="only Linux takes back shared memory")
def test_what_a_broken_image_has_filled_is_given_back() -> None:
    async def scenario() -> None:
        started = Started(plan=replace(PLAN, max_pixels=KEPT_BYTES))
        decoder = await started.decoder()
        task = started.decode(b"broken")
        await decoder.hear()
        decoder.memory[-3:] = b"\xff\xff\xff"
        decoder.say(DecoderAnswer(error=InvalidError("it is cut off", "broken_image")).to_line())
        with pytest.raises(InvalidError, match="it is cut off"):
            await task
        await until(lambda: decoder.memory[-3:] == bytes(3))
        started.lane.close()

    played(scenario)


def test_a_large_file_is_handed_over_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.decoding.process.COPIED_BYTES", 4)

    async def scenario() -> None:
        process, turns = ScriptedDecoder(PLAN), 0
        decoder = Decoder(process, PLAN, lambda _, answer: None)
        decoder.hand_over(memoryview(b"0123456789"))
        while not process.hears():
            await asyncio.sleep(0)
            turns += 1
        assert turns == 2 and await process.hear() == b"0123456789"
        decoder.close()

    played(scenario)
