"""How the server accepts connections."""

import asyncio
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import live
from hosts import UvicornHost

from server.__main__ import LISTENERS

CLIENTS = 32


def test_connections_that_come_together_are_accepted_in_few_turns_of_the_event_loop(tmp_path: Path) -> None:
    with live.scripted(live.write_configs(tmp_path), hosted_by="own") as (server, _), ExitStack() as clients:
        assert isinstance(server.host, UvicornHost)
        connections = server.host.server.server_state.connections
        holds, may_go_on = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            may_go_on.wait(live.PATIENCE_S)

        async def turns() -> int:
            number = 0
            while len(connections) < CLIENTS:
                await asyncio.sleep(0)
                number += 1
            return number

        server.loop.call_soon_threadsafe(hold)
        assert holds.wait(live.PATIENCE_S)
        for _ in range(CLIENTS):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        counted = asyncio.run_coroutine_threadsafe(turns(), server.loop)
        may_go_on.set()
        assert counted.result(live.PATIENCE_S) <= CLIENTS / LISTENERS + 2
