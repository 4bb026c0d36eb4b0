"""What the answers of `GET` and `DELETE` hold, over HTTP. FastAPI documents them from these types."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from server.engine.messages import Stop
from server.protocols.descriptions import ModelBody
from server.protocols.replies import ErrorBody


class DeadlinesBody(TypedDict):
    default: Annotated[float, Field(description="of a request that names none, in milliseconds")]
    max: Annotated[float, Field(description="the longest, to which others are cut")]


class ModelsBody(TypedDict):
    """Every served model."""

    default: Annotated[str, Field(description="the model of a request that names none")]
    models: list[ModelBody]
    deadline_ms: DeadlinesBody


class LearntExitBody(TypedDict):
    exit: int
    seconds: Annotated[float, Field(description="typical, from the first step on")]
    safe_seconds: Annotated[float, Field(description="which few requests exceed")]


class LearntBody(TypedDict):
    """What exits have cost on one device."""

    device: str
    shape: Annotated[list[int], Field(description="height and width of the network's input")]
    exits: list[LearntExitBody]


class UnansweredBody(TypedDict):
    """How many requests got no answer since the start."""

    rejected: float
    no_exit: float


class ModelDetailsBody(ModelBody):
    """One model, and what was learnt of it from requests."""

    learnt: list[LearntBody]
    without_answer: UnansweredBody


class RequestBody(TypedDict):
    """A request that is open, or has ended."""

    id: str
    state: Literal["open", "ended"]
    protocol: str
    model: str
    exit: Annotated[int, Field(description="the newest; 0 is none")]
    stop: Annotated[Stop | None, Field(description="null while the request goes on")]
    deadline_ms: Annotated[float | None, Field(description="null if it had none yet")]
    elapsed_ms: float


class LiveBody(TypedDict):
    live: Literal[True]


class ChosenBody(TypedDict):
    """What runs a model, each with the reason; a reason is empty if there was no choice."""

    executor: str
    reason: str
    precision: str
    precision_reason: str


class DeviceBody(TypedDict):
    """One worker."""

    device: str
    ready: bool
    executor: Annotated[str | None, Field(description="null while it loads")]
    open: Annotated[int, Field(description="requests that it owes an exit")]


class ReadinessBody(TypedDict):
    """Whether requests are answered, and what computes them."""

    ready: bool
    state: Literal["ready", "starting", "unresponsive", "draining"]
    device: str
    executor: str
    devices: list[DeviceBody]
    models: list[str]
    chosen: Annotated[dict[str, ChosenBody], Field(description="by model; empty while no worker is ready")]


REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": "What was wrong, with the number, the limit and the remedy."}
    for status in ("4XX", "5XX")
}


def answers(body: Any, description: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI describes a route that answers with `body`: with status 200, and with further `statuses`."""
    return {status: {"model": body, "description": description} for status in (200, *statuses)} | REFUSED
