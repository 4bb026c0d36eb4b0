"""`Follow` and `AsyncFollow` ask for one frame after the other of a source, one at a time, and keep the latest answer.

They differ only in how they wait. `_FollowState` holds the rest.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from adpc_client.errors import (
    AdpcError,
    CancelledRequestError,
    ConnectionFailedError,
    ImageError,
    NoExitError,
    ServerSilentError,
    concerns_one_image,
    concerns_the_moment,
)
from adpc_client.frames import ArrivedFrame, EveryFrame, Frames, NewestFrame, Source
from adpc_client.images import encode_image
from adpc_client.options import Options, Timeout
from adpc_client.pace import Backoff, FrameDeadline
from adpc_client.pool import AsyncPool, Pool
from adpc_client.results import Exit, Latest
from adpc_client.stream import AsyncStream, Stream, StreamRequest
from adpc_client.transport import Endpoint

_PATIENCE_S = 2.0
"""While frames go on by themselves, a connection or a message that takes longer has failed."""
_FIRST_ANSWER_S = 10.0
"""A source is given up if the server could not answer for so long and never has."""


@dataclass(frozen=True)
class FollowRequest:
    """What is asked of every frame. Arrays are BGR if `bgr` is set, and travel as JPEG of `jpeg_quality`, or as PNG."""

    options: Options
    bgr: bool
    jpeg_quality: int | None


class _FollowState:
    """What both kinds of follower know: the latest answer, what failed, and the deadline of the next frame."""

    def __init__(
        self,
        endpoint: Endpoint,
        source: Source,
        request: FollowRequest,
        *,
        on_exit: Callable[[ArrivedFrame, Exit], object] = lambda frame, exit: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answered = 0
        self.error: AdpcError | None = None
        self.failures: list[tuple[Any, AdpcError]] = []
        self.began_s = math.inf
        self._on_exit = on_exit
        self._endpoint = _patient(endpoint) if source.paced else endpoint
        self._source, self._request, self._clock = source, request, clock
        self._own_deadline = source.paced and request.options.deadline_ms is None
        self._deadline = FrameDeadline()
        self._backoff = Backoff()
        self._frames: Frames | None = None
        self._found: Exit | None = None
        self._found_frame: ArrivedFrame | None = None
        self._sent_s = 0.0
        self._deadline_s = 0.0
        self._overtaken = False

    @property
    def dropped(self) -> int:
        """How many frames were replaced by newer ones before they were sent."""
        return 0 if self._frames is None else self._frames.dropped

    def _encode(self, frame: ArrivedFrame) -> StreamRequest | None:
        """The request for `frame`; None if the connection was lost and it is too early to try again.

        Raises ImageError if the frame is no image.
        """
        now_s = self._clock()
        self.began_s = min(self.began_s, now_s)
        if not self._backoff.over(now_s):
            return None
        try:
            data, _ = encode_image(frame.image, bgr=self._request.bgr, jpeg_quality=self._request.jpeg_quality)
        except OSError as error:
            raise ImageError(f"the image cannot be read: {error}") from error
        options, self._sent_s, self._overtaken = self._request.options, self._clock(), False
        if self._own_deadline:
            self._deadline_s = self._deadline.left_s(frame, self._sent_s)
            options = replace(options, deadline_ms=1000 * self._deadline_s)
        return StreamRequest(data, options)

    def _record_exit(self, frame: ArrivedFrame, exit: Exit) -> bool:
        """Keep an exit. Returns whether the rest of the frame is to be cancelled, because a newer one waits."""
        if self._found_frame is not frame:
            self.answered += 1
            self._deadline.first_exit_came(self._clock() - self._sent_s)
            self._backoff.succeeded()
        self._found, self._found_frame, self.error = exit, frame, None
        self._on_exit(frame, exit)
        return self._overtake()

    def _overtake(self) -> bool:
        """Whether to cancel now. True once for each frame, when it has an exit and a newer frame waits."""
        assert self._frames is not None
        if self._overtaken or not self._own_deadline or not self._frames.waiting:
            return False
        self._overtaken = True
        return True

    def _check(self, frame: ArrivedFrame) -> None:
        """Raises CancelledRequestError if `frame` ended without an exit: somebody has cancelled it by its id."""
        if self._found_frame is not frame:
            sentence = "the request was cancelled before its first exit"
            raise CancelledRequestError(sentence, status=499, code="cancelled")

    def _fail(self, frame: ArrivedFrame, error: AdpcError) -> None:
        """Note why `frame` has no (further) exit. Raises the error if no later frame is likely to be answered."""
        now_s = self._clock()
        if isinstance(error, NoExitError):
            self._deadline.no_exit_came(self._deadline_s)
        lost = isinstance(error, ConnectionFailedError | ServerSilentError)
        if lost:
            self._backoff.failed(now_s)
        never = self._found is None
        may_pass = concerns_the_moment(error) or (self._source.paced and concerns_one_image(error))
        too_long = never and may_pass and now_s - self.began_s > _FIRST_ANSWER_S
        hopeless = self._source.still or too_long or (lost and (never or not self._source.paced))
        if hopeless or not (lost or may_pass or concerns_one_image(error)):
            raise error
        if self._found_frame is not frame:
            self.error = error
            if not self._source.paced:
                self.failures.append((frame.image, error))

    def answer(self, frame: ArrivedFrame) -> Exit | None:
        """The answer to `frame`, which has had its turn; None if it got none."""
        return self._found if self._found_frame is frame else None

    def _latest(self, frame: ArrivedFrame) -> Latest | None:
        """What is known once `frame` has had its turn. Of a source without a pace, that is its own answer or none."""
        if self._found is None or self._found_frame is None:
            return None
        own = self._found_frame is frame
        if not own and not self._source.paced:
            return None
        values = {field.name: getattr(self._found, field.name) for field in fields(Exit)}
        age_s = self._clock() - self._found_frame.came_s
        return Latest(
            **values,
            index=self._found_frame.index,
            frame=self._found_frame.image,
            age_s=age_s,
            error=None if own else self.error,
        )

    def _raise_if_none_answered(self) -> None:
        """Raises the last error if no frame was answered."""
        if self._found is None and self.error is not None:
            raise self.error


class Follow(_FollowState):
    """An iterator over the frames of a source, each with the latest answer.

    `answered` counts the frames that got an answer and `dropped` those that were overtaken. `error` tells why the
    newest frame got none. `failures` holds the frames of a source without a pace that got none, each with its error.
    """

    _stream: Stream | None = None

    def __iter__(self) -> Iterator[tuple[Any, Latest]]:
        for frame in self.turns():
            latest = self._latest(frame)
            if latest is not None:
                yield frame.image, latest

    def turns(self) -> Iterator[ArrivedFrame]:
        """Each frame once it has had its turn, whether or not it was answered."""
        pool = Pool(self._endpoint)
        self._frames = (
            NewestFrame(self._source, self._clock, on_frame=self._on_new_frame)
            if self._source.paced
            else EveryFrame(self._source, self._clock)
        )
        try:
            with self._frames as frames:
                while (frame := frames.take()) is not None:
                    self._ask(pool, frame)
                    yield frame
            self._raise_if_none_answered()
        finally:
            pool.close()

    def _ask(self, pool: Pool, frame: ArrivedFrame) -> None:
        try:
            request = self._encode(frame)
            if request is None:
                return
            with Stream(pool, request) as self._stream:
                for exit in self._stream:
                    if self._record_exit(frame, exit):
                        self._stream.cancel()
            self._check(frame)
        except AdpcError as error:
            self._fail(frame, error)
        finally:
            self._stream = None

    def _on_new_frame(self) -> None:
        """A newer frame has come; called by the thread that reads the source."""
        stream = self._stream
        if stream is not None and stream.last is not None and self._overtake():
            with suppress(AdpcError):  # the thread that reads the answers gets it, too
                stream.cancel()


class AsyncFollow(_FollowState):
    """The counterpart of `Follow` for asyncio. Threads read and encode the frames."""

    _stream: AsyncStream | None = None

    async def __aiter__(self) -> AsyncIterator[tuple[Any, Latest]]:
        pool, loop = AsyncPool(self._endpoint), asyncio.get_running_loop()
        self._came = asyncio.Event()

        def come() -> None:
            with suppress(RuntimeError):  # the loop may have ended before a source that is slow
                loop.call_soon_threadsafe(self._on_new_frame)

        self._frames = frames = (
            NewestFrame(self._source, self._clock, on_frame=come)
            if self._source.paced
            else EveryFrame(self._source, self._clock)
        )
        frames.__enter__()
        try:
            while (frame := await self._take(frames)) is not None:
                await self._ask(pool, frame)
                latest = self._latest(frame)
                if latest is not None:
                    yield frame.image, latest
            self._raise_if_none_answered()
        finally:
            await asyncio.to_thread(frames.close)
            await pool.close()

    async def _take(self, frames: Frames) -> ArrivedFrame | None:
        while not frames.ready:  # a thread that waited here could not serve other cameras
            self._came.clear()
            await self._came.wait()
        return await asyncio.to_thread(frames.take)

    async def _ask(self, pool: AsyncPool, frame: ArrivedFrame) -> None:
        try:
            request = await asyncio.to_thread(self._encode, frame)
            if request is None:
                return
            async with AsyncStream(pool, request) as self._stream:
                async for exit in self._stream:
                    if self._record_exit(frame, exit):
                        await self._stream.cancel()
            self._check(frame)
        except AdpcError as error:
            self._fail(frame, error)
        finally:
            self._stream = None

    def _on_new_frame(self) -> None:
        """A newer frame has come, or the source has ended."""
        self._came.set()
        stream = self._stream
        if stream is not None and stream.last is not None and self._overtake():
            self._cancelling = asyncio.ensure_future(_cancel(stream))


async def _cancel(stream: AsyncStream) -> None:
    with suppress(AdpcError):  # who reads the answers gets it, too
        await stream.cancel()


def _patient(endpoint: Endpoint) -> Endpoint:
    """`endpoint` with time-outs that suit a source which goes on by itself."""
    given = endpoint.timeout
    limits = (min(_PATIENCE_S, limit_s or _PATIENCE_S) for limit_s in (given.connect_s, given.silence_s))
    return replace(endpoint, timeout=Timeout(*limits))
