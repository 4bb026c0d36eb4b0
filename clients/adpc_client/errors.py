"""The errors of `adpc_client`, as one tree.

A wrong argument, such as an infinite deadline or a malformed URL, is a ValueError and no AdpcError.

AdpcError
├── ImageError (ValueError)                the argument is not an image
├── ConnectionFailedError (ConnectionError)    the connection failed or broke
├── ServerSilentError (TimeoutError)       the server sent nothing for longer than `Timeout.silence_s`
├── ProtocolError                          the answer is malformed; is this an anytime server?
└── ReplyError                             the server answered with an error
    ├── BadInputError          400
    ├── NotFoundError          404
    ├── TooLargeError          413
    ├── UnsupportedImageError  415
    ├── RateLimitError         429
    ├── CancelledRequestError  499
    ├── OverloadedError        503         the server is overloaded, starting or draining
    ├── NoExitError            504 (TimeoutError)   no exit came in time
    └── ServerFaultError       500 and other 5xx
"""

from collections.abc import Mapping
from typing import Any


class AdpcError(Exception):
    """The base class of every error of this package."""


class ImageError(AdpcError, ValueError):
    """The image cannot be read, or its array has the wrong shape or dtype."""


class ConnectionFailedError(AdpcError, ConnectionError):
    """The server cannot be reached, or the connection broke before the answer was complete."""


class ServerSilentError(AdpcError, TimeoutError):
    """The server is connected but sent nothing for longer than `Timeout.silence_s` allows."""


class ProtocolError(AdpcError):
    """The server sent a message that this client does not understand."""


class ReplyError(AdpcError):
    """The server answered with an error.

    `status` is the HTTP status, 0 if the server named none. `code` is the error's snake_case name. `id` is the
    request's, None if unknown. `retry_after_s` is the time to wait before another try, None if the server names none.
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
    """400: a parameter or the image is wrong. The message names the limit."""


class NotFoundError(ReplyError):
    """404: the server has no such model, or no open request with this id."""


class TooLargeError(ReplyError):
    """413: the image has more bytes or pixels than the server accepts."""


class UnsupportedImageError(ReplyError):
    """415: the bytes are no image in a format that the server reads."""


class RateLimitError(ReplyError):
    """429: this client has reached its limit; wait `retry_after_s`."""


class CancelledRequestError(ReplyError):
    """499: the request was cancelled by its id before the first exit."""


class OverloadedError(ReplyError):
    """503: the server is overloaded, starting or draining; wait `retry_after_s`."""


class NoExitError(ReplyError, TimeoutError):
    """504: the deadline passed before the first exit, or before `min_exit`."""


class ServerFaultError(ReplyError):
    """500 and other 5xx: the server failed. Its log names the `id`."""


_CODES_OF_AN_IMAGE = ("broken_image", "too_many_scans")
"""The codes of a BadInputError that concern the image. Others concern the options, which all images may share."""


def concerns_one_image(error: AdpcError) -> bool:
    """Whether the `error` is about this image alone, so that the next one may be answered."""
    if isinstance(error, BadInputError):
        return error.code in _CODES_OF_AN_IMAGE
    return isinstance(error, ImageError | TooLargeError | UnsupportedImageError)


def concerns_the_moment(error: AdpcError) -> bool:
    """Whether the server could not answer just now."""
    return isinstance(error, NoExitError | OverloadedError | RateLimitError | ServerFaultError | CancelledRequestError)


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
    1012: (503, "replica_lost"),
    1013: (503, "overloaded"),
}


def reply_error(status: int, body: Mapping[str, Any], retry_after_s: float | None = None) -> ReplyError:
    """The error for an answer with `status` and a body like `{"error", "code", "id"}`."""
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
    """The error for a WebSocket that closed with `code` before a request was answered (RFC 6455, section 7.4)."""
    if code is not None and code in _BY_CLOSE_CODE:
        status, name = _BY_CLOSE_CODE[code]
        sentence = reason or f"the server closed the stream with code {code} ({name})"
        return reply_error(status, {"error": sentence, "code": name})
    closed = "broke" if code is None or code == 1006 else f"was closed with code {code}"
    return ConnectionFailedError(f"the connection {closed} before the answer was complete{reason and ': ' + reason}")
