"""A lane: decoding processes for one kind of image, and the files that wait for them.

The file with the least work goes first. Works within the same power of two count as equal and go in the order of
arrival. So an ordinary photo waits for files that are being decoded, and never for a larger image in the queue.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.decoding.messages import DecoderPlan
from server.decoding.process import Decoder, DecoderProcess
from server.errors import DecoderLostError, InvalidError, ServerError

logger = logging.getLogger("anytime.lane")


@dataclass
class Waiting:
    """A file that waits for a decoder, or is with one.

    `image`: its pixels, and the seconds that decoding took. `left`: done once no request needs the image any more.
    """

    body: bytes | memoryview
    image: asyncio.Future[tuple[NDArray[np.uint8], float]]
    left: asyncio.Future[None]


class Lane:
    """Keeps `processes` decoding processes running, which `launch` starts."""

    MIN_WORK_S = 0.25
    """After the deadline of an image, its decoding process is ended, but not before it has worked for this long. A new
    process takes about as long to start, so images with short deadlines cannot keep the lane restarting."""
    RETRY_S = 1.0
    """The pause after a process that ended before it was ready."""

    def __init__(self, plan: DecoderPlan, processes: int, launch: Callable[[DecoderPlan], DecoderProcess]) -> None:
        self._plan = plan
        self._processes = processes
        self._launch = launch
        self._numbers = count()
        self._waiting: list[tuple[int, int, Waiting]] = []
        self._changed = asyncio.Event()
        """Set when a file has come, or a process has ended."""
        self._running: set[Decoder] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(self._processes)]

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for task in self._tasks:
            task.cancel()
        for decoder in self._running:
            decoder.close()
            decoder.process.wait()

    @asynccontextmanager
    async def decoded(self, body: bytes | memoryview, work_px: int) -> AsyncIterator[tuple[NDArray[np.uint8], float]]:
        """The image in a file, which is valid in the `async with` block: uint8 (H, W, 3) RGB, and the seconds that it
        took, without waiting for a decoder. `work_px`: see `header.Header`. Raises ServerError, see `decode.decode`.
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(body, loop.create_future(), loop.create_future())
        del body  # neither this frame nor the queue may keep it in memory when the request has been given up
        heappush(self._waiting, (work_px.bit_length(), next(self._numbers), waiting))
        self._changed.set()
        try:
            yield await waiting.image
        finally:
            waiting.body = b""
            waiting.left.set_result(None)
            if waiting.image.done() and not waiting.image.cancelled():
                waiting.image.exception()  # if the request was given up in the same moment, no other code looks

    async def _keep_one(self) -> None:
        """Keep one process running."""
        while True:
            try:
                decoder = Decoder(self._launch(self._plan), self._plan, self._changed.set)
            except OSError as error:
                logger.warning("no decoding process can be started: %s", error)
                await asyncio.sleep(self.RETRY_S)
                continue
            self._running.add(decoder)
            ready, culprit = False, None
            try:
                ready = await decoder.answer is not None
                if ready:
                    culprit = await self._serve(decoder)
            except Exception:  # the boundary: whatever goes wrong with one process, the lane goes on with another
                logger.exception("a decoding process is given up")
            finally:
                self._running.discard(decoder)
                decoder.close()
            status = await asyncio.to_thread(decoder.process.wait)
            if culprit is not None and not culprit.image.done():
                culprit.image.set_exception(self._lost(status))
            if not ready:
                logger.error("a decoding process ended with status %d before it was ready", status)
                await asyncio.sleep(self.RETRY_S)

    async def _serve(self, decoder: Decoder) -> Waiting | None:
        """Hand files to the process, one after another, until it has ended or must be ended. Returns the file that it
        failed to decode if a request still waits for it, else None."""
        while (waiting := await self._next(decoder)) is not None:
            began_s, body_bytes = time.monotonic(), len(waiting.body)
            answered = await decoder.decode(waiting.body)
            waiting.body = b""
            either: set[asyncio.Future[Any]] = {answered, waiting.left}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                await asyncio.wait({answered}, timeout=max(0.0, began_s + self.MIN_WORK_S - time.monotonic()))
            if not answered.done():
                return None
            answer = answered.result()
            if answer is None:
                return waiting
            if not waiting.image.done():
                if answer.error is not None:
                    waiting.image.set_exception(answer.error)
                else:
                    waiting.image.set_result((decoder.pixels(answer), time.monotonic() - began_s))
                await waiting.left
            decoder.clear(body_bytes, answer)
        return None

    async def _next(self, decoder: Decoder) -> Waiting | None:
        """The next file that a request still waits for; None once the process has ended."""
        while not decoder.ended:
            while self._waiting:
                *_, waiting = heappop(self._waiting)
                if not waiting.left.done():
                    return waiting
            self._changed.clear()
            await self._changed.wait()
        return None

    def _lost(self, status: int) -> ServerError:
        """The error for the client whose image ended the decoding process."""
        if status == -signal.SIGPROF:
            return InvalidError(
                f"the image takes over {1000 * self._plan.max_decode_s:.0f} ms of CPU to decode, which is the limit "
                "(--max-decode-ms): save it anew, or send a smaller one",
                "image_too_costly",
            )
        logger.error("a decoding process ended with status %d while it decoded an image", status)
        return DecoderLostError(
            f"the process that decoded the image ended (status {status}); another one starts: send it again once",
            "decoder_lost",
            self.RETRY_S,
        )
