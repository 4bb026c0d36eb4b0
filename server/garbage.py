"""Python's garbage collector, in processes that must not stop for it.

A scan stops the process: one of everything takes 11 ms in the front end and 75 ms in a worker. It is only needed to
free objects that refer to each other in a cycle. Requests leave none behind (tests/test_garbage.py). A cycle is easily
made with an error, which refers to the frames that it went through, and to the error that was handled when it was
raised. So no frame, task or object that such a frame refers to may keep an error that was raised.
"""

import gc
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)

YOUNG_OBJECTS = 10_000
"""New objects are scanned once there are so many more of them than were freed meanwhile. That takes a millisecond."""


def collect_seldom() -> None:
    """Collect once, never scan again what there is now, and scan new objects seldom. Call it when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def without_frames(error: Error) -> Error:
    """`error`, which no longer refers to the frames that it went through, nor to the error before it."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
