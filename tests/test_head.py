"""How the head of a response is written."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from wire import Transport, Wire, on_a_wire

from server.protocols.head import CONTINUE, JOINED_BYTES, HeldHead


def cycle(transport: asyncio.Transport, **fields: bool) -> Any:
    """What uvicorn knows of one request and its response."""
    return SimpleNamespace(**({"transport": transport, "keep_alive": True, "waiting_for_100_continue": False} | fields))


SMALL, LARGE = b"x" * JOINED_BYTES, b"x" * (JOINED_BYTES + 1)


class Counted(Transport):
    """Remembers each call, in `written`'s order."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.calls: list[Any] = []

    def write(self, data: Any) -> None:
        self.calls.append(data)

    def close(self) -> None:
        super().close()
        self.calls.append("close")


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        (["head", b"body"], [b"headbody"]),
        (["head", SMALL, b"more"], [b"head" + SMALL, b"more"]),
        (["head", LARGE, b"more"], [b"head", LARGE, b"more"]),
        (["head", "turn", b"body", "turn"], [b"head", b"body"]),
        (["head", "turn", "turn"], [b"head"]),
        (["head", "close", "turn"], [b"head", "close"]),
        (["head", b"body", "close"], [b"headbody", "close"]),
        (["head", "lost", "turn"], ["close"]),
    ],
)
def test_the_head_is_written_with_the_body_that_follows_at_once(steps: list[Any], calls: list[Any]) -> None:
    async def check() -> None:
        transport = Counted("192.0.2.1")
        held = HeldHead(cycle(transport), asyncio.get_running_loop(), lambda _: transport.close())
        for step in steps:
            if step == "turn":
                await asyncio.sleep(0)
            elif step == "close":
                held.close()
            elif step == "lost":
                transport.close()
            else:
                held.write(step.encode() if isinstance(step, str) else step)
        assert transport.calls == calls and held.is_closing() is transport.closed

    asyncio.run(check())


@pytest.mark.parametrize("keeps_alive", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_the_answer_to_a_client_that_was_not_told_to_send_its_body_is_the_last(told: bool, keeps_alive: bool) -> None:
    async def check() -> None:
        transport = Counted("192.0.2.1")
        waiting = cycle(transport, keep_alive=keeps_alive, waiting_for_100_continue=True)
        held = HeldHead(waiting, asyncio.get_running_loop(), lambda _: transport.close())
        if told:
            held.write(CONTINUE)
        held.write(b"HTTP/1.1 200 \r\n\r\n")
        held.write(b"body")
        last = b"connection: close\r\n" if keeps_alive and not told else b""  # uvicorn writes its own
        assert transport.calls == [CONTINUE] * told + [b"HTTP/1.1 200 \r\n" + last + b"\r\nbody"]
        assert waiting.keep_alive is (told and keeps_alive)

    asyncio.run(check())


def test_an_answer_is_one_write() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport, calls = wire.connect(), list[bytes]()
        transport.write = calls.append  # type: ignore[method-assign]
        for number in range(2):
            await wire.send(transport, b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert len(calls) == number + 1 and calls[-1].startswith(b"HTTP/1.1 200") and calls[-1].endswith(b"ok")

    on_a_wire(check)
