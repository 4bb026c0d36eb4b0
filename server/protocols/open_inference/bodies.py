"""What the answers of version 2 hold. FastAPI documents them from these types."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.engine.messages import Stop


class ServerBody(TypedDict):
    name: str
    version: str
    extensions: list[str]


class ReadyBody(TypedDict):
    ready: bool


class TensorBody(TypedDict):
    name: str
    datatype: str
    shape: Annotated[list[int], Field(description="-1 is any size")]


class MetadataBody(TypedDict):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorBody]
    outputs: list[TensorBody]


class ConfiguredTensorBody(TypedDict):
    name: str
    data_type: str
    dims: list[int]


class ConfigurationBody(TypedDict):
    """A model, as load generators ask for it."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfiguredTensorBody]
    output: list[ConfiguredTensorBody]


class DurationBody(TypedDict):
    count: int
    ns: int


class InferenceStatisticsBody(TypedDict):
    success: DurationBody
    fail: DurationBody
    queue: DurationBody
    compute_input: DurationBody
    compute_infer: DurationBody
    compute_output: DurationBody


class ModelStatisticsBody(TypedDict):
    name: str
    version: str
    last_inference: Annotated[int, Field(description="Unix milliseconds; 0 is never")]
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatisticsBody
    batch_stats: list[Any]


class StatisticsBody(TypedDict):
    model_stats: list[ModelStatisticsBody]


class IndexedModelBody(TypedDict):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class OutputParametersBody(TypedDict):
    binary_data_size: int


class OutputBody(TensorBody):
    """A tensor: its values, or how many bytes of the binary part it takes."""

    data: NotRequired[list[Any]]
    parameters: NotRequired[OutputParametersBody]


class FactsBody(TypedDict):
    """What `POST /v1/predict` says of an answer."""

    exit: int
    exits: int
    final: bool
    stop: Stop
    unsure: float
    deadline_ms: float
    elapsed_ms: float
    meta: NotRequired[str]


class InferBody(TypedDict):
    """The answer of an inference, or its first part if `Inference-Header-Content-Length` is there."""

    model_name: str
    model_version: str
    id: str
    parameters: FactsBody
    outputs: list[OutputBody]
