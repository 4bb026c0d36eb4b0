"""A lane: decoding processes for one kind of image, and the files that wait for them.

The file with the least work goes first. Works within the same power of two count as equal and go in the order of
arrival. So an ordinary photo waits for files that are being decoded, and never for a larger image in the queue.
"""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from server.decoding.messages import DecoderAnswer, DecoderPlan
from server.decoding.process import Decoder, DecoderProcess
from server.errors import DecoderLostError, InvalidError, ServerError

logger = logging.getLogger("anytime.lane")


@dataclass(eq=False)
class File:
    """A file that waits for a decoding process, or that a process has.

    `work_class`: files with a smaller class go first. `image`: the pixels, and the seconds that decoding took. `left`:
    whether the request no longer needs the image. `decoder`: the process that has the file, None while it waits.
    `size_bytes`: the size of the file. `began_s`: when the process got it. `answer`: what the process said about it,
    None until then. `limit`: the timer that ends the process if it decodes a file that was left.
    """

    body: bytes | memoryview
    work_class: int
    image: asyncio.Future[tuple[NDArray[np.uint8], float]]
    left: bool = False
    size_bytes: int = 0
    began_s: float = 0.0
    decoder: Decoder | None = None
    answer: DecoderAnswer | None = None
    limit: asyncio.TimerHandle | None = None


