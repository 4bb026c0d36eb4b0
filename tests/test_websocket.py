"""WebSocket connections, frame by frame: limits and times. test_stream.py has whole requests."""

import logging

import pytest
from websockets.frames import Frame, Opcode
from wire import Wire, close_code, frame, on_a_wire

from server.protocols.pieces import FRAGMENT_BYTES
from server.protocols.turns import BURST
from server.protocols.websocket import WebSocketProtocol

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
TURN = WebSocketProtocol.FRAMES_PER_TURN

FLOODS = {
    "empty pings": (frame(PING) * 10_000, 1008),
    "pongs": (frame(PONG, b"abcd") * 10_000, 1008),
    "empty fragments": (frame(TEXT, final=False) + frame(CONTINUATION, final=False) * 1100, 1008),
    "a text that is no UTF-8, and a close": (frame(TEXT, b"\xff") + frame(CLOSE, b"\x03\xe8"), 1007),
    "half a character, in two frames": (frame(TEXT, b"\xc3", final=False) + frame(CONTINUATION, b"("), 1007),
    "a reserved opcode": (frame(3), 1002),
    "a fragment of nothing": (frame(CONTINUATION), 1002),
    "a frame that is too long": (frame(BINARY, b"x" * 300_000), 1009),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_what_no_honest_client_sends_closes_the_connection(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data, code = FLOODS[kind]

    async def check(wire: Wire) -> None:
        wire.application.hears.set()
        transport = await wire.open_socket()
        await wire.send(transport, data)
        await wire.take_turns()
        assert transport.closed and close_code(transport.written) == code
        assert wire.application.messages == [] and wire.gate.peers.held_bytes == 0

    with caplog.at_level(logging.WARNING):
        on_a_wire(check, max_body_bytes=100_000)
    assert len(caplog.records) == 1 and not caplog.records[0].exc_info


@pytest.mark.parametrize(("opcode", "payload"), [(BINARY, b"\0"), (TEXT, b"{}")])
def test_tiny_messages_beyond_the_allowance_wait_for_turns(opcode: int, payload: bytes) -> None:
    async def check(wire: Wire) -> None:
        wire.application.hears.set()
        transport = await wire.open_socket()
        await wire.send(transport, frame(opcode, payload) * 20_000)
        heard = len(wire.application.messages)
        assert BURST - 3 <= heard <= BURST and not transport.reading  # a large read counts, too
        wire.gate.turns.run()
        await wire.settle()
        assert heard < len(wire.application.messages) <= heard + TURN

    on_a_wire(check)


def test_a_message_is_read_once_the_one_before_it_is_heard() -> None:
    async def check(wire: Wire) -> None:
        transport = await wire.open_socket(more=frame(TEXT, b"a") + frame(TEXT, b"b") + frame(PING) + frame(TEXT, b"c"))
        assert not transport.reading and transport.protocol.queue.qsize() == 1
        wire.application.hears.set()
        await wire.settle()
        assert wire.application.messages == ["a", "b", "c"] and transport.reading
        assert transport.written == b"\x8a\x00"  # the pong

    on_a_wire(check)


def test_frames_may_come_byte_by_byte() -> None:
    async def check(wire: Wire) -> None:
        wire.application.hears.set()
        transport = await wire.open_socket()
        data = frame(BINARY, b"x" * 200, final=False) + frame(PING, b"p") + frame(CONTINUATION, b"y")
        for byte in data:
            transport.protocol.data_received(bytes([byte]))
        await wire.settle()
        assert wire.application.messages == [b"x" * 200 + b"y"] and transport.written == b"\x8a\x01p"
        assert wire.gate.peers.held_bytes == 0

    on_a_wire(check)


def test_unfinished_messages_take_so_much_memory_and_no_more() -> None:
    async def check(wire: Wire) -> None:
        transports = [await wire.open_socket(f"192.0.2.{number}") for number in range(4)]
        for size, transport in enumerate(transports, 4):
            await wire.send(transport, frame(BINARY, b"x" * 2**23)[: size * 2**17])
        assert [transport.closed for transport in transports] == [False, False, False, True]
        assert close_code(transports[3].written) == 1013
        assert wire.gate.peers.held_bytes == (4 + 5 + 6) * 2**17

    on_a_wire(check, max_unfinished_bytes=2**21)


SLOW = {
    "silence": (b"", 299.9, 1001),
    "half a message": (frame(BINARY, b"x" * 200)[:50], 29.9, 1008),
    "fragments": (frame(BINARY, b"x" * 200, final=False), 29.9, 1008),
    "silence after a message": (frame(TEXT, b"x"), 299.9, 1001),
}


@pytest.mark.parametrize("kind", SLOW)
def test_who_is_too_slow_is_closed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data, within_s, code = SLOW[kind]

    async def check(wire: Wire) -> None:
        wire.application.hears.set()
        transport = await wire.open_socket()
        wire.after(200.0)
        await wire.send(transport, frame(TEXT, b"x") + data)
        wire.after(within_s)
        assert not transport.closed
        wire.after(0.2)
        assert transport.closed and close_code(transport.written) == code

    with caplog.at_level(logging.WARNING):
        on_a_wire(check)
    assert len(caplog.records) == (code == 1008), "a client may well have nothing to say"


def test_who_does_not_read_is_cut_off() -> None:
    async def check(wire: Wire) -> None:
        transport = await wire.open_socket()
        transport.protocol.pause_writing()
        wire.after(19.9)
        assert not transport.aborted
        wire.after(0.2)
        assert transport.aborted

    on_a_wire(check)


def test_who_has_read_all_is_not_cut_off() -> None:
    async def check(wire: Wire) -> None:
        transport = await wire.open_socket()
        transport.protocol.pause_writing()
        wire.after(10.0)
        transport.protocol.resume_writing()
        wire.after(30.0)
        assert not transport.closed

    on_a_wire(check)


def test_a_socket_on_which_the_server_speaks_is_not_idle() -> None:
    async def check(wire: Wire) -> None:
        transport = await wire.open_socket()
        wire.after(200.0)
        await transport.protocol.send({"type": "websocket.send", "text": "x"})
        wire.after(299.9)
        assert not transport.closed
        wire.after(0.2)
        assert transport.closed and close_code(transport.written) == 1001

    on_a_wire(check)


@pytest.mark.parametrize("segment_bytes", [1001, FRAGMENT_BYTES + 1, 10 * FRAGMENT_BYTES])
@pytest.mark.parametrize("rest_bytes", [0, 1, 200])
def test_a_large_frame_is_unmasked_in_fragments(segment_bytes: int, rest_bytes: int) -> None:
    image = bytes(range(251)) * (3 * FRAGMENT_BYTES // 251 + 1)
    image = image[: 3 * FRAGMENT_BYTES + rest_bytes]
    halves = image[: len(image) // 2], image[len(image) // 2 :]
    messages = [
        Frame(Opcode.BINARY, image).serialize(mask=True),
        Frame(Opcode.BINARY, halves[0], fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, halves[1]).serialize(mask=True),
    ]

    async def check(wire: Wire) -> None:
        wire.application.hears.set()
        transport = await wire.open_socket()
        parser, parsed_bytes = transport.protocol.conn, []

        def spied(data: bytes) -> None:
            parsed_bytes.append(len(data))
            type(parser).receive_data(parser, data)

        parser.receive_data = spied
        data = b"".join(messages) + frame(TEXT, b"the next")
        for start in range(0, len(data), segment_bytes):
            transport.protocol.data_received(data[start : start + segment_bytes])
            await wire.settle(10)
        await wire.take_turns()
        assert wire.application.messages == [image, image, "the next"]
        assert max(parsed_bytes) <= FRAGMENT_BYTES

    on_a_wire(check)
