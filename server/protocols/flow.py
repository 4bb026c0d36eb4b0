"""Flow control: pausing the reading from a connection, and the limit on the time that its answers stay unread."""

import asyncio
import socket

from uvicorn.protocols.http.flow_control import FlowControl


class HeldFlow(FlowControl):
    """uvicorn's flow control. While `held` is True, reading stays paused even if the application waits for a body."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


def limit_unread(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Let the system abort a connection whose client has taken no byte for so long (`TCP_USER_TIMEOUT`, RFC 5482)."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))
