"""Peers: the open connections of a server, and what all of them and each address may hold. Time is passed in.

When there is no room for one more connection, the one that has waited longest for a request gives way. When unfinished
messages take too much memory, the largest of the heaviest address is dropped. So connections and memory that a client
holds without using them go to newcomers.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from server.access.identity import network_of
from server.errors import ServerError, TooManyRequestsError, UnavailableError
from server.protocols.turns import ADDRESS_BURST, ADDRESS_RATE, FRESH, Allowance

CLOSE_S = 5.0
"""How long a connection may linger, see `Peer.linger`, and how long its client may take to read the last answer once it
is closed."""


@dataclass(frozen=True)
class PeerLimits:
    """What may be held at once, in total and by one address: connections, and bytes of unfinished messages."""

    connections: int
    connections_per_address: int
    unfinished_bytes: int
    unfinished_bytes_per_address: int


class Peer(asyncio.Protocol, ABC):
    """One connection, whichever protocol it speaks.

    `address`: the client's IP address. `network`: what limits per address count it under, see `network_of`.
    `allowance`: the steps that it may take without waiting for a turn. `held_bytes`: the size of its unfinished
    message. Times are in seconds of `time.monotonic()`, and infinite where they do not apply. `due_s`: when it is
    closed unless the bytes that it waits for arrive. `waits_since_s`: when it began to wait for a request.
    `unread_due_s`: when it is aborted unless its client reads. `lingers`: see `linger`.
    """

    transport: asyncio.Transport
    address = "unknown"
    due_s = math.inf
    waits_since_s = math.inf
    unread_due_s = math.inf
    held_bytes = 0
    lingers = False
    _cut_s = math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allowance = Allowance()

    @cached_property
    def network(self) -> str:
        """What limits per address count the connection under. The address is known before anybody asks."""
        return network_of(self.address)

    @abstractmethod
    def expire(self) -> None:
        """Close the connection, because the bytes that it waits for have not arrived by `due_s`."""

    @abstractmethod
    def give_way(self, error: ServerError) -> None:
        """Close the connection to make room for others. Send `error` first, if the protocol allows one now."""

    def linger(self, now_s: float) -> None:
        """Send nothing more, and close once the client does, or to make room, at the latest after `CLOSE_S`. If the
        connection were closed while the client still sends, the system would reset it, and the client could lose the
        last response (RFC 9112, section 9.6)."""
        self.lingers = True
        self.waits_since_s, self.due_s = -math.inf, now_s + CLOSE_S
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def check_time(self, now_s: float) -> None:
        """Close the connection if it is overdue, and abort it if the close takes longer than `CLOSE_S`."""
        if self.transport.is_closing():
            self._cut_s = min(self._cut_s, now_s + CLOSE_S)
            if now_s >= self._cut_s:
                self.transport.abort()
        elif now_s >= self.unread_due_s:
            self.transport.abort()
        elif now_s >= self.due_s:
            self.expire()


@dataclass
class _Network:
    """What the connections of one address hold, or of one /64 network of IPv6 addresses (see `network_of`)."""

    allowance: Allowance
    peers: dict[Peer, None] = field(default_factory=dict)
    held_bytes: int = 0


class Peers:
    """All connections. Each reports here what it holds."""

    LEFT = 10_000
    """The number of addresses without connections whose allowances are remembered."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._networks: dict[str, _Network] = {}
        self._left: OrderedDict[str, Allowance] = OrderedDict()
        """The allowances of addresses without connections, those that left last at the end. A client that opens one
        connection after the other has the allowance of one address."""
        self._count = 0
        self.held_bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, peer: Peer) -> ServerError | None:
        """Count a connection. Returns the error to close it with if no other connection can give way to it, else
        None."""
        limits = self._limits
        held = self._network(peer.network)
        held.peers[peer] = None
        self._count += 1
        if len(held.peers) > limits.connections_per_address and not self._make_room(held, peer):
            return TooManyRequestsError(
                f"{peer.network} has {limits.connections_per_address} connections, which is the limit "
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
        held = self._networks.get(peer.network)
        if held is None or peer not in held.peers:
            return
        self.hold(peer, 0)
        del held.peers[peer]
        self._count -= 1
        if not held.peers:
            del self._networks[peer.network]
            self._left[peer.network] = held.allowance
            if len(self._left) > self.LEFT:
                self._left.popitem(last=False)

    def replace(self, old: Peer, new: Peer) -> None:
        """Count the connection as `new` instead of `old`, because its protocol changed from HTTP to WebSocket."""
        new.address = old.address
        self.remove(old)
        self._network(new.network).peers[new] = None
        self._count += 1

    def _network(self, name: str) -> _Network:
        """What the connections of an address hold, also if it has none yet."""
        if name not in self._networks:
            left = self._left.pop(name) if name in self._left else Allowance(ADDRESS_RATE, ADDRESS_BURST)
            self._networks[name] = _Network(left)
        return self._networks[name]

    def allows(self, peer: Peer, now_s: float) -> bool:
        """Whether `peer` may take a step now; if not, it has to wait for its turn."""
        if not peer.allowance.take(now_s):
            return False
        held = self._networks.get(peer.network)
        return held is None or peer.allowance.used <= FRESH or held.allowance.take(now_s)

    def spend(self, peer: Peer, steps: float, now_s: float) -> bool:
        """Take this many further steps from the allowance of `peer`. Returns False if its next step has to wait for a
        turn."""
        may_go_on = peer.allowance.spend(steps, now_s)
        held = self._networks.get(peer.network)
        if held is not None and peer.allowance.used > FRESH:
            may_go_on &= held.allowance.spend(steps, now_s)
        return may_go_on

    def hold(self, peer: Peer, held_bytes: int) -> None:
        """Note the present size of the unfinished message of `peer`. Beyond a limit, the connection with the largest
        unfinished message gives way."""
        held = self._networks.get(peer.network)
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
            heaviest = max(self._networks.values(), key=lambda network: network.held_bytes)
            self._drop_largest(heaviest, limits.unfinished_bytes, "--max-unfinished-bytes")

    def sweep(self, now_s: float) -> None:
        """Close what is overdue. Call it a few times a second."""
        for held in list(self._networks.values()):
            for peer in list(held.peers):
                peer.check_time(now_s)

    def _drop_largest(self, held: _Network, limit_bytes: int, flag: str) -> None:
        largest = max(held.peers, key=lambda peer: peer.held_bytes)
        sentence = f"unfinished messages have {limit_bytes:,} bytes, which is the limit ({flag}); send this one later"
        self.hold(largest, 0)
        largest.give_way(UnavailableError(sentence, "overloaded", 1.0))

    def _largest(self) -> _Network:
        return max(self._networks.values(), key=lambda network: len(network.peers))

    def _make_room(self, held: _Network, newcomer: Peer) -> bool:
        """Close the connection of the network `held` that has been idle longest. Returns False if none is idle."""
        others = (peer for peer in held.peers if peer is not newcomer and peer.waits_since_s < math.inf)
        oldest = min(others, key=lambda peer: peer.waits_since_s, default=None)
        if oldest is None:
            return False
        self.remove(oldest)
        sentence = f"{len(held.peers)} other connections are open, and this one waited longest; open another one"
        oldest.give_way(UnavailableError(sentence, "overloaded", 1.0))
        return True
