"""The gate: what all connections of a server share."""

from dataclasses import dataclass

from server.protocols.complaints import Complaints
from server.protocols.peers import PeerLimits, Peers
from server.protocols.turns import Turns
from server.settings import Settings


@dataclass(frozen=True)
class Gate:
    """The open connections, their turns, the log of their errors, and the settings with their time limits."""

    settings: Settings
    peers: Peers
    turns: Turns
    complaints: Complaints


def make_gate(settings: Settings, connections: int) -> Gate:
    """Make the gate of a server. `connections`: how many may be open at once."""
    limits = PeerLimits(
        connections=connections,
        # At most half, so that one address cannot keep all others out.
        connections_per_address=min(settings.max_connections_per_address, max(1, connections // 2)),
        unfinished_bytes=settings.max_unfinished_bytes,
        unfinished_bytes_per_address=settings.max_unfinished_bytes_per_address,
    )
    return Gate(settings, Peers(limits), Turns(), Complaints())
