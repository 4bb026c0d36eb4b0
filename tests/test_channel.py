"""The channel to a worker that is a pipe."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from multiprocessing import Pipe
from typing import Any

import pytest
from live import until

from server.engine.channel import Channel
from server.engine.framing import framed
from server.engine.messages import Beat, Cancel, Ended, Event, MoveDeadline, Stop


class Line:
    """A channel, its other end, and what was heard over it."""

    def __init__(self) -> None:
        ours, self.worker = Pipe()
        self.heard: list[Event] = []
        self.hang_ups = 0
        self.channel = Channel(ours, self.heard.append, self._hung_up)

    def _hung_up(self) -> None:
        self.hang_ups += 1
        self.channel.close()


def run(check: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
    async def checked() -> None:
        line = Line()
        await check(line)
        if not line.hang_ups:
            line.channel.close()
        line.worker.close()

    asyncio.run(checked())


def test_events_are_heard_until_the_worker_hangs_up() -> None:
    async def check(line: Line) -> None:
        line.worker.send(Beat())
        line.worker.send(Beat())
        line.worker.close()
        await until(lambda: line.hang_ups)
        assert line.heard == [Beat(), Beat()]

    run(check)


def test_an_event_that_cannot_be_handled_does_not_hold_up_those_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check(line: Line) -> None:
        def hear(event: Event) -> None:
            line.heard.append(event)
            if event == Beat():
                raise ZeroDivisionError

        line.channel._hear = hear
        ended = Ended(7, Stop.COMPLETE)
        os.write(line.worker.fileno(), framed(Beat()) + framed(ended))
        await until(lambda: len(line.heard) == 2)
        assert line.heard == [Beat(), ended] and "could not be handled: Beat()" in caplog.text

    run(check)


def test_commands_wait_while_the_worker_does_not_read() -> None:
    async def check(line: Line) -> None:
        told = [Cancel(key) for key in range(5000)]
        for command in told:
            line.channel.say(command)
        for second in range(1000):
            line.channel.say(MoveDeadline(7, float(second)))
        assert 0 < len(line.channel._unsent) < len(told)
        heard: list[object] = []

        def hear() -> bool:
            while line.worker.poll():
                heard.append(line.worker.recv())
            return heard[-1:] == [MoveDeadline(7, 999.0)]

        await until(hear)
        assert heard == [*told, MoveDeadline(7, 999.0)]
        line.channel.say(Cancel(1))
        assert line.worker.recv() == Cancel(1)

    run(check)


def test_events_may_come_in_parts_and_be_large() -> None:
    async def check(line: Line) -> None:
        told = [Ended(key, Stop.ERROR, error="x" * 300_000) for key in range(3)]
        stream = b"".join(framed(event) for event in told)
        at = 0
        while at < len(stream):
            at += os.write(line.worker.fileno(), stream[at : at + 10_000])
            for _ in range(3):
                await asyncio.sleep(0)
        await until(lambda: len(line.heard) == 3)
        assert line.heard == told and not line.hang_ups

    run(check)


def test_speaking_to_a_worker_that_does_not_listen_is_no_error() -> None:
    async def check(line: Line) -> None:
        line.worker.send(Beat())
        line.worker.close()
        line.channel.say(Cancel(1))
        assert not line.channel._unsent
        await until(lambda: line.hang_ups)
        assert line.heard == [Beat()]  # what it said before is heard all the same

    run(check)


def test_a_channel_that_is_closed_with_commands_unsent_leaves_its_socket_alone() -> None:
    """Its number may soon be that of another connection."""

    async def check() -> None:
        ours, worker = Pipe()
        channel, fd = Channel(ours, print, print), ours.fileno()
        for key in range(5000):
            channel.say(Cancel(key))
        assert channel._unsent
        channel.close()
        loop = asyncio.get_running_loop()
        assert not loop.remove_writer(fd) and not loop.remove_reader(fd)
        worker.close()

    asyncio.run(check())
