"""Everything that `adpc_client` raises, as one tree. Imports nothing of this package.

AdpcError
├── ImageError (ValueError)                what was given is not an image
├── ConnectionFailedError (ConnectionError)    no connection, or it broke
├── ServerSilentError (TimeoutError)       connected, but no word for longer than `Timeout.silence_s`
├── ProtocolError                          the answer makes no sense; not an anytime server?
└── ReplyError                             the server refused or failed, and said why
    ├── BadInputError          400
    ├── NotFoundError          404
    ├── TooLargeError          413
    ├── UnsupportedImageError  415
    ├── RateLimitError         429
    ├── CancelledRequestError  499
    ├── OverloadedError        503         overloaded, starting or draining; see `retry_after_s`
    ├── NoExitError            504 (TimeoutError)   no exit was finished in time
    └── ServerFaultError       500 and other 5xx
"""

from collections.abc import Mapping
from typing import Any


class AdpcError(Exception):
    """Base of every error of this package."""


class ImageError(AdpcError, ValueError):
    """The image to send cannot be read or has an unfit shape or dtype."""


class ConnectionFailedError(AdpcError, ConnectionError):
    """The server cannot be reached, or the connection broke before the answer was complete."""


class ServerSilentError(AdpcError, TimeoutError):
    """The server is connected but sent nothing for longer than `Timeout.silence_s` allows."""


class ProtocolError(AdpcError):
    """The server sent something that this client does not understand."""


class ReplyError(AdpcError):
    """The server answered with an error.

    `status`: the HTTP status (0 if only a WebSocket close code is known). `code`: its snake_case name.
    `id`: of the request, where known. `retry_after_s`: when to try again, where the server says so.
    """

    def __init__(
        self, message: str, *, status: int, code: str, id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.id = id
        self.retry_after_s = retry_after_s


class BadInputError(ReplyError):
    """400: a parameter or the image is wrong; the message names the limit."""


class NotFoundError(ReplyError):
    """404: no such model, or no such request is open."""


class TooLargeError(ReplyError):
    """413: more bytes or pixels than the server takes."""


class UnsupportedImageError(ReplyError):
    """415: not an image of a kind that the server reads."""


class RateLimitError(ReplyError):
    """429: this client's own limit; wait `retry_after_s`."""


class CancelledRequestError(ReplyError):
    """499: the request was cancelled by its id before it had an exit."""


class OverloadedError(ReplyError):
    """503: the server is overloaded, starting or draining; wait `retry_after_s`."""


class NoExitError(ReplyError, TimeoutError):
    """504: the deadline passed before the first exit (or before `min_exit`)."""


class ServerFaultError(ReplyError):
    """The server failed; its log knows the `id`."""


_BY_STATUS: Mapping[int, type[ReplyError]] = {
    400: BadInputError,
    404: NotFoundError,
    413: TooLargeError,
    415: UnsupportedImageError,
    429: RateLimitError,
    499: CancelledRequestError,
    503: OverloadedError,
    504: NoExitError,
}

_BY_CLOSE_CODE: Mapping[int, tuple[int, str]] = {
    1001: (503, "draining"),
    1003: (400, "not_json"),
    1008: (429, "refused"),
    1009: (413, "too_large"),
    1011: (500, "server_fault"),
    1013: (503, "overloaded"),
}


def reply_error(status: int, body: Mapping[str, Any], retry_after_s: float | None = None) -> ReplyError:
    """The error that an answer with `status` and an `{"error", "code", "id"}` body stands for."""
    kind = _BY_STATUS.get(status, ServerFaultError if status >= 500 else ReplyError)
    message = str(body.get("error") or f"the server answered with status {status} and no explanation")
    code = str(body.get("code") or f"status_{status}")
    identifier = body.get("id")
    return kind(
        message,
        status=status,
        code=code,
        id=None if identifier is None else str(identifier),
        retry_after_s=retry_after_s,
    )


def close_error(code: int | None, reason: str) -> AdpcError:
    """The error that a WebSocket closed with `code` in the middle of a request stands for (RFC 6455, 7.4)."""
    if code is not None and code in _BY_CLOSE_CODE:
        status, name = _BY_CLOSE_CODE[code]
        sentence = reason or f"the server closed the stream with code {code} ({name})"
        return reply_error(status, {"error": sentence, "code": name})
    closed = "broke" if code is None or code == 1006 else f"was closed with code {code}"
    return ConnectionFailedError(f"the connection {closed} before the answer was complete{reason and ': ' + reason}")
