"""Helpers of tests that send requests over a transport of the load generator."""

from typing import Any

from adpc_client.load import PlannedRequest
from adpc_client.load.payloads import Payload
from adpc_client.load.transport import LoadReply, LoadRequest, LoadTransport, OpenRequest

IMAGE = Payload(b"\x89PNG" * 30_000, "image/png", 4, 2)


def request(name: str = "r", **planned: Any) -> LoadRequest:
    return LoadRequest(name, PlannedRequest(0.0, **planned), 80.0, IMAGE)


async def sent(transport: LoadTransport, name: str = "r", **planned: Any) -> Any:
    """Send a request, and open a connection first if none is free. Returns the `OpenRequest`."""
    wanted = request(name, **planned)
    opened: OpenRequest | None = transport.open(wanted)
    if opened is None:
        await transport.connect([wanted.planned.client])
        opened = transport.open(wanted)
    assert opened is not None
    return opened


async def reply(transport: LoadTransport, name: str = "r", **planned: Any) -> LoadReply:
    """Send a request, and wait for its reply."""
    opened: OpenRequest = await sent(transport, name, **planned)
    return await opened.reply
