"""The reserve: the time before a deadline that encoding and sending an answer need. Pure: the caller passes times."""

from server.scheduling.quantile import RecentQuantile


class AnswerReserve:
    """Learns the reserve from the answers before. Maps of a similar size, by powers of two, count as equally fast.

    It is learnt apart for requests that are alone and for those beside others: after a burst, one that is alone needs
    no more time than before.
    """

    SEND_S = 0.001
    """Reserved besides encoding: to hear of an exit and to hand over the answer."""
    ENCODE_S_PER_PX = 10e-9
    """Reserved for encoding until it has been measured."""
    SHARE_ALONE = 0.9
    """The share of recent answers to requests that were alone which the reserve covers. A larger share would follow
    single hiccups, and an exit could then fall although the deadline grew."""
    SHARE_BESIDE = 0.98
    """The same of requests beside others."""

    def __init__(self) -> None:
        self._encode_s: dict[tuple[bool, str, int], RecentQuantile] = {}

    def learn(self, seconds: float, encoding: str, pixels: int, *, alone: bool) -> None:
        """An answer with a map of `pixels` took so long from when it was due until it was encoded."""
        share = self.SHARE_ALONE if alone else self.SHARE_BESIDE
        self._encode_s.setdefault((alone, encoding, pixels.bit_length()), RecentQuantile(share)).add(seconds)

    def seconds(self, encoding: str, pixels: int, *, alone: bool) -> float:
        """The reserve of a request. Beside others, until that was measured, as much as alone."""
        kind = encoding, pixels.bit_length()
        slow = self._encode_s.get((alone, *kind)) or self._encode_s.get((True, *kind))
        return self.SEND_S + (self.ENCODE_S_PER_PX * pixels if slow is None else slow.value)
