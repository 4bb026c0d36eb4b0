"""Ctrl-C for long work: the first one asks it to stop at a point where it can resume, a second one ends it at once."""

import signal
from types import FrameType, TracebackType


class Interrupt:
    """In its `with` block, the first Ctrl-C sets `asked`, which the work checks; the next one interrupts as usual.

    Only the main thread may enter the block, as for every signal's handler.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)
