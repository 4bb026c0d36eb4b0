"""Every error that a client may meet: its HTTP status, its code, and how its request is counted.

Sentences are written where errors are raised: the number, the limit and the remedy. Imports nothing of this project.
"""

from typing import ClassVar


class ServerError(Exception):
    """The root. `code` names the error for programs; `retry_after_s` says when asking again may help.

    `request_id` is set once the request is known that it ends.
    """

    status: ClassVar[int] = 500
    stop: ClassVar[str] = "error"

    def __init__(self, message: str, code: str = "internal", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id: str | None = None


def unexpected(error: Exception) -> ServerError:
    """What a client is told about a fault of the server."""
    return ServerError(f"the server failed ({type(error).__name__}); the log says more", "internal")


class InvalidError(ServerError):
    """The request cannot be understood."""

    status = 400
    stop = "invalid"


class NotFoundError(InvalidError):
    status = 404


class NotAcceptableError(InvalidError):
    status = 406


class TooLargeError(InvalidError):
    status = 413


class NotAnImageError(InvalidError):
    status = 415


class RequestCancelledError(ServerError):
    """Cancelled by its id: 499, as nginx calls a request that its client gave up."""

    status = 499
    stop = "cancelled"


class DisconnectedError(ServerError):
    """The client hung up; nobody reads the status."""

    status = 499
    stop = "disconnected"


class NoExitError(ServerError):
    status = 504
    stop = "no_exit"


class TooManyRequestsError(ServerError):
    status = 429
    stop = "rejected"


class UnavailableError(ServerError):
    """Overloaded, starting or draining."""

    status = 503
    stop = "rejected"


class WorkerLostError(UnavailableError):
    """The worker died before there was anything to answer with."""

    stop = "error"
