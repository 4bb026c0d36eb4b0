"""HTTP connections, byte by byte: order, limits and times. test_http.py has whole requests."""

import logging
import re

import pytest
from wire import HANDSHAKE, Transport, Wire, on_a_wire

from server.protocols.peers import CLOSE_S
from server.protocols.turns import BURST

GET = b"GET /%d HTTP/1.1\r\nHost: [::1]\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /0 HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n"


def statuses(written: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", written)]


def test_a_request_is_parsed_once_the_answer_before_it_is_out() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, GET % 0 + POST % 3 + b"abc" + GET % 2 + b"garbage\r\n\r\n")
        assert wire.application.paths == ["/0"] and transport.written == b""
        wire.application.answer.set()
        await wire.take_turns()
        assert wire.application.paths == ["/0", "/", "/2"] and wire.application.bodies == [b"", b"abc", b""]
        assert statuses(transport.written) == [200, 200, 200, 400] and transport.closed

    on_a_wire(check)


def test_a_request_is_parsed_once_the_answer_before_it_is_read() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        transport.full_after = b"ok"
        await wire.send(transport, GET % 0 + GET % 1)
        assert wire.application.paths == ["/0"]
        transport.protocol.resume_writing()
        await wire.take_turns()
        assert wire.application.paths == ["/0", "/1"]

    on_a_wire(check)


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: foo\r\n"])
def test_pipelined_requests_wait_for_turns(upgrade: bytes) -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        await wire.send(transport, (b"GET / HTTP/1.1\r\nHost: [::1]\r\n" + upgrade + b"\r\n") * 3000)
        assert statuses(transport.written) == [200]
        assert not transport.reading and len(wire.gate.turns) == 1
        wire.gate.turns.run()
        await wire.settle()
        assert statuses(transport.written) == [200, 200] and len(wire.gate.turns) == 1

    on_a_wire(check)


def test_headers_that_come_slowly_cost_no_allowance() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        for number in range(5):
            head = GET % number
            await wire.send(transport, head[:20])
            wire.now_s += 1.0
            await wire.send(transport, head[20:])
        assert statuses(transport.written) == [200] * 5 and not len(wire.gate.turns)

    on_a_wire(check)


def test_requests_beyond_the_allowance_wait_for_turns() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        for takes_s, within in ((0.0, BURST), (0.2, 1)):
            transport = wire.connect(f"192.0.2.{within}")
            for number in range(int(within)):
                transport.protocol.data_received(GET % number)
                wire.now_s += takes_s
                await wire.settle(10)
            assert not len(wire.gate.turns)
            await wire.send(transport, GET % 0)
            assert len(wire.gate.turns) == 1
            await wire.take_turns()
            assert statuses(transport.written) == [200] * int(within + 1)

    on_a_wire(check)


def test_the_wait_for_other_replicas_costs_no_allowance() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        for hop_s, waiting in ((0.0, 1), (0.2, 0)):
            wire.application.hop_s = hop_s
            transport = wire.connect()
            for number in range(2):
                transport.protocol.data_received(GET % number)
                wire.now_s += 0.2
                await wire.settle(10)
            assert len(wire.gate.turns) == waiting
            await wire.take_turns()
            assert statuses(transport.written) == [200, 200]

    on_a_wire(check)


def test_behind_a_chunked_body_nothing_is_parsed() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + GET % 1)
        wire.application.answer.set()
        await wire.settle()
        assert wire.application.bodies == [b"x"] and wire.application.paths == ["/0"]
        assert b"connection: close" in transport.written and transport.closed

    on_a_wire(check)


