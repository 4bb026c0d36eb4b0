"""The record of one request: what the front end knows of it, from its first byte to its last."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.access.identity import ANYONE, SOMEBODY, Caller, Owner
from server.engine.job import Job
from server.engine.messages import Stop
from server.engine.place import Place
from server.errors import DisconnectedError, NoExitError, RequestCancelledError
from server.metrics import UNKNOWN
from server.protocols.options import NO_OPTIONS, RequestOptions
from server.requests.budget import Asked
from server.requests.region import Region
from server.requests.reserve import AnswerReserve
from server.trace_context import TraceContext

NOTHING_ASKED = Asked(UNKNOWN, exits=0)


class CodecWork(NamedTuple):
    """A part of a request's time in the front end: `decode` or `encode`."""

    name: str
    began_s: float
    ended_s: float


@dataclass
class RequestRecord:
    """One request, from its first byte to its last. The record travels with it through the front end.

    The protocol fills in what the client asks for:
    `id`: the client's name for the request, or a made one; `caller`: who sent it.
    `owner`: who may look the request up and cancel it by its id; None: this is not possible.
    `model`: the name of the served model that is asked for, or `UNKNOWN`; metrics count the request under it.
    `sharer`: who gets a fair share of a device: an API key; without keys, the network of an HTTP client, which may use
    many connections, and the address and port of a WebSocket.
    `options`: the request options; `timeout_s`: a second deadline, from a header.
    `encoding`: how maps are encoded, a media type or an encoding of the WebSocket.
    `trace`: the request's span of a distributed trace, or None.

    The service fills in how the request is served:
    `asked`: what the budget depends on of the request.
    `age_s`: the age of the image on arrival, by which the budget is shorter; 0 if the client does not tell.
    `deadline_s`: when the last byte of the answer is due, infinite until it is known. The front end keeps it nowhere
    else.
    `answer_s`: the seconds that encoding and sending the answer are expected to need.
    `max_exit`: the last exit to compute. `decode_s`: seconds from the whole body to the pixels.
    `codec_work`: what the front end has spent on the image and its maps so far.
    `region`: the part of the image to compute and to answer, once the image is there; None: all of it.
    `place`: the right to a worker, once the request is admitted. `job`: the computation, once there is one.
    `given_up`: why the client no longer wants the answer (cancelled or disconnected); None while it does.
    `caller_checked`: see `Service.check_caller`, which has passed.
    `seated`: it counts as one of the at most `--max-open` open requests.
    `stop`, `exit`, `elapsed_s`: how the request ended, its deepest exit, and after how long. `code`: that of its error.
    """

    id: str
    protocol: str
    arrived_s: float
    caller: Caller = SOMEBODY
    owner: Owner | None = ANYONE
    model: str = UNKNOWN
    sharer: str = "unknown"
    options: RequestOptions = NO_OPTIONS
    timeout_s: float | None = None
    encoding: str = ""
    trace: TraceContext | None = None
    asked: Asked = NOTHING_ASKED
    age_s: float = 0.0
    deadline_s: float = math.inf
    answer_s: float = 0.0
    max_exit: int = 0
    decode_s: float = 0.0
    codec_work: list[CodecWork] = field(default_factory=list)
    region: Region | None = None
    place: Place | None = None
    job: Job | None = None
    given_up: Stop | None = None
    caller_checked: bool = False
    seated: bool = False
    stop: Stop | None = None
    exit: int = 0
    code: str = ""
    elapsed_s: float | None = None
    _timeout: asyncio.Timeout | None = None

    @property
    def client(self) -> str:
        """The name by which limits and budgets identify the caller."""
        return self.caller.name

    @property
    def budget_s(self) -> float:
        """Seconds from the arrival to the deadline."""
        return self.deadline_s - self.arrived_s

    @property
    def reserve_s(self) -> float:
        """The part of the time before the deadline that is kept for encoding and sending the answer."""
        return AnswerReserve.kept_s(self.answer_s, self.budget_s)

    @property
    def compute_deadline_s(self) -> float:
        """When maps must be on the host: the deadline less the reserve."""
        return self.deadline_s - self.reserve_s

    def give_up(self, stop: Stop) -> None:
        """Note that the client no longer wants the answer, and end `preparing`. `stop`: cancelled or disconnected."""
        self.given_up = self.given_up or stop
        self._reschedule()

    def move_deadline(self, deadline_s: float) -> None:
        """Set another deadline, sooner or later, also for `preparing`."""
        self.deadline_s = deadline_s
        self._reschedule()

    @asynccontextmanager
    async def preparing(self) -> AsyncIterator[None]:
        """Encloses all waiting before there is a job, and ends it at the deadline or when the request is given up.

        Raises NoExitError, RequestCancelledError or DisconnectedError then.
        """
        try:
            async with asyncio.timeout(None) as self._timeout:
                self._reschedule()
                yield
        except TimeoutError:
            self.check_wanted()
            spent_ms = 1000 * (time.monotonic() - self.arrived_s)
            raise NoExitError(
                f"the image was not received and decoded after {spent_ms:.0f} ms, and the deadline was "
                f"{1000 * self.budget_s:.1f} ms; send a smaller file, or give a later deadline_ms",
                "no_exit",
            ) from None
        finally:
            self._timeout = None

    def check_wanted(self) -> None:
        """Raises RequestCancelledError or DisconnectedError if the request was given up."""
        if self.given_up is Stop.CANCELLED:
            raise RequestCancelledError("the request was cancelled by its id", "cancelled") from None
        if self.given_up is Stop.DISCONNECTED:
            raise DisconnectedError("the client hung up", "disconnected") from None

    def _reschedule(self) -> None:
        if self._timeout is None or self._timeout.expired():
            return
        left_s = 0.0
        if self.given_up is None:
            left_s = max(0.0, self.deadline_s - time.monotonic())
        self._timeout.reschedule(None if math.isinf(left_s) else asyncio.get_running_loop().time() + left_s)

    def check_time(self, now_s: float) -> None:
        """Raises NoExitError if no time is left to compute, once the image is decoded."""
        if self.compute_deadline_s <= now_s:
            spent_ms, reserve_ms = 1000 * (now_s - self.arrived_s), 1000 * self.reserve_s
            raise NoExitError(
                f"not begun: receiving and decoding took {spent_ms:.0f} ms, encoding needs {reserve_ms:.0f} ms, and "
                f"the deadline is {1000 * self.budget_s:.1f} ms; send a smaller file, or give a later deadline_ms",
                "no_exit",
            )

    def check_answer(self, job: Job) -> None:
        """Raises NoExitError, RequestCancelledError or DisconnectedError if the job ended without an answer."""
        if job.stop is Stop.DISCONNECTED:
            raise DisconnectedError("the client hung up", "disconnected")
        if job.stop is Stop.CANCELLED:
            raise RequestCancelledError(f"the request was cancelled by its id, at exit {job.latest}", "cancelled")
        required = job.spec.required
        if job.latest >= required and job.stop is not Stop.NO_EXIT:
            return
        spent_s = job.stopped_s - self.arrived_s
        spent_ms, answer_ms, takes_ms = (1000 * part for part in (spent_s, self.answer_s, job.required_s))
        times = (
            f"after {spent_ms:.0f} of {1000 * self.budget_s:.1f} ms; encoding needs {answer_ms:.0f} ms, and exit "
            f"{required} takes {takes_ms:.0f} ms here"
        )
        # A deadline counts from the capture of the image, if the client tells when that was.
        needs_ms = 1000 * (job.submitted_s - self.arrived_s + self.age_s) + takes_ms + answer_ms
        later = "a later deadline_ms"
        if takes_ms and needs_ms > 1000 * (self.budget_s + self.age_s):
            later = f"deadline_ms={10 * math.ceil(needs_ms / 10)} or more"
        if job.stop is Stop.NO_EXIT or not job.exits:
            raise NoExitError(f"no exit was there {times}: give {later}, or a smaller image", "no_exit")
        raise NoExitError(
            f"only exit {job.latest} was there {times}: give {later}, a smaller image, a smaller min_exit, or "
            "best_effort=true to get what there is",
            "min_exit_not_reached",
        )

    def to_json(self, now_s: float) -> dict[str, Any]:
        """The body of `GET /v1/requests/{id}`."""
        stop = self.stop or (self.job and self.job.stop) or self.given_up  # the first that is set
        elapsed_s = now_s - self.arrived_s if self.elapsed_s is None else self.elapsed_s
        return {
            "id": self.id,
            "state": "open" if stop is None else "ended",
            "protocol": self.protocol,
            "model": self.model,
            "exit": self.job.latest if self.job else self.exit,
            "stop": stop,
            "deadline_ms": None if math.isinf(self.deadline_s) else round(1000 * self.budget_s, 3),
            "elapsed_ms": round(1000 * elapsed_s, 3),
        }
