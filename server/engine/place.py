"""A place reserves time on one worker for an admitted request. The request holds it from the moment its whole image has
been received until its job ends."""

import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from server.engine.device import Device
from server.scheduling.backlog import Backlog
from server.scheduling.expected import Expected


@dataclass(eq=False)
class Place:
    """Use it in a `with` block, so that it is given up however the request ends. The engine writes it.

    `key`: the number of the request's job. `backlog`: where it is counted; no longer that of `device` once the worker
    is lost. `expected`: what it was admitted for.
    """

    key: int
    device: Device
    backlog: Backlog
    expected: Expected

    @property
    def lost(self) -> bool:
        """Whether the worker that it is for is gone."""
        return self.backlog is not self.device.backlog

    def move_deadline(self, deadline_s: float, now_s: float) -> None:
        """The required exit is due sooner or later than it was."""
        self.expected = replace(self.expected, deadline_s=deadline_s)
        self.backlog.move_deadline(self.key, deadline_s, now_s)

    def release(self, now_s: float) -> None:
        """Give it up; does nothing if it was given up before."""
        self.backlog.remove(self.key, now_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release(time.monotonic())
