"""What version 2 tells of models: metadata, configuration and statistics. Pure."""

from collections.abc import Sequence
from typing import Any

from server.catalog import ServedModel
from server.protocols.open_inference.requests import INPUT, VERSION
from server.requests.statistics import Duration, ModelStatistics

PLATFORM = "anytime"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""The extensions of Triton's protocol that this server implements; of `model_repository`, only the index."""

Tensor = tuple[str, str, list[int]]
"""Name, datatype and shape, where -1 is any size."""


def _input() -> Tensor:
    return INPUT, "UINT8", [1, -1, -1, 3]


def _output(model: ServedModel) -> Tensor:
    if model.config.task == "pose":
        return "keypoints", "FP32", [1, model.config.outputs, 3]
    return "mask", "UINT8", [1, -1, -1]


def metadata(model: ServedModel) -> dict[str, Any]:
    """The body of `GET /v2/models/{name}`. The input may also be BYTES [1], an image file."""

    def described(tensor: Tensor) -> list[dict[str, Any]]:
        name, datatype, shape = tensor
        return [{"name": name, "datatype": datatype, "shape": shape}]

    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": described(_input()),
        "outputs": described(_output(model)),
    }


def configuration(model: ServedModel) -> dict[str, Any]:
    """The body of `GET /v2/models/{name}/config`, which load generators read."""

    def described(tensor: Tensor) -> list[dict[str, Any]]:
        name, datatype, shape = tensor
        return [{"name": name, "data_type": f"TYPE_{datatype}", "dims": shape}]

    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": described(_input()),
        "output": described(_output(model)),
    }


def statistics(counted: Sequence[tuple[str, ModelStatistics]]) -> dict[str, Any]:
    """The body of `GET /v2/models/stats`: of each model by name. They count requests over every protocol."""
    return {"model_stats": [_statistics(name, model) for name, model in counted]}


def _statistics(name: str, model: ModelStatistics) -> dict[str, Any]:
    parts = {
        "success": model.success,
        "fail": model.fail,
        "queue": model.queue,
        "compute_input": model.decode,
        "compute_infer": model.compute,
        "compute_output": model.encode,
    }
    return {
        "name": name,
        "version": VERSION,
        "last_inference": model.last_unix_ms,
        "inference_count": model.success.count,
        "execution_count": model.success.count,
        "inference_stats": {part: _duration(duration) for part, duration in parts.items()},
        "batch_stats": [],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": round(1e9 * duration.seconds)}
