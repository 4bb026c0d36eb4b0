"""The routes of one request: look it up, and cancel it."""

import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.access.identity import caller_of
from server.errors import NotFoundError
from server.protocols.bodies import RequestBody, answers
from server.protocols.hop import Hop
from server.protocols.http import HOP_S
from server.protocols.replies import reply
from server.requests.record import RequestRecord
from server.requests.service import Service

router = APIRouter()


@router.get("/v1/requests/{request_id:path}", responses=answers(RequestBody, "The request."), tags=["requests"])
async def look_up(request: Request, request_id: str) -> Response:
    """A request of the caller that is open, or that ended recently."""
    service: Service = request.app.state.service
    return await _here_or_elsewhere(
        request, request_id, lambda: service.registry.find(request_id, caller_of(request.scope))
    )


@router.delete("/v1/requests/{request_id:path}", responses=answers(RequestBody, "The request."), tags=["requests"])
async def cancel(request: Request, request_id: str) -> Response:
    """Cancel a request of the caller. A request that has ended stays as it is."""
    service: Service = request.app.state.service
    return await _here_or_elsewhere(
        request, request_id, lambda: service.cancel_by_id(request_id, caller_of(request.scope))
    )


async def _here_or_elsewhere(request: Request, request_id: str, here: Callable[[], RequestRecord]) -> Response:
    """The state of a request as `here` finds it, or else as another replica does. Raises NotFoundError if no replica
    knows it."""
    try:
        return reply(here().to_json(time.monotonic()))
    except NotFoundError:
        hop: Hop = request.app.state.hop
        began_s = time.monotonic()
        try:
            found = await hop.ask(request.method, request_id, request.headers, caller_of(request.scope).address)
        finally:
            request.scope[HOP_S] = time.monotonic() - began_s
        if found is None:
            raise
        return Response(found.body, found.status, media_type="application/json")
