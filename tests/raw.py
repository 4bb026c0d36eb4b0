"""Raw connections for attacks on a real server: what they send is up to the caller, and so is whether they read."""

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acceptance import Client, Server
from wire import HANDSHAKE

ELSEWHERE = "127.0.0.2"
"""Another address of this machine, from which a client counts as another one than the probe."""


@dataclass
class Raw:
    """One connection. `written_bytes`: what it has sent. `dripping`: a task that goes on sending."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    written_bytes: int = 0
    dripping: asyncio.Task[None] | None = None

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        self.written_bytes += len(data)
        await self.writer.drain()

    async def closed_within(self, seconds: float, unread: bool = False) -> float | None:
        """The seconds until the server closes; None if it has not by then. `unread`: nothing is read meanwhile, and the
        server can only be seen to have closed when a byte to it fails."""
        began_s = time.monotonic()
        with suppress(ConnectionError):
            try:
                async with asyncio.timeout(seconds):
                    while unread or await self.reader.read(65536):
                        if unread:
                            await self.send(b"\x89\x80\0\0\0\0")  # a ping
                            await asyncio.sleep(0.25)
            except TimeoutError:
                return None
        return time.monotonic() - began_s

    def hang_up(self) -> None:
        if self.dripping is not None:
            self.dripping.cancel()
        self.writer.transport.abort()


async def connect(port: int, address: str = ELSEWHERE, buffer_bytes: int | None = None) -> Raw:
    """`buffer_bytes`: the size of the kernel's buffer for what comes, for a client that does not read."""
    plain = socket.socket()
    if buffer_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    plain.setblocking(False)
    plain.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    return Raw(*await asyncio.open_connection(sock=plain, limit=1024 if buffer_bytes else 2**16))


async def connect_socket(port: int, address: str = ELSEWHERE, buffer_bytes: int | None = None) -> Raw:
    """A WebSocket."""
    raw = await connect(port, address, buffer_bytes)
    await raw.send(HANDSHAKE + b"\r\n")
    await raw.reader.readuntil(b"\r\n\r\n")
    return raw


async def in_another_process(program: str, *arguments: str) -> None:
    """Run the attackers of `program` there, so that what they do does not delay the probe."""
    process = await asyncio.create_subprocess_exec(sys.executable, program, "--attack", *arguments)
    if await process.wait():
        raise RuntimeError(f"the attackers of {program} failed")


class Watched(Server):
    """A server whose log and memory can be looked at."""

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        self.log = (await self._log).decode(errors="replace")
        self.status = self._process.returncode

    def memory_mib(self) -> float:
        """The memory of the front end that it shares with no file: what its clients make it hold."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    def cpu_s(self) -> float:
        """The CPU time that the front end has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def loop_ms(self) -> float:
        """How long the event loop takes to answer a small request."""
        client = Client(self.port)
        answer = await client.send("/health/live")
        client.hang_up()
        return 1000 * answer.seconds


def log_is_clean(server: Watched) -> bool:
    """Print how long the log of a server is that has ended. Returns whether it ended well and logged no traceback."""
    clean = "Traceback" not in server.log and server.status == 0
    print(f"{'ok   ' if clean else 'FAULT'} the log has {len(server.log.splitlines())} lines and no traceback")
    return clean
