"""The caller, who sent a request, and the owner, who may look it up and cancel it. Pure."""

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from server.errors import InvalidError

MIN_TOKEN, MAX_TOKEN = 16, 256


Owner = tuple[str, str | bytes]
"""Who may look a request up and cancel it: the kind of proof, and the proof."""

ANYONE: Owner = ("id", "")
"""The owner of a request whose id the server made: whoever knows the id, because it cannot be guessed."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    `address`: the client's IP address. `key`: the name of its API key, or None. `token`: the digest of the secret that
    the request carries in `X-Request-Token`, or None. Only digests are compared, so that the time of a look-up reveals
    nothing about the secret. `waited_s`: the seconds that an HTTP request had waited at a trusted proxy when it came; 0
    for a WebSocket, since its requests come after the handshake.
    """

    address: str = "unknown"
    key: str | None = None
    token: bytes | None = None
    waited_s: float = 0.0

    @property
    def name(self) -> str:
        """The name by which budgets and logs identify the caller: the name of its API key, or else its address."""
        return self.key or self.address

    @property
    def network(self) -> str:
        """The name by which limits per address and fair shares count the caller: its key, or else its `network_of`."""
        return self.key or network_of(self.address)

    def owner(self, *, made_id: bool) -> Owner:
        """Who may look up a request that this caller sends. `made_id`: the server makes up its id."""
        if self.key is not None:
            return ("key", self.key)
        if self.token is not None:
            return ("token", self.token)
        return ANYONE if made_id else ("address", self.address)

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Every owner that this caller can prove to be, the most specific first."""
        if self.key is not None:
            return (("key", self.key),)
        token = () if self.token is None else (("token", self.token),)
        return (*token, ("address", self.address), ANYONE)


SOMEBODY = Caller()
CALLER = "anytime.caller"
"""The key of the ASGI scope that holds the `Caller`."""


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """The sender of the request of an ASGI scope, which the guard has put there."""
    found: Caller = scope.get(CALLER, SOMEBODY)
    return found


@lru_cache(4096)
def network_of(address: str) -> str:
    """The name by which limits per address count `address`: the /64 network of an IPv6 address, because one host can
    use every address of its network; else the address. IPv4 addresses that are written as IPv6 ones are IPv4."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))


def token_digest(token: str) -> bytes:
    """Raises InvalidError if the token is one that could be guessed, or is too long."""
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN:
        raise InvalidError(
            f"X-Request-Token has {len(token)} characters; send a random secret of {MIN_TOKEN} to {MAX_TOKEN}",
            "bad_token",
        )
    return hashlib.sha256(token.encode()).digest()
