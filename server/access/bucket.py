"""A bucket of tokens: what may be had at once, and how fast it fills again. Pure: the caller passes the time in."""


class Bucket:
    """Holds at most `size` tokens, starts full, and gains `rate` tokens a second. It may be overdrawn: the balance is
    negative until it has refilled."""

    def __init__(self, rate: float, size: float, now_s: float) -> None:
        self._rate = rate
        self._size = size
        self._tokens = size
        self._then_s = now_s

    def take(self, tokens: float, now_s: float) -> None:
        self._tokens = self._level(now_s) - tokens
        self._then_s = now_s

    def wait_s(self, tokens: float, now_s: float) -> float:
        """The seconds until the bucket holds this many tokens; 0 if it does now."""
        return max(0.0, tokens - self._level(now_s)) / self._rate

    def _level(self, now_s: float) -> float:
        return min(self._size, self._tokens + (now_s - self._then_s) * self._rate)
