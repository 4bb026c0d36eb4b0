"""The reserve: the time before a deadline that encoding and sending an answer need. Pure: the caller passes times."""

from server.scheduling.quantile import RecentQuantile


class AnswerReserve:
    """Learns the reserve from the answers before. Maps of a similar size, by powers of two, count as equally fast.

    It is learnt apart for requests that are alone and for those beside others: after a burst, one that is alone needs
    no more time than before.
    """

    SEND_S = 0.001
    """The part of the reserve, in seconds, in which the front end hears of an exit and sends the answer."""
    ENCODE_S_PER_PX = 10e-9
    """The seconds for each pixel that encoding is assumed to take until an answer of the same kind was measured."""
    SHARE_ALONE = 0.9
    """The reserve of a request that is alone is long enough for this share of the latest answers to such requests. If
    it were long enough for all of them, one slow answer would lengthen it, and the next request could get an earlier
    exit than a request with a shorter deadline got before."""
    SHARE_BESIDE = 0.98
    """The same share for requests beside others."""

    def __init__(self) -> None:
        self._encode_s: dict[tuple[bool, str, int], RecentQuantile] = {}

    def learn(self, seconds: float, encoding: str, pixels: int, *, alone: bool) -> None:
        """Learn from an answer with a map of `pixels`: it was encoded `seconds` after it was due."""
        share = self.SHARE_ALONE if alone else self.SHARE_BESIDE
        self._encode_s.setdefault((alone, encoding, pixels.bit_length()), RecentQuantile(share)).add(seconds)

    def seconds(self, encoding: str, pixels: int, *, alone: bool) -> float:
        """The reserve, in seconds, of a request whose map has `pixels`. Until an answer beside others was measured, the
        reserve beside others is that of a request that is alone."""
        kind = encoding, pixels.bit_length()
        slow = self._encode_s.get((alone, *kind)) or self._encode_s.get((True, *kind))
        return self.SEND_S + (self.ENCODE_S_PER_PX * pixels if slow is None else slow.value)
