"""Python's garbage collector, in processes that must not stop for it.

The collector scans objects for reference cycles, and the process stands still meanwhile. A scan of all objects takes
11 ms in the front end and 75 ms in a worker. Python frees objects without the collector unless they are part of a
cycle, and requests leave no cycles behind (tests/test_garbage.py).

Errors easily make cycles. An error that was raised refers to the frames that it went through, and to the error that
was being handled when it was raised. So these frames, and the tasks and objects to which they refer, must not keep it.
"""

import gc
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)

YOUNG_OBJECTS = 10_000
"""The collector scans new objects when this many more objects were created than freed since its last scan. Such a scan
takes about a millisecond."""


def collect_seldom() -> None:
    """Runs the collector once, excludes all objects that exist now from later scans, and makes later scans rare. Call
    it when everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def without_frames(error: Error) -> Error:
    """Sets the traceback, the cause and the context of `error` to None, and returns `error`."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
