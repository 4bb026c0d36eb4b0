"""Peers: the open connections of a server, and what all of them and each address may hold. Time is passed in.

When there is no room for one more connection, the one that has waited longest for a request gives way. When unfinished
messages take too much memory, the largest of the heaviest address is dropped. So a client that holds much and does
nothing with it loses it to those that come, whoever they are.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from server.errors import ServerError, TooManyRequestsError, UnavailableError
from server.protocols.turns import ADDRESS_BURST, ADDRESS_RATE, FRESH, Allowance

CLOSE_S = 5.0
"""A connection that ends with an error is cut if its client has not read the error after this time."""


@dataclass(frozen=True)
class PeerLimits:
    """What may be held at once, in total and by one address: connections, and bytes of unfinished messages."""

    connections: int
    connections_per_address: int
    unfinished_bytes: int
    unfinished_bytes_per_address: int


class Peer(asyncio.Protocol, ABC):
    """One connection, whichever protocol it speaks.

    `address`: the client's, or the network of an IPv6 client, see `identity.network_of`. `allowance`: the steps that it
    may take without waiting for a turn. `due_s`: when it is closed unless something happens; infinite: never.
    `waits_since_s`: since when it waits for a request; infinite while one is served. `unread_due_s`: when it is cut off
    unless its client reads. `held_bytes`: of its unfinished message.
    """

    transport: asyncio.Transport
    address = "unknown"
    due_s = math.inf
    waits_since_s = math.inf
    unread_due_s = math.inf
    held_bytes = 0
    _cut_s = math.inf

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.allowance = Allowance()

    @abstractmethod
    def expire(self) -> None:
        """Close the connection: what it waits for has not come in time."""

    @abstractmethod
    def give_way(self, error: ServerError) -> None:
        """Close the connection, since others need the room; `error` tells the client, if it can be told."""

    def check_time(self, now_s: float) -> None:
        """Close the connection if it is overdue, and cut it if it was closed a while ago."""
        if self.transport.is_closing():
            self._cut_s = min(self._cut_s, now_s + CLOSE_S)
            if now_s >= self._cut_s:
                self.transport.abort()
        elif now_s >= self.unread_due_s:
            self.transport.abort()
        elif now_s >= self.due_s:
            self.expire()


@dataclass
class _Address:
    """What one address holds."""

    peers: dict[Peer, None] = field(default_factory=dict)
    held_bytes: int = 0
    allowance: Allowance = field(default_factory=lambda: Allowance(ADDRESS_RATE, ADDRESS_BURST))


class Peers:
    """All connections. They report to it what they hold."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._addresses: dict[str, _Address] = {}
        self._count = 0
        self.held_bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, peer: Peer) -> ServerError | None:
        """Count a connection. Returns why it must be closed at once, if nobody can give way to it."""
        limits = self._limits
        held = self._addresses.setdefault(peer.address, _Address())
        held.peers[peer] = None
        self._count += 1
        if len(held.peers) > limits.connections_per_address and not self._make_room(held, peer):
            return TooManyRequestsError(
                f"{peer.address} has {limits.connections_per_address} connections, which is the limit "
                "(--max-connections-per-address); close some",
                "client_limit",
                1.0,
            )
        if self._count > limits.connections and not self._make_room(self._largest(), peer):
            return UnavailableError(
                f"{limits.connections} connections are open, which is the limit (--max-connections); try again later",
                "overloaded",
                1.0,
            )
        return None

    def remove(self, peer: Peer) -> None:
        """Forget a connection. Does nothing if it was forgotten before."""
        held = self._addresses.get(peer.address)
        if held is None or peer not in held.peers:
            return
        self.hold(peer, 0)
        del held.peers[peer]
        self._count -= 1
        if not held.peers:
            del self._addresses[peer.address]

    def replace(self, old: Peer, new: Peer) -> None:
        """The same connection speaks another protocol now."""
        new.address = old.address
        self.remove(old)
        self._addresses.setdefault(new.address, _Address()).peers[new] = None
        self._count += 1

    def allows(self, peer: Peer, now_s: float) -> bool:
        """Whether `peer` may take a step now; if not, it has to wait for its turn."""
        if not peer.allowance.take(now_s):
            return False
        held = self._addresses.get(peer.address)
        return held is None or peer.allowance.used <= FRESH or held.allowance.take(now_s)

    def spend(self, peer: Peer, steps: float, now_s: float) -> bool:
        """Count what `peer` did as so many steps more. Returns False if it has to wait for its turn with the next."""
        may_go_on = peer.allowance.spend(steps, now_s)
        held = self._addresses.get(peer.address)
        if held is not None and peer.allowance.used > FRESH:
            may_go_on &= held.allowance.spend(steps, now_s)
        return may_go_on

    def hold(self, peer: Peer, held_bytes: int) -> None:
        """The unfinished message of `peer` has so many bytes now. The largest is dropped if that is too much."""
        held = self._addresses.get(peer.address)
        if held is None or peer not in held.peers:
            return
        more = held_bytes - peer.held_bytes
        peer.held_bytes = held_bytes
        held.held_bytes += more
        self.held_bytes += more
        if more <= 0:
            return
        limits = self._limits
        if held.held_bytes > limits.unfinished_bytes_per_address:
            self._drop_largest(held, limits.unfinished_bytes_per_address, "--max-unfinished-bytes-per-address")
        elif self.held_bytes > limits.unfinished_bytes:
            heaviest = max(self._addresses.values(), key=lambda address: address.held_bytes)
            self._drop_largest(heaviest, limits.unfinished_bytes, "--max-unfinished-bytes")

    def sweep(self, now_s: float) -> None:
        """Close what is overdue. Call it a few times a second."""
        for held in list(self._addresses.values()):
            for peer in list(held.peers):
                peer.check_time(now_s)

    def _drop_largest(self, held: _Address, limit_bytes: int, flag: str) -> None:
        largest = max(held.peers, key=lambda peer: peer.held_bytes)
        sentence = f"unfinished messages have {limit_bytes:,} bytes, which is the limit ({flag}); send this one later"
        self.hold(largest, 0)
        largest.give_way(UnavailableError(sentence, "overloaded", 1.0))

    def _largest(self) -> _Address:
        return max(self._addresses.values(), key=lambda address: len(address.peers))

    def _make_room(self, held: _Address, newcomer: Peer) -> bool:
        """Close the connection of an address that has waited longest for a request. Returns False if none waits."""
        others = (peer for peer in held.peers if peer is not newcomer and peer.waits_since_s < math.inf)
        oldest = min(others, key=lambda peer: peer.waits_since_s, default=None)
        if oldest is None:
            return False
        self.remove(oldest)
        sentence = f"{len(held.peers)} other connections are open, and this one waited longest; open another one"
        oldest.give_way(UnavailableError(sentence, "overloaded", 1.0))
        return True
