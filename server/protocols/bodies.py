"""The bodies and headers of answers. FastAPI documents them from these types."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from models.network.configs import Extra
from server.engine.messages import Stop
from server.protocols.descriptions import LabelsBody


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
