"""The bodies and headers of answers. FastAPI documents them from these types."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from models.network.configs import Extra
from server.engine.messages import Stop
from server.protocols.descriptions import LabelsBody, ModelBody


def _header(kind: str, description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, "description": description})


class ErrorBody(TypedDict):
    """The body of every error."""

    error: str
    code: str
    id: str | None


class PngBody(TypedDict):
    format: Literal["png"]
    data: Annotated[str, Field(description="the file in base64")]


class ClassRuns(TypedDict):
    """The pixels of a class: `size` and `counts` are what `pycocotools.mask.decode` takes."""

    size: Annotated[list[int], Field(description="height and width")]
    counts: str


class RunsBody(TypedDict):
    format: Literal["rle"]
    data: Annotated[dict[str, ClassRuns], Field(description="of every class that occurs, by number")]


class MaskBody(LabelsBody):
    """A label map: an indexed PNG in base64, or the run lengths of every class; 255 is no class."""

    format: Literal["png", "rle"]
    data: str | dict[str, ClassRuns]


class FurtherMapBody(PngBody):
    """A further map: a grey PNG."""

    kind: Extra | None


class TimingBody(TypedDict):
    decode_ms: float
    queue_ms: float
    compute_ms: Annotated[list[float], Field(description="of each exit")]
    encode_ms: float


class AnswerBody(LabelsBody, total=False):
    """An exit: a mask for segmentation, keypoints and their labels for pose."""

    mask: MaskBody
    keypoints: Annotated[list[list[float]], Field(description="x, y and score of each joint")]
    map: FurtherMapBody


class PredictionBody(AnswerBody):
    """The answer to `POST /v1/predict` in JSON."""

    id: str
    model: str
    task: str
    exit: int
    exits: int
    final: bool
    stop: Stop | None
    deadline_ms: float
    elapsed_ms: float
    timing: TimingBody
    unsure: Annotated[float, Field(description="share of the positions that the next exit would still compute")]
    size: Annotated[list[int], Field(description="height and width")]
    meta: Annotated[NotRequired[str], Field(description="that of the request")]


MapHeaders = TypedDict(
    "MapHeaders",
    {
        "X-Request-Id": Annotated[str, _header("string", "the request's id; JSON has the rest in its body")],
        "X-Anytime-Exit": Annotated[str, _header("integer", "the exit reached")],
        "X-Anytime-Exits": Annotated[str, _header("integer", "exits of the model")],
        "X-Anytime-Stop": Annotated[str, _header("string", "why it stopped: complete, quality, deadline or max_exit")],
        "X-Anytime-Elapsed-Ms": Annotated[str, _header("number", "milliseconds since the first byte of the request")],
        "X-Anytime-Unsure": Annotated[str, _header("number", "share of positions that the next exit would compute")],
        "X-Anytime-Size": Annotated[str, _header("string", "HEIGHTxWIDTH of the map")],
        "X-Anytime-Meta": Annotated[
            NotRequired[str], _header("string", "meta of the request, percent-encoded (RFC 3986)")
        ],
    },
)
"""The headers of an answer that is a map alone."""


# --- of the other routes ---


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
    """The number of requests that got no answer since the start."""

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
