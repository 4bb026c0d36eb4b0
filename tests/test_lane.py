"""Lanes: which file goes to which process when, and what becomes of it when a process ends. The tests play them."""

import asyncio
import gc
import mmap
import signal
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
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
    """A lane whose processes the test plays. `failures`: how often none can be started at first."""

    def __init__(self, processes: int = 1, plan: DecoderPlan = PLAN, failures: int = 0) -> None:
        self.decoders: list[ScriptedDecoder] = []
        self._failures = failures
        self.lane = Lane(plan, processes, self._launch)
        self.lane.start()

    def _launch(self, plan: DecoderPlan) -> ScriptedDecoder:
        if self._failures:
            self._failures -= 1
            raise OSError("no process left")
        self.decoders.append(ScriptedDecoder(plan))
        return self.decoders[-1]

    async def decoder(self, number: int = 0) -> ScriptedDecoder:
        """The process of that number, which has said hello."""
        await until(lambda: len(self.decoders) > number)
        self.decoders[number].say(DecoderAnswer().to_line())
        return self.decoders[number]

    async def goes_on(self, number: int) -> bool:
        """Whether the process of that number, which replaces a lost one, decodes the next file."""
        task, decoder = self.decode(b"next"), await self.decoder(number)
        heard = await decoder.hear()
        decoder.show(number)
        return heard == b"next" and await task == number

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
        assert one.killed and two.killed and one.waited_for and two.waited_for

    played(scenario)


class Body:
    """A file of one byte. A test can refer to it weakly, which `bytes` do not allow, and so sees when it is freed."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: slice) -> bytes:
        return b"1"


def test_a_file_is_forgotten_when_it_is_given_up_while_it_waits() -> None:
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
        assert await started.goes_on(1)
        started.lane.close()

    played(scenario)


LOSSES: dict[str, tuple[Callable[[ScriptedDecoder], None], type[ServerError], str]] = {
    "CPU": (lambda decoder: decoder.die(-signal.SIGPROF), InvalidError, r"over 2000 ms of CPU .* \(--max-decode-ms\)"),
    "crash": (lambda decoder: decoder.die(-signal.SIGSEGV), DecoderLostError, "status -11"),
    "nonsense": (lambda decoder: decoder.say(b"nonsense\n"), DecoderLostError, "status -9"),
    "unknown error": (lambda decoder: decoder.say(b'{"error": "SystemExit"}\n'), DecoderLostError, "status -9"),
    "too many pixels": (lambda decoder: decoder.say(DecoderAnswer(8, 9).to_line()), DecoderLostError, "status -9"),
    "infinite pixels": (lambda decoder: decoder.say(b'{"height": Infinity}\n'), DecoderLostError, "status -9"),
    "endless line": (lambda decoder: decoder.say(b"x" * 5000), DecoderLostError, "status -9"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_image_that_ends_a_process_is_refused_and_the_next_one_gets_another(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "RETRY_S", 3600.0)  # the pause is for processes that were never ready
    act, kind, sentence = LOSSES[loss]

    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        act(decoder)
        with pytest.raises(kind, match=sentence):
            await first
        assert await started.goes_on(1)
        started.lane.close()

    played(scenario)


def test_a_lost_process_is_replaced_although_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that has as many processes and threads as it may."""

    async def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        monkeypatch.setattr("server.decoding.lane.asyncio.to_thread", no_thread)
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        decoder.die(-signal.SIGSEGV)
        with pytest.raises(DecoderLostError, match="status -11"):
            await first
        assert await started.goes_on(1)
        started.lane.close()

    played(scenario)


def test_nothing_keeps_the_memory_of_a_lost_process() -> None:
    """The memory is freed at once. It does not wait for the next scan of the garbage collector."""

    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        memory = weakref.ref(decoder.memory)
        task = started.decode(b"costly")
        await decoder.hear()
        decoder.die(-signal.SIGPROF)
        with suppress(InvalidError):
            await task
        del task
        assert await started.goes_on(1)
        del started.decoders[0], decoder
        assert memory() is None
        started.lane.close()

    gc.disable()
    try:
        played(scenario)
    finally:
        gc.enable()


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


def test_a_process_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(Lane, "RETRY_S", 0.0)
        started = Started(failures=2)
        assert await started.goes_on(0)
        started.lane.close()

    played(scenario)
    assert caplog.text.count("no decoding process can be started: no process left") == 2


