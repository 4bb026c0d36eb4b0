"""Frames between a source and the requests: every frame in turn, or always the newest one."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

_INTERVALS = 9
"""How many of the latest intervals between frames say what is usual."""


@dataclass(frozen=True)
class SourceFrame:
    """One frame of a source. `index` counts from 0.

    `image` is the frame as the source gave it, or its path. `due_s` is its time in seconds from the start of the
    source. None means that it is due as soon as it is read.
    """

    index: int
    image: Any
    due_s: float | None = None


@dataclass(frozen=True)
class Source:
    """Where frames come from. `frames` reads them one by one.

    A `still` source has exactly one frame. The frames of a `paced` source come at their own times, whether or not
    anyone takes them; `period_s` is the usual time between two, None if only watching them will tell.
    """

    frames: Iterator[SourceFrame]
    still: bool = False
    paced: bool = False
    period_s: float | None = None


@dataclass(frozen=True)
class ArrivedFrame:
    """A frame that came at `came_s`. `period_s` is the usual time until the next one; None if it is not known yet."""

    index: int
    image: Any
    came_s: float
    due_s: float | None = None
    period_s: float | None = None


class Frames(Protocol):
    """Gives the frames of a source inside its `with` block."""

    dropped: int
    """How many frames were replaced by newer ones before anyone took them."""

    @property
    def waiting(self) -> bool:
        """Whether a newer frame has come since the last `take`."""

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait for the source."""

    def take(self) -> ArrivedFrame | None:
        """Wait for a frame and return it; None once the source has ended. Raises the source's errors."""

    def close(self) -> None: ...

    def __enter__(self) -> "Frames": ...

    def __exit__(self, *_: object) -> None: ...


class EveryFrame:
    """Every frame of a source: each is read when it is taken."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        self.waiting = False
        self.ready = True
        self._source, self._clock = source, clock

    def __enter__(self) -> "EveryFrame":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> ArrivedFrame | None:
        frame = next(self._source.frames, None)
        return None if frame is None else ArrivedFrame(frame.index, frame.image, self._clock(), frame.due_s)

    def close(self) -> None:
        """Nothing is left to do."""


class NewestFrame:
    """The newest frame of a paced source.

    Inside its `with` block a thread reads the source; a new frame replaces one that nobody has taken. The thread calls
    `on_frame` after each frame and at the end. Tests pass their own `clock` (in seconds) and `sleep`.
    """

    def __init__(
        self,
        source: Source,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        on_frame: Callable[[], object] = lambda: None,
    ) -> None:
        self.dropped = 0
        self._source, self._clock, self._on_frame = source, clock, on_frame
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._intervals_s: deque[float] = deque(maxlen=_INTERVALS)
        self._frame: ArrivedFrame | None = None
        self._over = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="frames", daemon=True)

    def __enter__(self) -> "NewestFrame":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> bool:
        return self._frame is not None

    @property
    def ready(self) -> bool:
        return self._frame is not None or self._over or self._closing.is_set()

    def take(self) -> ArrivedFrame | None:
        with self._changed:
            self._changed.wait_for(lambda: self.ready)
            frame, self._frame = self._frame, None
        if frame is None and self._error is not None:
            raise self._error
        return frame

    def close(self) -> None:
        """Stop reading. Waits a second at most for a source that is slow to give its next frame."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _read(self) -> None:
        start_s = came_s = self._clock()
        try:
            for frame in self._source.frames:
                wait_s = start_s + (frame.due_s or 0.0) - self._clock()
                if wait_s > 0:
                    self._sleep(wait_s)
                if self._closing.is_set():
                    return
                before_s, came_s = came_s, self._clock()
                if frame.index:
                    self._intervals_s.append(came_s - before_s)
                self._put(ArrivedFrame(frame.index, frame.image, came_s, frame.due_s, self._period_s()))
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._on_frame()

    def _put(self, frame: ArrivedFrame) -> None:
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
        self._on_frame()

    def _period_s(self) -> float | None:
        return statistics.median(self._intervals_s) if self._intervals_s else self._source.period_s
