"""How many requests each model has answered, and where their time went, since the start."""

from dataclasses import dataclass, field

from server.engine.job import Job


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

    def count_answer(self, job: Job, decode_s: float, elapsed_s: float, now_s: float, unix_s: float) -> None:
        """Count a request that was answered at `now_s`, `elapsed_s` after its first byte."""
        self.success.add(elapsed_s)
        self.decode.add(decode_s)
        self.queue.add(job.exits[0].started_s - job.submitted_s)
        self.compute.add(sum(done.stage_s for done in job.exits))
        self.encode.add(now_s - job.stopped_s)
        self.last_unix_ms = round(1000 * unix_s)