def test_a_process_that_is_no_longer_trusted_as_the_lane_closes_is_killed() -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        await until(lambda: started.lane._free)
        decoder.say(b"nonsense\n")
        await until(lambda: not started.lane._running)
        started.lane.close()
        await asyncio.wait(started.lane._tasks)
        assert decoder.killed

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


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="only Linux takes back shared memory")
def test_what_a_large_file_and_a_large_image_have_filled_is_given_back() -> None:
    async def scenario() -> None:
        started = Started(plan=replace(PLAN, max_body_bytes=KEPT_BYTES + 1, max_pixels=KEPT_BYTES))
        decoder = await started.decoder()

        async def request() -> None:
            async with started.lane.decoded(b"x" * (KEPT_BYTES + 1), 1):
                pass

        task = asyncio.create_task(request())
        await decoder.hear()
        decoder.memory[-3:] = b"\xff\xff\xff"
        decoder.say(DecoderAnswer(1, KEPT_BYTES).to_line())
        await task
        assert decoder.memory[:3] == decoder.memory[-3:] == bytes(3)
        started.lane.close()

    played(scenario)


def test_a_large_file_is_handed_over_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.decoding.process.COPIED_BYTES", 4)

    async def scenario() -> None:
        process, turns = ScriptedDecoder(PLAN), 0
        decoder = Decoder(process, PLAN, lambda _, answer: None, lambda _: None)
        decoder.hand_over(memoryview(b"0123456789"))
        while not process.hears():
            await asyncio.sleep(0)
            turns += 1
        assert turns == 2 and await process.hear() == b"0123456789"
        decoder.close()

    played(scenario)


def test_a_process_that_answers_before_it_has_the_whole_file_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.decoding.process.COPIED_BYTES", 4)

    async def scenario() -> None:
        process, ends = ScriptedDecoder(PLAN), []
        decoder = Decoder(process, PLAN, lambda _, answer: None, ends.append)
        decoder.hand_over(b"0123456789")
        decoder._hear(DecoderAnswer(2, 4).to_line())
        assert ends == [decoder]
        for _ in range(4):
            await asyncio.sleep(0)
        assert not process.hears(), "nothing more is copied or sent"
        decoder.close()
        assert ends == [decoder]

    played(scenario)


def test_a_process_that_has_closed_its_socket_has_ended() -> None:
    async def scenario() -> None:
        process, ends = ScriptedDecoder(PLAN), []
        decoder = Decoder(process, PLAN, lambda _, answer: None, ends.append)
        process.die(1)
        decoder.hand_over(b"0123456789")
        assert ends == [decoder]
        decoder.close()

    played(scenario)


def test_a_process_gets_its_next_file_as_soon_as_the_image_before_is_left() -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first, second = started.decode(b"first"), Body()
        assert await decoder.hear() == b"first"
        waiting, body = started.decode(second), weakref.ref(second)
        del second
        await asyncio.sleep(0)
        decoder.show(1)
        await until(first.done)
        assert decoder.hears(), "it was handed over in the turn in which the first request ended"
        gc.collect()
        assert body() is None, "the process has a copy"
        decoder.show(2)
        assert await waiting == 2
        started.lane.close()

    played(scenario)


def test_a_process_that_has_finished_for_nobody_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[tuple[float, Callable[[], None], Any]] = []

    async def scenario() -> None:
        class Timer:
            cancelled = False

            def cancel(self) -> None:
                self.cancelled = True

        def call_later(delay_s: float, function: Callable[[], None]) -> Timer:
            timers.append((delay_s, function, Timer()))
            return timers[-1][2]

        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
        first.cancel()
        await asyncio.wait({first})
        (delay_s, _, timer), *others = timers
        assert not others and 0 < delay_s <= Lane.MIN_WORK_S and not timer.cancelled
        decoder.show(1)
        await until(lambda: timer.cancelled)
        started.lane.close()

    played(scenario)


def test_a_process_that_greets_twice_gets_one_file_at_a_time() -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        await until(lambda: started.lane._free)
        decoder.say(DecoderAnswer().to_line())
        for _ in range(3):
            await asyncio.sleep(0)
        first, second = started.decode(b"first"), started.decode(b"second")
        assert await decoder.hear() == b"first"
        for _ in range(3):
            await asyncio.sleep(0)
        assert not decoder.hears()
        decoder.show(1)
        assert await decoder.hear() == b"second"
        decoder.show(2)
        assert (await first, await second) == (1, 2)
        started.lane.close()

    played(scenario)


