"""Python's garbage collector, in processes that must not stop for it."""

import gc

YOUNG_OBJECTS = 10_000
"""How many more objects than before there must be until those are scanned that came since: a scan of so many takes
about a millisecond. Python's own 700 are what some tens of requests leave for look-ups."""


def collect_seldom() -> None:
    """Collect once, never scan again what there is now, and scan new objects seldom. Call it when all is loaded.

    A scan stops the process: one of everything takes 11 ms in the front end and 75 ms in a worker. Python frees objects
    without one unless they refer to each other in a cycle, and no request leaves such a cycle behind
    (tests/test_garbage.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
