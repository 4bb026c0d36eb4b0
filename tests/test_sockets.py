"""How many WebSockets may be open, of all clients and of one address."""

from typing import Any

import pytest

from server.access.identity import CALLER, Caller
from server.errors import TooManyRequestsError, UnavailableError
from server.requests.admission import ClientLimit
from server.requests.sockets import OpenSockets


class Socket:
    def __init__(self, caller: Caller) -> None:
        self.scope = {CALLER: caller}


def test_only_so_many_sockets_are_open_and_so_many_of_one_address() -> None:
    sockets = OpenSockets(3, 2, ClientLimit(0, 1))

    def open_one(address: str) -> Any:
        caller = Caller(address)
        socket: Any = Socket(caller)
        sockets.add(socket)
        sockets.check(caller)
        return socket

    first, _ = open_one("2001:db8::1"), open_one("2001:db8::2")
    with pytest.raises(TooManyRequestsError, match=r"2001:db8::/64 has 2 sockets, .*--max-sockets-per-address"):
        open_one("2001:db8::3")
    with pytest.raises(UnavailableError, match=r"3 sockets are open, .*--max-sockets"):
        open_one("192.0.2.1")
    for socket in list(sockets - {first}):
        sockets.discard(socket)
    open_one("2001:db8::4")
