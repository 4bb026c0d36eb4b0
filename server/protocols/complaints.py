"""Complaints: the log of clients' protocol errors. An error that a client repeats is counted, and not logged each
time."""

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from server.access.identity import network_of

logger = logging.getLogger("anytime.connection")


@dataclass
class _Line:
    logged_s: float
    more: int = 0


class Complaints:
    """Logs a complaint about the clients of a network (see `network_of`) once in `EVERY_S`, with how many more there
    were since the last line."""

    EVERY_S = 60.0
    KINDS = 1000
    """Pairs of networks and codes that are remembered; the oldest are forgotten."""

    def __init__(self) -> None:
        self._lines: OrderedDict[tuple[str, str], _Line] = OrderedDict()

    def note(self, address: str, code: str, sentence: str, now_s: float | None = None) -> None:
        """Log that a client at `address` did what `sentence` says; `code` names it for programs."""
        now_s = time.monotonic() if now_s is None else now_s
        kind = network_of(address), code
        line = self._lines.get(kind)
        if line is not None and now_s - line.logged_s < self.EVERY_S:
            line.more += 1
            return
        more = f" ({line.more} more since)" if line is not None and line.more else ""
        logger.warning("%s: %s: %s%s", address, code, sentence, more)
        self._lines[kind] = _Line(now_s)
        self._lines.move_to_end(kind)
        while len(self._lines) > self.KINDS:
            self._lines.popitem(last=False)