class Lane:
    """Keeps `processes` decoding processes running, which `launch` starts.

    A process gets its next file in the turn of the event loop in which the image before it is no longer needed. Under
    load a turn takes milliseconds, and a process that waited for several would decode little.
    """

    MIN_WORK_S = 0.25
    """After the deadline of an image, its decoding process is ended, but not before it has worked for this long. A new
    process takes about as long to start, so images with short deadlines cannot keep the lane restarting."""
    RETRY_S = 1.0
    """The pause after a process that ended before it was ready."""
    MEAN_OF = 16
    """The mean time that a process takes for a file follows about so many files."""

    def __init__(self, plan: DecoderPlan, processes: int, launch: Callable[[DecoderPlan], DecoderProcess]) -> None:
        self._plan = plan
        self._processes = processes
        self._launch = launch
        self._numbers = count()
        self._queue: list[tuple[int, int, File]] = []
        """The files that wait, as a heap: the next one first."""
        self._waiting: Counter[int] = Counter()
        """How many files of each class of work wait."""
        self._running: dict[Decoder, File | None] = {}
        """Every process, with the file that it has."""
        self._free: list[Decoder] = []
        """The processes that have no file and are ready for one."""
        self._tasks: list[asyncio.Task[None]] = []
        self._file_s = 0.0
        """The mean seconds from the moment when a process gets a file to the moment when it is free again."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(self._processes)]

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for task in self._tasks:
            task.cancel()
        for decoder in list(self._running):
            decoder.close()
            decoder.process.wait()

    def queue_s(self, work_px: int) -> float:
        """Returns the seconds until a process would take a file that came now and had this work."""
        ahead = sum(files for work_class, files in self._waiting.items() if work_class <= work_px.bit_length())
        return ahead * self._file_s / self._processes

    @asynccontextmanager
    async def decoded(self, body: bytes | memoryview, work_px: int) -> AsyncIterator[tuple[NDArray[np.uint8], float]]:
        """The image in a file, which is valid in the `async with` block: uint8 (H, W, 3) RGB, and the seconds that it
        took, without waiting for a decoder. `work_px`: see `header.Header`. Raises ServerError, see `decode.decode`.
        """
        file = File(body, work_px.bit_length(), asyncio.get_running_loop().create_future())
        del body  # neither this frame nor the queue may keep it in memory when the request has been given up
        self._waiting[file.work_class] += 1
        heappush(self._queue, (file.work_class, next(self._numbers), file))
        try:
            self._hand_out()
            yield await file.image
        finally:
            self._leave(file)
            del file  # its error, if it has one, refers to this frame, see server/garbage.py

    # --- files ---

    def _hand_out(self) -> None:
        """Gives waiting files to free processes, the file with the least work first."""
        while self._free and self._queue:
            *_, file = heappop(self._queue)
            self._waiting[file.work_class] -= 1
            decoder = self._free.pop()
            self._running[decoder], file.decoder = file, decoder
            file.began_s, file.size_bytes = time.monotonic(), len(file.body)
            try:
                decoder.hand_over(file.body)
            except Exception:  # the boundary, see `Decoder`
                decoder.give_up()
            file.body = b""

    def _answered(self, decoder: Decoder, answer: DecoderAnswer) -> None:
        """Handles the answer of a process: its hello, an image, or why the file could not be decoded."""
        file = self._running[decoder]
        if file is None:
            if decoder not in self._free:
                self._free.append(decoder)
            self._hand_out()
            return
        file.answer = answer
        if file.left:
            self._release(decoder, file)
        elif file.image.done():
            pass  # the request was cancelled in this turn of the event loop, and leaves in the next one
        elif answer.error is not None:
            file.image.set_exception(answer.error)
        else:
            file.image.set_result((decoder.pixels(answer), time.monotonic() - file.began_s))

    def _leave(self, file: File) -> None:
        """Notes that the request no longer needs the image, and frees the process that has decoded it. A process that
        still decodes it gets until `MIN_WORK_S` after it began."""
        file.left, file.body = True, b""
        if file.decoder is None:  # files that go first may wait for as long as the server runs
            self._queue = [waiting for waiting in self._queue if waiting[2] is not file]
            heapify(self._queue)
            self._waiting[file.work_class] -= 1
        elif file.answer is not None:
            self._release(file.decoder, file)
        elif not file.decoder.over:
            ends_s = file.began_s + self.MIN_WORK_S - time.monotonic()
            file.limit = asyncio.get_running_loop().call_later(max(0.0, ends_s), file.decoder.end)

    def _release(self, decoder: Decoder, file: File) -> None:
        """Makes a process free again and gives it the next file. The file that it has is decoded, and its request no
        longer needs the image. Does nothing if the process has ended."""
        if file.limit is not None:
            file.limit.cancel()
        if decoder.over:
            return
        assert file.answer is not None
        try:
            decoder.clear(file.size_bytes, file.answer)
        except Exception:  # the boundary, see `Decoder`
            decoder.give_up()
            return
        took_s = time.monotonic() - file.began_s
        self._file_s += (took_s - self._file_s) / (self.MEAN_OF if self._file_s else 1)
        self._running[decoder] = None
        self._free.append(decoder)
        self._hand_out()

    # --- processes ---

    async def _keep_one(self) -> None:
        """Keep one process running."""
        while True:
            over: asyncio.Future[File | None] = asyncio.get_running_loop().create_future()

            def ended(decoder: Decoder, over: "asyncio.Future[File | None]" = over) -> None:
                if decoder in self._free:
                    self._free.remove(decoder)
                file = self._running.pop(decoder)
                if not over.done():  # it is cancelled when the lane closes
                    over.set_result(file)

            try:
                decoder = Decoder(self._launch(self._plan), self._plan, self._answered, ended)
            except OSError as error:
                logger.warning("no decoding process can be started: %s", error)
                await asyncio.sleep(self.RETRY_S)
                continue
            self._running[decoder] = None
            try:
                file = await over
            finally:  # also if the lane closes between the end of a process and this turn
                decoder.close()
            try:
                status = await asyncio.to_thread(decoder.process.wait)
            except RuntimeError:  # no thread can be started; the process was killed, so the wait is short
                status = decoder.process.wait()
            if file is not None and not (file.left or file.image.done()):
                file.image.set_exception(self._lost(status))
            del file, over  # else they would be kept until the next process is lost
            if not decoder.greeted:
                logger.error("a decoding process ended with status %d before it was ready", status)
                await asyncio.sleep(self.RETRY_S)

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
