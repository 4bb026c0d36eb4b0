"""Python client of the anytime inference server.

The first answer comes early; every further exit brings a better one until the deadline.
"""

from adpc_client.async_client import AsyncClient
from adpc_client.client import Client
from adpc_client.errors import (
    AdpcError,
    BadInputError,
    CancelledRequestError,
    ConnectionFailedError,
    ImageError,
    NoExitError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    RateLimitError,
    ReplyError,
    ServerFaultError,
    ServerSilentError,
    TooLargeError,
    UnsupportedImageError,
)
from adpc_client.follow import AsyncFollow, Follow
from adpc_client.labels import Labels
from adpc_client.options import Timeout
from adpc_client.results import End, Exit, ExitCost, Latest, Model, Prediction, Timing
from adpc_client.stream import AsyncStream, Stream

__all__ = [
    "AdpcError",
    "AsyncClient",
    "AsyncFollow",
    "AsyncStream",
    "BadInputError",
    "CancelledRequestError",
    "Client",
    "ConnectionFailedError",
    "End",
    "Exit",
    "ExitCost",
    "Follow",
    "ImageError",
    "Labels",
    "Latest",
    "Model",
    "NoExitError",
    "NotFoundError",
    "OverloadedError",
    "Prediction",
    "ProtocolError",
    "RateLimitError",
    "ReplyError",
    "ServerFaultError",
    "ServerSilentError",
    "Stream",
    "Timeout",
    "Timing",
    "TooLargeError",
    "UnsupportedImageError",
]
