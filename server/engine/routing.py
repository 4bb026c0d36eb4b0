"""Routing: which of several workers takes a request. Pure: the caller passes the time in."""

from collections.abc import Sequence

from server.scheduling.backlog import Backlog
from server.scheduling.expected import Expected, Refusal

TIE_SHARE = 0.1
TIE_S = 0.002
"""Workers that would be ready within this share, and this time, of the first count as equally fast."""


def route(backlogs: Sequence[Backlog], expected: Expected, now_s: float) -> Backlog | Refusal:
    """The backlog of the worker that will finish the required exit first, of those that can take the request; of
    equally fast ones, that with the fewest requests, which leaves most time for further exits. If none can take it, the
    refusal with the shortest wait. `backlogs` must not be empty."""
    willing: list[Backlog] = []
    refusals: list[Refusal] = []
    for backlog in backlogs:
        if refusal := backlog.refusal(expected, now_s):
            refusals.append(refusal)
        else:
            willing.append(backlog)
    if not willing:
        return min(refusals, key=lambda refusal: refusal.wait_s)
    if len(willing) == 1:
        return willing[0]
    ready_s = [backlog.ready_s(expected, now_s) for backlog in willing]
    latest_s = min(ready_s) * (1 + TIE_SHARE) + TIE_S
    return min((backlog for backlog, each_s in zip(willing, ready_s, strict=True) if each_s <= latest_s), key=len)
