"""The open WebSockets, and how many there may be."""

from fastapi import WebSocket

from server.access.identity import Caller
from server.errors import TooManyRequestsError, UnavailableError
from server.requests.admission import ClientLimit


class OpenSockets(set[WebSocket]):
    """At most `most` sockets, and `most_per_address` of one address. `limit`: how many requests a caller may send."""

    def __init__(self, most: int, most_per_address: int, limit: ClientLimit) -> None:
        super().__init__()
        self._most, self._most_per_address, self._limit = most, most_per_address, limit

    def check(self, caller: Caller) -> None:
        """Raises UnavailableError or TooManyRequestsError if one socket too many is open, of all or of the caller's
        address, or if the caller has sent too many requests."""
        if len(self) > self._most:
            sentence = f"{self._most} sockets are open, which is the limit (--max-sockets); connect again later"
            raise UnavailableError(sentence, "overloaded", 1.0)
        own = sum(socket.client is not None and socket.client.host == caller.address for socket in self)
        if own > self._most_per_address:
            limit = f"{self._most_per_address} sockets, which is the limit (--max-sockets-per-address)"
            raise TooManyRequestsError(f"{caller.address} has {limit}; close some", "client_limit", 1.0)
        self._limit.check_token(caller.name)