LAST = {
    "HTTP/1.0": b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n",
    "close": b"POST / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\nContent-Length: 9\r\n\r\n",
    "expect": b"POST / HTTP/1.1\r\nHost: [::1]\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("kind", LAST)
def test_a_connection_ends_once_the_body_of_a_refused_request_is_here(kind: str) -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        wire.application.refuses = True
        transport = wire.connect()
        await wire.send(transport, LAST[kind] + b"12345")
        assert statuses(transport.written) == [200] and b"connection: close" in transport.written
        assert not transport.closed  # to close now would reset the connection, and the client might lose the response
        assert transport.half_closed
        await wire.send(transport, b"6789" + GET % 1)
        assert transport.closed and wire.application.paths == ["/"] and statuses(transport.written) == [200]

    on_a_wire(check)


@pytest.mark.parametrize(("kind", "sent", "within_s"), [("close", b"1", CLOSE_S), ("expect", b"", 0.0)])
def test_a_connection_ends_without_the_body_of_a_refused_request(kind: str, sent: bytes, within_s: float) -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        wire.application.refuses = True
        transport = wire.connect()
        await wire.send(transport, LAST[kind] + sent)
        assert transport.closed is (within_s == 0.0)
        wire.after(within_s + 0.1)
        assert transport.closed and statuses(transport.written) == [200]

    on_a_wire(check)


def test_what_is_no_request_is_refused_in_words_after_an_answer_too() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        await wire.send(transport, GET % 0)
        await wire.send(transport, b"GET http://[::1] HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert statuses(transport.written) == [200, 400] and await closes(wire, transport)

    on_a_wire(check)


def test_a_connection_that_must_end_ends_though_its_body_was_asked_for() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        expects = CHUNKED.removesuffix(b"\r\n") + b"Expect: 100-continue\r\n\r\n"
        await wire.send(transport, expects + b"1\r\nx\r\n0\r\n\r\n" + GET % 1)
        wire.application.answer.set()
        await wire.settle()
        assert statuses(transport.written) == [100, 200] and transport.closed

    on_a_wire(check)


def test_a_body_that_the_server_asked_for_leaves_the_connection_open() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        await wire.send(transport, LAST["expect"])
        assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(transport, b"123456789" + GET % 1)
        await wire.take_turns()
        assert statuses(transport.written) == [100, 200, 200] and wire.application.bodies == [b"123456789", b""]
        assert b"connection: close" not in transport.written and not transport.closed

    on_a_wire(check)


@pytest.mark.parametrize("refuses", [True, False])
def test_an_overdue_body_is_complained_of_only_before_the_response(refuses: bool) -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        wire.application.refuses = refuses
        transport = wire.connect()
        await wire.send(transport, POST % 9 + b"1")
        wire.after(31.0)
        assert statuses(transport.written) == [200 if refuses else 408] and await closes(wire, transport)

    on_a_wire(check)


def test_trailers_are_no_headers() -> None:
    """Trailers never become headers, because a proxy that checks headers does not check trailers."""

    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, CHUNKED + b"1\r\nx\r\n0\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n")
        wire.application.answer.set()
        await wire.settle()
        assert wire.application.bodies == [b"x"] and statuses(transport.written) == [200]
        assert wire.application.headers == [[(b"host", b"[::1]"), (b"transfer-encoding", b"chunked")]]

    on_a_wire(check)


def test_a_head_may_come_byte_by_byte() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        for byte in b"\r\n" + POST % 2 + b"ab\r\n" + GET % 1:
            transport.protocol.data_received(bytes([byte]))
        await wire.take_turns()
        assert wire.application.paths == ["/", "/1"] and wire.application.bodies == [b"ab", b""]
        assert statuses(transport.written) == [200, 200] and not transport.closed

    on_a_wire(check)


async def closes(wire: Wire, transport: Transport) -> bool:
    """Return whether the server closes a refused connection. It closes at once; or, if the client is still sending a
    body, after `CLOSE_S`, and until then it drops what the client sends."""
    if transport.half_closed and not transport.closed:
        written = transport.written
        await wire.send(transport, b"rest" + GET % 9)
        wire.after(CLOSE_S - 0.1)
        assert transport.written == written and transport.reading and not transport.closed
        wire.after(0.2)
    return transport.closed


def test_a_client_that_still_sends_its_body_can_read_why_it_is_refused() -> None:
    """A connection that closes with unread bytes is reset, and the answer is lost."""

    async def check(wire: Wire) -> None:
        older, transport = wire.connect(), wire.connect()
        wire.after(1.0)
        await wire.send(transport, POST % 10_000_000 + b"x" * 3_000_000)
        assert statuses(transport.written) == [503] and transport.half_closed and not transport.closed
        assert b"--max-unfinished-bytes" in transport.written
        assert wire.gate.peers.held_bytes == len(transport.protocol.cycle.body) == 0  # the application has let go of it
        transport.protocol.data_received(b"x" * 3_000_000)
        assert not transport.reading and not transport.closed  # others first
        await wire.settle()
        assert transport.reading and wire.gate.peers.held_bytes == 0
        wire.connect()
        assert transport.closed and not older.closed  # it gives way before one that may still ask for something

    on_a_wire(check, connections=4, max_unfinished_bytes=2**21, max_unfinished_bytes_per_address=2**21)


def test_a_refusal_that_pauses_the_body_reads_on() -> None:
    """The application does not receive now, so that reading is paused."""

    async def check(wire: Wire) -> None:
        wire.application.starts.clear()
        transport = wire.connect()
        await wire.send(transport, POST % 10_000_000 + b"x" * 50_000)
        await wire.send(transport, b"x" * 50_000)
        assert not transport.reading
        wire.after(31.0)
        assert statuses(transport.written) == [408] and transport.half_closed and transport.reading
        wire.application.starts.set()
        await wire.settle()
        assert statuses(transport.written) == [408]

    on_a_wire(check)


TWICE = {
    "a chunk that is none, and too many bytes without a body": b"1;" + b"a" * 65536 + b"\x01" + b"a" * 20_000,
    "a client that waits for a 100": b"ZZ\r\n",
}


@pytest.mark.parametrize("kind", TWICE)
def test_nothing_is_written_after_a_refusal(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        head = CHUNKED.removesuffix(b"\r\n") + b"Expect: 100-continue\r\n\r\n" if "100" in kind else CHUNKED
        await wire.send(transport, head + TWICE[kind])
        assert statuses(transport.written) == [400]
        assert transport.half_closed is ("100" not in kind)  # who waits sends nothing that could be lost
        transport.protocol.shutdown()
        assert transport.closed

    with caplog.at_level(logging.WARNING):
        on_a_wire(check)
    assert len(caplog.records) == 1 and not caplog.records[0].exc_info


REFUSED = {
    "no HTTP": (b"\x16\x03\x01\x02", 400),
    "headers without an end": (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    "trailers without an end": (CHUNKED + b"1\r\nx\r\n0\r\nX: " + b"x" * 90_000, 431),
    "tiny chunks": (CHUNKED + b"1\r\nx\r\n" * 2000, 400),
    "a chunk that is none": (CHUNKED + b"ZZZ\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "empty lines": (b"\r\n" * 40_000, 400),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: [::1]\r\n\r\n" * 400, 400),
    "a handshake of many headers": (HANDSHAKE + b"X: y\r\n" * 300 + b"\r\n", 431),
    "a handshake with a long header": (HANDSHAKE + b"X: %b\r\n\r\n" % (b"y" * 9000), 431),
    "a handshake with a body": (HANDSHAKE + b"Content-Length: 3\r\n\r\nabc", 400),
    "a handshake without a key": (HANDSHAKE.partition(b"Sec-WebSocket-Key")[0] + b"\r\n", 400),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_answered_once_and_closed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data, status = REFUSED[kind]

    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, data)
        assert statuses(transport.written) == [status] and await closes(wire, transport)
        transport.protocol.shutdown()  # does nothing any more
        assert statuses(transport.written) == [status]

    with caplog.at_level(logging.WARNING):
        on_a_wire(check)
    assert len(caplog.records) <= 1 and not any(record.exc_info for record in caplog.records)


SLOW = {
    "silence": (b"", 9.9, 0.2, b""),
    "half a head": (b"GET / HTT", 9.9, 0.2, b"HTTP/1.1 408"),
    "a body that stops": (POST % 9 + b"abc", 29.9, 0.2, b"HTTP/1.1 408"),
    "half a handshake": (HANDSHAKE, 9.9, 0.2, b"HTTP/1.1 408"),
    "silence after an answer": (GET % 0, 74.9, 0.2, b"HTTP/1.1 200"),
    "half a head after an answer": (GET % 0 + b"G", 9.9, 0.2, b"HTTP/1.1 200"),
}


@pytest.mark.parametrize("kind", SLOW)
def test_who_is_too_slow_is_closed(kind: str) -> None:
    data, within_s, beyond_s, answer = SLOW[kind]

    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        if data:
            await wire.send(transport, data)
            await wire.take_turns()
        wire.after(within_s)
        assert not transport.closed
        wire.after(beyond_s)
        assert transport.written.startswith(answer) and await closes(wire, transport)

    on_a_wire(check)


def test_bytes_one_by_one_do_not_buy_time() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        for byte in b"GET / HTTP/1.1\r\nX: ":
            if not transport.closed:
                await wire.send(transport, bytes([byte]))
            wire.after(0.9)
        assert statuses(transport.written) == [408]

    on_a_wire(check)


def test_a_refusal_that_nobody_reads_is_cut_off() -> None:
    async def check(wire: Wire) -> None:
        transport, other = wire.connect(), wire.connect()
        transport.protocol.pause_writing()
        wire.after(9.0)
        await wire.send(other, b"X")  # is closed in words, which nobody reads
        assert other.closed and not other.aborted
        wire.after(0.0)
        wire.after(CLOSE_S - 0.1)
        assert not other.aborted
        wire.after(0.2)
        assert other.aborted

    on_a_wire(check)


def test_what_nobody_reads_is_cut_off_after_its_time() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, GET % 0)  # it is being answered
        transport.protocol.pause_writing()
        wire.after(19.9)
        transport.protocol.resume_writing()
        transport.protocol.pause_writing()  # it has read some
        wire.after(19.9)
        assert not transport.aborted
        wire.after(0.2)
        assert transport.aborted

    on_a_wire(check)


def test_who_has_read_all_is_not_cut_off() -> None:
    async def check(wire: Wire) -> None:
        wire.application.answer.set()
        transport = wire.connect()
        await wire.send(transport, GET % 0)
        transport.protocol.pause_writing()
        wire.after(10.0)
        transport.protocol.resume_writing()
        wire.after(30.0)
        assert not transport.closed

    on_a_wire(check)


def test_a_request_that_is_being_answered_has_no_time_limit_here() -> None:
    async def check(wire: Wire) -> None:
        transport = wire.connect()
        await wire.send(transport, POST % 3 + b"abc")
        wire.after(1000.0)
        assert not transport.closed
        wire.application.answer.set()
        await wire.settle()
        assert statuses(transport.written) == [200]

    on_a_wire(check)


def test_a_new_connection_takes_the_place_of_one_that_waits() -> None:
    async def check(wire: Wire) -> None:
        served, silent, late = wire.connect(), wire.connect(), wire.connect()
        await wire.send(served, GET % 0)
        wire.after(1.0)
        await wire.send(silent, b"GET")
        stranger = wire.connect("192.0.2.2")
        wire.after(1.0)
        assert not any(transport.closed for transport in (served, silent, late, stranger))
        newcomer = wire.connect()  # the fourth of this address, which may have three
        assert late.closed and not newcomer.closed and not silent.closed
        await wire.send(newcomer, GET % 1)
        wire.connect()
        assert silent.closed and statuses(silent.written) == [503]
        assert not served.closed and not newcomer.closed and not stranger.closed

    on_a_wire(check, connections=6)


def test_the_addresses_of_an_ipv6_network_are_one() -> None:
    async def check(wire: Wire) -> None:
        first, other = wire.connect("2001:db8::1"), wire.connect("2001:db8:0:1::1")
        mapped, another = wire.connect("::ffff:192.0.2.1"), wire.connect("::ffff:192.0.2.2")
        assert not any(transport.closed for transport in (first, other, mapped, another))
        assert not wire.connect("2001:db8::2").closed and first.closed

    on_a_wire(check, connections=10, max_connections_per_address=1)


def test_without_one_that_waits_a_new_connection_is_refused() -> None:
    async def check(wire: Wire) -> None:
        for number in range(3):
            await wire.send(wire.connect(), GET % number)
        refused = wire.connect()
        assert statuses(refused.written) == [429] and refused.closed

    on_a_wire(check, connections=6)


def test_unfinished_bodies_take_so_much_memory_and_no_more() -> None:
    async def check(wire: Wire) -> None:
        transports = [wire.connect(f"192.0.2.{number // 2}") for number in range(4)]
        for size, transport in enumerate(transports, 4):
            await wire.send(transport, POST % 2**24 + b"x" * (size * 2**17))
        assert [transport.half_closed for transport in transports] == [False, True, False, True]
        assert wire.gate.peers.held_bytes == (4 + 6) * 2**17
        assert not wire.application.bodies

    on_a_wire(check, max_unfinished_bytes=2**21 - 2**17, max_unfinished_bytes_per_address=2**20)
