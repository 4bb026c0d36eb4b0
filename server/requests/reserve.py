"""The reserve: the time before a deadline that encoding and sending an answer need. Pure: the caller passes times."""

from collections.abc import Hashable

from server.scheduling.quantile import RecentQuantile


class AnswerReserve:
    """Learns the reserve from the answers before. Answers of one encoding whose maps have a similar size, by powers of
    two, count as equally fast; a caller whose answers are all equally fast names neither.

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
    exit although its deadline is longer."""
    SHARE_BESIDE = 0.99
    """The same share for requests beside others."""
    SHARE_OF_BUDGET = 0.5
    """A request keeps at most this share of its budget as its reserve, so that it is attempted even if answers were
    slow before: an attempt teaches more than an estimate."""

    def __init__(self) -> None:
        self._answer_s: dict[tuple[bool, Hashable, int], RecentQuantile] = {}
        """Seconds from the time when encoding could have begun to the encoded answer."""

    def learn(self, answer_s: float, encoding: Hashable = None, pixels: int = 0, *, alone: bool) -> None:
        """Learn from an answer with a map of `pixels`: it was encoded `answer_s` after encoding could have begun."""
        share = self.SHARE_ALONE if alone else self.SHARE_BESIDE
        self._answer_s.setdefault((alone, encoding, pixels.bit_length()), RecentQuantile(share)).add(answer_s)

    def seconds(self, encoding: Hashable = None, pixels: int = 0, *, alone: bool) -> float:
        """The seconds that an answer with a map of `pixels` needs. Until an answer beside others was measured, the
        reserve beside others is that of a request that is alone."""
        kind = encoding, pixels.bit_length()
        learnt = self._answer_s.get((alone, *kind)) or self._answer_s.get((True, *kind))
        return self.SEND_S + (self.ENCODE_S_PER_PX * pixels if learnt is None else learnt.value)

    @classmethod
    def kept_s(cls, answer_s: float, budget_s: float) -> float:
        """The reserve of a request with this budget whose answer needs `answer_s`. The budget may be infinite."""
        return min(answer_s, cls.SHARE_OF_BUDGET * budget_s)
