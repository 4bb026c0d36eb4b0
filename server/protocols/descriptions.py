"""Descriptions of models for clients: their labels, and what their exits cost."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from models.network.configs import GIGA
from server.catalog import ServedModel
from server.engine.device import LearntCost
from server.engine.messages import ModelFacts


class LabelsBody(TypedDict, total=False):
    """The labels of a model: the names and colours of its classes (segmentation) or joints (pose), in the order of
    their numbers."""

    classes: list[str]
    joints: list[str]
    palette: Annotated[list[list[int]], Field(description="RGB of each class or joint")]
    skeleton: Annotated[list[list[int]], Field(description="pairs of joints")]


class ExitCostBody(TypedDict):
    """An exit. What it costs is null until a worker is ready."""

    exit: int
    gmacs: Annotated[float | None, Field(description="of the dense network from the image on, at `size`")]
    seconds: Annotated[float | None, Field(description="from the image on, measured under masks at the start")]


class ModelBody(LabelsBody):
    """A model. What depends on the worker is null until one is ready."""

    name: str
    task: str
    exits: list[ExitCostBody]
    size: Annotated[list[int], Field(description="height and width for which exits are measured")]
    quality: Annotated[bool | None, Field(description="whether requests may ask for `quality`")]
    precision: Annotated[str | None, Field(description="what the model is computed in")]
    precision_reason: Annotated[str | None, Field(description="why; empty if there was no choice")]
    max_batch: Annotated[int | None, Field(description="size of the largest batch, of images of the configured size")]
    licence: str


def describe_labels(model: ServedModel) -> LabelsBody:
    colours = list(model.palette)
    palette = [colours[index : index + 3] for index in range(0, len(colours), 3)]
    if model.config.task == "pose":
        return {
            "joints": list(model.config.names),
            "palette": palette,
            "skeleton": [list(limb) for limb in model.config.skeleton],
        }
    return {"classes": list(model.config.names), "palette": palette}


def describe_model(model: ServedModel, facts: ModelFacts | None) -> ModelBody:
    """A model of `GET /v1/models`."""
    exits: list[ExitCostBody] = [
        {
            "exit": index + 1,
            "gmacs": round(facts.macs[index] / GIGA, 4) if facts else None,
            "seconds": round(facts.seconds[index], 6) if facts else None,
        }
        for index in range(model.config.exits)
    ]
    return {
        "name": model.name,
        "task": model.config.task,
        "exits": exits,
        "size": list(model.config.size),
        "quality": facts.calibrated if facts else None,
        "precision": facts.chosen.precision if facts else None,
        "precision_reason": facts.chosen.precision_reason if facts else None,
        "max_batch": facts.max_batch if facts else None,
        "licence": model.config.licence,
        **describe_labels(model),
    }


def describe_costs(learnt: Sequence[LearntCost]) -> list[dict[str, Any]]:
    """What the exits of a model cost, learnt from requests: seconds from the first step, the typical ones now and the
    safe ones, which few requests exceed, for each device and shape of the network's input."""
    return [
        {
            "device": cost.device,
            "shape": list(cost.shape),
            "exits": [
                {"exit": exit_index, "seconds": round(typical_s, 6), "safe_seconds": round(safe_s, 6)}
                for exit_index, (typical_s, safe_s) in enumerate(zip(cost.typical_s, cost.safe_s, strict=True), 1)
            ],
        }
        for cost in learnt
    ]
