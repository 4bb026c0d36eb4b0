"""What the front end and its worker process say to each other: commands to the worker, and events from it.

Messages are values, pickled over a socket; images and maps lie in shared memory. Times are `time.monotonic()`, which is
one clock for all processes of a machine.
"""

import enum
from dataclasses import dataclass, field
from typing import ClassVar

from models.executors.registry import AUTO
from models.imaging.geometry import Box
from models.network.configs import Extra
from models.quantisation import Precision
from server.engine.shared_memory import Layout
from server.scheduling.costs import StageCost


class Stop(enum.StrEnum):
    """Why a request ended. The first five come with an answer and are on the wire; metrics count requests by all."""

    COMPLETE = "complete"
    QUALITY = "quality"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    MAX_EXIT = "max_exit"
    NO_EXIT = "no_exit"
    DISCONNECTED = "disconnected"
    REJECTED = "rejected"
    INVALID = "invalid"
    ERROR = "error"


# --- commands: a job specification starts its job ---


@dataclass(frozen=True)
class JobSpec:
    """What one job is to compute, and by when. Sending it to the worker starts the job.

    `key`: the job's number, unique on this server.
    `model`: the name of a served model.
    `offset`, `layout`: the job's block in shared memory; its image lies there already.
    `arrived_s`: when the first byte of the request came.
    `compute_deadline_s`: when maps must be on the host; `MoveDeadline` replaces it while the job runs.
    `usual_start_s`: when a job that arrived at `arrived_s` usually starts; see `Scheduler`.
    `required`: the first exit that is worth an answer.
    `min_exit`: neither traffic nor quality ends the job before this exit.
    `max_exit`: the last exit to compute.
    `quality`: the share of pixels that may still change (see `models/quality.py`), or None.
    `extra`: the further map to render at every exit, or None.
    `box`: the person's box, for pose, or None.
    `client`: who asks; clients get fair shares of the device.
    `priority`: 0, 1 or 2; jobs of a higher one get their further exits first.
    """

    key: int
    model: str
    offset: int
    layout: Layout
    arrived_s: float
    compute_deadline_s: float
    usual_start_s: float
    max_exit: int
    required: int = 1
    min_exit: int = 1
    quality: float | None = None
    extra: Extra | None = None
    box: Box | None = None
    client: str = ""
    priority: int = 1


@dataclass(frozen=True)
class Cancel:
    """End the job: at most the step that is running is still computed."""

    key: int


@dataclass(frozen=True)
class MoveDeadline:
    """Give a running job another compute deadline, sooner or later."""

    key: int
    compute_deadline_s: float


@dataclass(frozen=True)
class TrafficCap:
    """End every job at `max_exit`, except for the exits that its request requires (`required`, `min_exit`). None ends
    none."""

    max_exit: int | None
    key: ClassVar[int] = 0
    """It concerns no job alone."""


@dataclass(frozen=True)
class Ping:
    """Ask for a sign of life: the worker answers with `Beat` at its next look at the mailbox."""

    key: ClassVar[int] = 0
    """It concerns no job."""


Command = JobSpec | Cancel | MoveDeadline | TrafficCap | Ping


@dataclass(frozen=True)
class Chosen:
    """What runs a model, and in which precision, each with the reason for it; empty if there was no choice."""

    executor: str
    reason: str = ""
    precision: Precision = "fp32"
    precision_reason: str = ""


@dataclass(frozen=True)
class LoadPlan:
    """The first message to a worker: which models to load, how to run them, and where the shared memory is.

    `models`: model directories by name.
    `threads`: CPU threads of all workers on this device together; 0: one for each core that the process may use.
    `sharing`: how many workers compute on this device.
    `known`: what stages cost, as it was learnt from the worker before this one. A worker that is told of a model skips
    the measurement and is ready sooner.
    `chosen`: by model, what the worker before this one ran. `max_batches`: by model, its `ModelFacts.max_batch`.
    `precision`: auto, fp32 or int8, for models that are not in `chosen`.
    """

    models: dict[str, str]
    device: str
    executor: str
    threads: int
    known: tuple[StageCost, ...]
    chosen: dict[str, Chosen]
    arena_fd: int
    arena_bytes: int
    log_level: str
    log_format: str = "plain"
    precision: str = AUTO
    sharing: int = 1
    max_batches: dict[str, int] = field(default_factory=dict)


# --- events ---


@dataclass(frozen=True)
class ModelFacts:
    """What a worker knows of a loaded model.

    `macs`: multiply-adds of the dense network from the image to each exit, at the configured size.
    `seconds`: seconds from the image to each exit at that size, measured under masks while warming up.
    `costs`: what its stages cost, as far as the worker knows when it is ready.
    `calibrated`: requests may ask for `quality`.
    `chosen`: what runs the model, and in which precision.
    `max_batch`: the size of the largest batch that pays; 1: none does.
    """

    macs: tuple[float, ...]
    seconds: tuple[float, ...]
    calibrated: bool
    chosen: Chosen
    costs: tuple[StageCost, ...] = ()
    max_batch: int = 1


@dataclass(frozen=True)
class Loading:
    """The worker has begun a part of its loading or warming up.

    `doing`: what it does, for example "warming up camvid-adpc-w18". `limit_s`: the longest that this may take until it
    begins the next part or is ready.
    """

    doing: str
    limit_s: float


IN_RESERVE = "in-reserve"
"""The second command-line argument of a worker process that is started for the reserve. Such a process may receive its
load plan late, or never."""


@dataclass(frozen=True)
class Imported:
    """A process in reserve has imported what a worker needs: it can take a load plan."""


@dataclass(frozen=True)
class Ready:
    """Every exit of every model has run at least once."""

    device: str
    executor: str
    models: dict[str, ModelFacts]


@dataclass(frozen=True)
class Exited:
    """A job has reached an exit, whose map lies in its slot.

    `active_share`: the share of positions that the next exit would compute; `unsure` on the wire.
    `macs`: multiply-adds from the image to this exit.
    `stage_s`: device time since the exit before, rendering included; of a batch's time, an equal part.
    `started_s`, `finished_s`: when the job's first step began, and when this exit's map was on the host.
    `changed`: whether its map may differ from that of the exit before. `final`: whether no later exit will differ.
    `batch_left`: how many jobs of its batch have come to the same exit, and have no map yet.
    """

    key: int
    exit: int
    active_share: float
    macs: int
    stage_s: float
    started_s: float
    finished_s: float
    changed: bool = True
    final: bool = False
    batch_left: int = 0


@dataclass(frozen=True)
class Ended:
    """The worker has let go of a job and of its memory: the last event of a job.

    `stop`: why it ended there. `error`: a sentence, or None. `needs_s`, `left_s`: if it was not begun because its
    required exit would have been late, the seconds that this takes, and those that were left. `stage_s`: device time
    since the latest exit, of a stage that is left unfinished.
    """

    key: int
    stop: Stop
    error: str | None = None
    needs_s: float = 0.0
    left_s: float = 0.0
    stage_s: float = 0.0


@dataclass(frozen=True)
class Beat:
    """The worker is alive: the answer to `Ping`, and while it loads a sign that it gives unasked."""


@dataclass(frozen=True)
class Unloadable:
    """The models cannot be loaded, and starting another worker would not help."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """The device has failed, so every further step on it would fail too. This is the worker's last event."""

    reason: str


Event = Loading | Ready | Exited | Ended | Beat | Unloadable | Broken
