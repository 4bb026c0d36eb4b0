"""Server-sent events: every exit of a request as it comes, in the answer to `POST /v1/predict`.

Each event is `event: TYPE`, then `data: JSON` with the fields of the WebSocket's message of that type, then an empty
line (HTML Living Standard, section 9.2). Maps are inside the JSON. The last event is `end` or `error`.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.engine.messages import Stop
from server.errors import RequestCancelledError, ServerError
from server.protocols.exits import new_exits, skipped_exits
from server.protocols.replies import (
    accepted_message,
    end_message,
    error_message,
    exit_message,
    milliseconds,
    to_json,
)
from server.requests.record import RequestRecord
from server.requests.service import Read, Service

EVENTS = "text/event-stream"
"""The media type of server-sent events."""


class EventStream(Response):
    """A response of server-sent events. `first` is the first event, `others` yields the rest, and `named` are the
    headers that identify the request."""

    def __init__(self, first: bytes, others: AsyncGenerator[bytes, None], named: Mapping[str, str]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **named}
        super().__init__(media_type=EVENTS, headers=headers)
        del self.headers["content-length"]
        self._first, self._others = first, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._others):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in self._others:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def served_events(service: Service, record: RequestRecord, read: Read) -> AsyncGenerator[bytes, None]:
    """Serve a request: the events `accepted`, `exit` for each exit, and `end`; or `error` if it fails after
    `accepted`. Raises ServerError if it fails before."""
    async with service.job(record, read) as job:
        yield _event(accepted_message(record, job))
        sent: list[int] = []
        try:
            async with aclosing(new_exits(job)) as exits:
                async for new in exits:
                    message, _ = await service.encode(
                        record,
                        lambda: exit_message(record, job, new.exit, new.held),  # noqa: B023 - awaited at once
                    )
                    message["elapsed_ms"] = milliseconds(time.monotonic() - record.arrived_s)
                    yield _event(message)
                    sent.append(new.exit)
            record.stop = await job.ended()
            record.check_answer(job)
        except RequestCancelledError:
            record.stop = Stop.CANCELLED
        except ServerError as error:
            record.stop = Stop(error.stop)
            yield _event(error_message(error, record.id))
            return
        yield _event(end_message(record.id, job.latest, job.stop, record.arrived_s, skipped_exits(job, sent)))


def _event(message: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (message["type"].encode(), to_json(message))
