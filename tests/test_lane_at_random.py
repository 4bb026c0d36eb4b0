"""Random sequences of events: whatever the order in which files come, are given up, and processes answer or end, the
lane goes on, every request ends, and nothing of a file is left."""

import asyncio
import random
import signal
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from scripted_decoder import ScriptedDecoder

from server.decoding.lane import Lane
from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.errors import ServerError

PLAN = DecoderPlan(max_body_bytes=100_000, max_pixels=64, max_decode_s=2.0, nice=0)
GREETING = DecoderAnswer().to_line()
BROKEN = DecoderAnswer(error=ServerError("broken", "broken_image")).to_line()


class Random:
    """A lane, its processes and its requests, all of which do what chance says."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.decoders: list[ScriptedDecoder] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lane = Lane(PLAN, 2, self._launch)

    def _launch(self, plan: DecoderPlan) -> ScriptedDecoder:
        if self.chance.random() < 0.1:
            raise OSError("no process now")
        self.decoders.append(ScriptedDecoder(plan))
        return self.decoders[-1]

    def begin_request(self) -> None:
        size_bytes, work_px = self.chance.choice((1, 25)), self.chance.choice((1, 100, 9000))
        self.tasks.append(asyncio.create_task(self._request(b"x" * size_bytes, work_px)))

    async def _request(self, body: bytes, work_px: int) -> None:
        with suppress(ServerError):
            async with self.lane.decoded(body, work_px) as (pixels, seconds):
                assert pixels.dtype == np.uint8 and seconds >= 0
                await self.turns(3)

    async def turns(self, most: int) -> None:
        for _ in range(self.chance.randint(0, most)):
            await asyncio.sleep(0)

    def alive(self) -> list[ScriptedDecoder]:
        return [decoder for decoder in self.decoders if not decoder.killed]

    def act(self, decoder: ScriptedDecoder) -> None:
        """What a process may do: rightly, or not."""
        with suppress(OSError):  # it has ended
            match self.chance.choice(("greet", "image", "image", "image", "error", "nonsense", "end")):
                case "greet":
                    decoder.say(GREETING)
                case "image" if decoder.hears():
                    decoder.hear_now()
                    decoder.show(1)
                case "error" if decoder.hears():
                    decoder.hear_now()
                    decoder.say(BROKEN)
                case "nonsense" if self.chance.random() < 0.2:
                    decoder.say(b"nonsense\n")
                case "end" if self.chance.random() < 0.2:
                    decoder.die(self.chance.choice((1, -signal.SIGSEGV, -signal.SIGPROF)))

    def check(self) -> None:
        lane, waiting = self.lane, [file for _, _, file in self.lane._queue]
        assert not any(file.left for file in waiting) and lane._waiting.total() == len(waiting)
        assert len(lane._running) <= 2 and set(lane._free) <= set(lane._running)
        assert all(lane._running[decoder] is None for decoder in lane._free)

    async def run(self) -> None:
        self.lane.start()
        for _ in range(400):
            if self.chance.random() < 0.4:
                self.begin_request()
            if self.tasks and self.chance.random() < 0.2:
                self.chance.choice(self.tasks).cancel()
            if alive := self.alive():
                self.act(self.chance.choice(alive))
            await self.turns(4)
            self.check()
        while not all(task.done() for task in self.tasks):
            for decoder in self.alive():
                self.act(decoder)
            await asyncio.sleep(0)
        assert all(task.cancelled() or task.exception() is None for task in self.tasks)
        assert not self.lane._queue
        self.lane.close()
        await asyncio.wait(self.lane._tasks)
        assert all(task.cancelled() for task in self.lane._tasks), "none has failed"
        assert not self.lane._running and not self.lane._free and not self.alive()


async def at_once(wait: Callable[[], int]) -> int:
    await asyncio.sleep(0)
    return wait()


@pytest.mark.parametrize("seed", range(10))
def test_a_lane_takes_every_order_of_events(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "RETRY_S", 0.0)
    monkeypatch.setattr(Lane, "MIN_WORK_S", 3600.0 if seed % 2 else 0.0)
    monkeypatch.setattr("server.decoding.process.COPIED_BYTES", 10)
    monkeypatch.setattr("server.decoding.lane.asyncio.to_thread", at_once)

    async def scenario() -> None:
        await Random(seed).run()

    asyncio.run(asyncio.wait_for(scenario(), 60))
