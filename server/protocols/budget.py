"""`GET /v1/budget`: the budget that a request would get now, source by source, and when its exits would be answered."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from typing_extensions import TypedDict

from server.access.identity import caller_of
from server.decoding.size import check_size
from server.errors import InvalidError
from server.protocols.bodies import answers
from server.protocols.http import documented
from server.protocols.options import parse_query
from server.protocols.replies import milliseconds, reply
from server.protocols.values import ModelName, Positive, Side
from server.requests.budget import Forecast, Limit
from server.requests.service import Service

router = APIRouter()


class BudgetQuery(BaseModel):
    """The request whose budget is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName | None = Field(default=None, description="name of the model; without it, the server's default")
    deadline_ms: Positive | None = Field(default=None, description="as in POST /v1/predict")
    width: Side | None = Field(default=None, description="width of the image in pixels; with `height`")
    height: Side | None = Field(
        default=None, description="height of the image in pixels; without both, a size as the last one for the model"
    )


class SourceBody(TypedDict, total=False):
    """One limit, and where it comes from."""

    name: str
    deadline_ms: float
    max_exit: int
    why: str


class PredictedBody(TypedDict):
    exit: int
    ms: Annotated[float, Field(description="predicted milliseconds from the whole image to the answer with this exit")]


class BudgetBody(TypedDict):
    """The smallest limits, all limits by source, and the predicted time of each exit; `predicted` is empty while the
    models are loading."""

    deadline_ms: float
    max_exit: int
    sources: list[SourceBody]
    predicted: list[PredictedBody]


ASKED = {"parameters": [{"name": name, "in": "query", **field} for name, field in documented(BudgetQuery).items()]}


@router.get("/v1/budget", openapi_extra=ASKED, responses=answers(BudgetBody, "The budget."), tags=["models"])
async def budget(request: Request) -> Response:
    """What a request would get now: deadline, deepest exit, why, and the predicted time of each exit. An image that is
    too large is refused here as it would be there."""
    service: Service = request.app.state.service
    query = parse_query(BudgetQuery, request.query_params, request.query_params.getlist("deadline_ms"))
    if (query.width is None) != (query.height is None):
        given, missing = ("width", "height") if query.height is None else ("height", "width")
        raise InvalidError(f"{given} is given and {missing} is missing; give both or neither", "bad_parameter")
    size = None if query.height is None or query.width is None else (query.height, query.width)
    if size is not None:
        check_size(size[1], size[0], service.settings.max_pixels)
    caller = caller_of(request.scope)
    return reply(describe_budget(service.forecast(query.model, caller, query.deadline_ms, size)))


def describe_budget(forecast: Forecast) -> BudgetBody:
    found = forecast.budget
    return {
        "deadline_ms": milliseconds(found.seconds),
        "max_exit": found.max_exit or 0,
        "sources": [_source(limit) for limit in found.limits],
        "predicted": [{"exit": index, "ms": milliseconds(seconds)} for index, seconds in forecast.predicted_s.items()],
    }


def _source(limit: Limit) -> SourceBody:
    source: SourceBody = {"name": limit.name}
    if limit.seconds is not None:
        source["deadline_ms"] = milliseconds(limit.seconds)
    if limit.max_exit is not None:
        source["max_exit"] = limit.max_exit
    source["why"] = limit.why
    return source
