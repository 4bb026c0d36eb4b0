"""Where a request stands in a distributed trace: the header `traceparent` (W3C Trace Context)."""

import re
import secrets
from dataclasses import dataclass, replace

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class TraceContext:
    """One span of a trace. `trace_id`: 32 hexadecimal digits; `span_id`: 16; `flags`: 2, of which 01 means sampled."""

    trace_id: str
    span_id: str
    flags: str = "00"

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def child(self) -> "TraceContext":
        """A new span of the same trace."""
        return replace(self, span_id=secrets.token_hex(8))


def parse_traceparent(text: str | None) -> TraceContext | None:
    """The caller's span; None without one. A header that breaks the standard counts as none, as the standard asks."""
    found = TRACEPARENT.fullmatch(text or "")
    if found is None or (found[1] == "00" and found[5]):  # later versions may have more fields
        return None
    return TraceContext(found[2], found[3], found[4])
