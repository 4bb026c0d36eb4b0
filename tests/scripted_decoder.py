"""A decoding process that a test plays."""

import signal
import socket
from mmap import mmap

from live import until

from server.decoding.messages import DecoderAnswer, DecoderPlan


class ScriptedDecoder:
    """Hears what the lane hands over, and answers when the test wants."""

    status = -signal.SIGKILL

    def __init__(self, plan: DecoderPlan) -> None:
        self.connection, self._own = socket.socketpair()
        self._own.setblocking(False)
        self.plan = plan
        self.memory = mmap(-1, plan.memory_bytes)
        self.killed = self.waited_for = False

    def say(self, line: bytes) -> None:
        self._own.send(line)

    def hears(self) -> bool:
        """Whether there is a file that `hear` has not returned yet."""
        try:
            return self._own.recv(100, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return False

    async def hear(self) -> bytes:
        """The next file."""
        await until(self.hears)
        return self.hear_now()

    def hear_now(self) -> bytes:
        """The latest file that has come; there is one."""
        return self.memory[: int(self._own.recv(100).split()[-1])]

    def show(self, shade: int) -> None:
        """DecoderAnswer with an image of 2 x 4 pixels."""
        self.memory[self.plan.pixels_at : self.plan.pixels_at + 24] = bytes([shade]) * 24
        self.say(DecoderAnswer(2, 4).to_line())

    def die(self, status: int) -> None:
        self.status = status
        self._own.close()

    def kill(self) -> None:
        self.killed = True
        self._own.close()

    def wait(self) -> int:
        self.waited_for = True
        return self.status
