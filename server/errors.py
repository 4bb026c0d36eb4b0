"""Every error that a client may meet: its HTTP status, its code, its close code, and how its request is counted.

The sentence is written where an error is raised: it says the number, the limit and the remedy.
"""

from typing import ClassVar

from starlette.status import (
    WS_1003_UNSUPPORTED_DATA,
    WS_1008_POLICY_VIOLATION,
    WS_1009_MESSAGE_TOO_BIG,
    WS_1011_INTERNAL_ERROR,
    WS_1013_TRY_AGAIN_LATER,
)

from server.trace_context import TraceContext

REFUSALS = (
    "client_limit",
    "draining",
    "key_budget",
    "key_rate",
    "overloaded",
    "replica_silent",
    "starting",
    "too_many_errors",
)
"""The codes of errors with the stop `rejected`: why a request that might have been served was not."""


class ServerError(Exception):
    """The base class of all errors. `code` names the error for programs. `retry_after_s`: the
    seconds after which asking again may help.

    `status` is the HTTP status. `close_code` is the WebSocket's close code (RFC 6455, section 7.4.1), for errors that
    close it. `stop` is a label of the metrics. `request_id`, and `trace` if it has one, are set once the error has
    ended a request.
    """

    status: ClassVar[int] = 500
    close_code: ClassVar[int] = WS_1011_INTERNAL_ERROR
    stop: ClassVar[str] = "error"

    def __init__(self, message: str, code: str = "internal", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id: str | None = None
        self.trace: TraceContext | None = None


def unexpected(error: Exception) -> ServerError:
    """The error that a client is told about a fault of the server."""
    return ServerError(f"the server failed ({type(error).__name__}); the log says more", "internal")


class InvalidError(ServerError):
    """The request cannot be understood."""

    status = 400
    close_code = WS_1008_POLICY_VIOLATION
    stop = "invalid"


class NotJsonError(InvalidError):
    """A text frame is not a JSON object; the server closes the WebSocket."""

    close_code = WS_1003_UNSUPPORTED_DATA


class UnauthorizedError(InvalidError):
    """No API key came with the request, or one that the server does not know."""

    status = 401


class ForbiddenError(InvalidError):
    """The client is known, and may not do this."""

    status = 403


class NotFoundError(InvalidError):
    status = 404


class NotAcceptableError(InvalidError):
    status = 406


class SlowRequestError(InvalidError):
    """A request was not complete in time."""

    status = 408


class HeadersTooLargeError(InvalidError):
    status = 431


class TooLargeError(InvalidError):
    status = 413
    close_code = WS_1009_MESSAGE_TOO_BIG


class NotAnImageError(InvalidError):
    status = 415


class MisdirectedError(InvalidError):
    """The request names a server that this is not (RFC 9110, section 15.5.20)."""

    status = 421


class RequestCancelledError(ServerError):
    """The request was cancelled by its id. The status 499 is the one that nginx uses when a client gives up."""

    status = 499
    stop = "cancelled"


class DisconnectedError(ServerError):
    """The client hung up. Nobody reads the status."""

    status = 499
    stop = "disconnected"


class NoExitError(ServerError):
    """No exit by the deadline."""

    status = 504
    stop = "no_exit"


class TooManyRequestsError(ServerError):
    status = 429
    close_code = WS_1008_POLICY_VIOLATION
    stop = "rejected"


class UnavailableError(ServerError):
    """Overloaded, starting or draining."""

    status = 503
    close_code = WS_1013_TRY_AGAIN_LATER
    stop = "rejected"


class DecoderLostError(UnavailableError):
    """The process that decoded the request's image has ended."""

    stop = "error"


class WorkerLostError(UnavailableError):
    """The worker died before it had reached the exit that the request requires."""

    stop = "error"
