"""The time that a call may take before its work pauses."""

import math
import time


class Slice:
    """The time until `end_s`, in seconds of `time.perf_counter`. All work of one executor looks at the same slice."""

    def __init__(self) -> None:
        self._end_s = math.inf

    def begin(self, slice_s: float | None) -> None:
        """The next slice begins now; None for one without end."""
        self._end_s = math.inf if slice_s is None else time.perf_counter() + slice_s

    def left_s(self) -> float:
        """Seconds until the slice is over, negative afterwards."""
        return self._end_s - time.perf_counter()

    def over(self) -> bool:
        return self.left_s() <= 0