def test_a_request_that_is_cancelled_as_its_image_comes_costs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        ours = next(iter(started.lane._running))
        decoder.memory[PLAN.pixels_at : PLAN.pixels_at + 24] = bytes(24)
        first.cancel()  # this cancels the future that it waits for; the request itself has not run yet
        ours._hear(DecoderAnswer(2, 4).to_line())
        second = started.decode(b"second")
        assert await decoder.hear() == b"second" and not decoder.killed
        decoder.show(2)
        assert await second == 2
        started.lane.close()

    played(scenario)
    assert not caplog.records


def test_a_request_that_is_cancelled_as_its_error_comes_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        first = started.decode(b"first")
        await decoder.hear()
        next(iter(started.lane._running))._hear(DecoderAnswer(error=NotAnImageError("no", "no")).to_line())
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        del first
        gc.collect()
        second = started.decode(b"second")
        assert await decoder.hear() == b"second"
        decoder.show(2)
        assert await second == 2
        started.lane.close()

    played(scenario)
    assert not caplog.records


def test_a_process_that_has_ended_gets_no_file() -> None:
    """Neither while it has none, nor when the request leaves whose image it has decoded."""

    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        await until(lambda: started.lane._free)
        next(iter(started.lane._running)).end()
        first, other = started.decode(b"first"), await started.decoder(1)
        assert await other.hear() == b"first"
        other.show(1)
        image = started.lane.decoded(b"second", 1)
        assert await first == 1
        entering = asyncio.ensure_future(image.__aenter__())
        assert await other.hear() == b"second"
        other.show(2)
        pixels, _ = await entering
        third = started.decode(b"third")
        await asyncio.sleep(0)
        next(iter(started.lane._running)).end()
        await image.__aexit__(None, None, None)
        last = await started.decoder(2)
        assert await last.hear() == b"third" and pixels[0, 0, 0] == 2
        last.show(3)
        assert await third == 3 and decoder.killed and other.killed
        started.lane.close()

    played(scenario)


@pytest.mark.parametrize("broken", ["clear", "hand_over", "pixels"])
def test_whatever_goes_wrong_with_one_process_the_next_one_goes_on(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        started = Started()
        decoder = await started.decoder()
        await until(lambda: started.lane._free)

        def fail(*_: object) -> None:
            raise OSError("no such thing here")

        with monkeypatch.context() as patched:
            patched.setattr(Decoder, broken, fail)
            first = started.decode(b"first")
            if broken != "hand_over":
                await decoder.hear()
                decoder.show(1)
            await until(lambda: decoder.killed and first.done())
        if broken == "clear":
            assert await first == 1, "the image was there"
        else:
            with pytest.raises(DecoderLostError):
                await first
        assert await started.goes_on(1)
        started.lane.close()

    played(scenario)


def test_the_wait_is_that_for_the_files_that_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        started = Started(2)
        one, two = await started.decoder(0), await started.decoder(1)
        await until(lambda: len(started.lane._free) == 2)
        started.lane._file_s = 3.0
        tasks = [started.decode(body, work) for body, work in ((b"a", 8), (b"b", 8), (b"c", 9), (b"d", 8), (b"e", 70))]
        await asyncio.sleep(0)
        assert one.hears() and two.hears()
        assert started.lane.queue_s(8) == 3.0, "two files before it, for two processes"
        assert started.lane.queue_s(70) == 4.5
        assert started.lane.queue_s(7) == 0.0
        for task in tasks[2:]:
            task.cancel()
        await asyncio.wait(tasks[2:])
        assert started.lane.queue_s(70) == 0.0, "nobody waits for the files that were left"
        started.lane.close()

    played(scenario)


def test_the_time_of_a_file_is_the_mean_of_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)
        monkeypatch.setattr("server.decoding.lane.time", clock)
        started = Started()
        decoder = await started.decoder()
        for took_s in (2.0, 2.0 + Lane.MEAN_OF):
            task = started.decode(b"measured")
            await decoder.hear()
            clock.now_s += took_s
            decoder.show(1)
            await task
        tasks = [started.decode(b"first"), started.decode(b"second")]
        await decoder.hear()
        assert started.lane.queue_s(1) == 3.0
        for shade in (1, 2):
            decoder.show(shade)
            await tasks[shade - 1]
        started.lane.close()

    played(scenario)
