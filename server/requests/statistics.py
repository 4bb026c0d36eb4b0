"""Statistics of each model since the start: the number of requests, and the time that each part of them took."""

import time
from dataclasses import dataclass, field

from server.engine.messages import Stop
from server.requests.record import RequestRecord

ANSWERED = (Stop.COMPLETE, Stop.QUALITY, Stop.DEADLINE, Stop.MAX_EXIT)
"""The stops of requests that got an answer."""


@dataclass
class Duration:
    """A part of requests: how many had it, and how long it took in sum."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += max(0.0, seconds)


@dataclass
class ModelStatistics:
    """The requests for one model. `success` and `fail` take a request from its first byte to its last; the others are
    parts of those with an answer. `last_unix_ms`: when the last one was answered, in Unix milliseconds; 0: none was."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    last_unix_ms: int = 0

    def count(self, record: RequestRecord) -> None:
        """Count a request that has just ended."""
        assert record.elapsed_s is not None
        job = record.job
        if job is None or record.stop not in ANSWERED:
            self.fail.add(record.elapsed_s)
            return
        self.success.add(record.elapsed_s)
        self.decode.add(record.decode_s)
        self.queue.add(job.exits[0].started_s - job.submitted_s)
        self.compute.add(sum(done.stage_s for done in job.exits))
        self.encode.add(record.arrived_s + record.elapsed_s - job.stopped_s)
        self.last_unix_ms = round(1000 * time.time())
