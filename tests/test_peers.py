"""What connections may hold, whose turn it is, and what is logged of them."""

import asyncio
import logging
import resource

import pytest
from wire import Wire, frame, on_a_wire

from server.descriptors import connection_room
from server.errors import InvalidError, ServerError
from server.protocols.complaints import Complaints
from server.protocols.peers import Peer, PeerLimits, Peers
from server.protocols.pieces import FREE_PIECES, PIECE_BYTES, FrameHeader, check_pieces, parse_frame_header
from server.protocols.turns import BURST, FRESH, LARGE_BYTES, Allowance, Turns
from server.settings import Settings

POST = b"POST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 16777216\r\n\r\n"


class FakePeer(Peer):
    """Remembers why it was closed."""

    def __init__(self, address: str, waits_since_s: float) -> None:
        super().__init__()
        self.address = address
        self.waits_since_s = waits_since_s
        self.reason: str | None = None

    def expire(self) -> None:
        self.reason = "expired"

    def give_way(self, error: ServerError) -> None:
        self.reason = error.code


LIMITS = PeerLimits(connections=4, connections_per_address=3, unfinished_bytes=100, unfinished_bytes_per_address=60)
SERVED = float("inf")


def peers(*waiting: tuple[str, float]) -> tuple[Peers, list[FakePeer]]:
    found, all_of_them = [FakePeer(*each) for each in waiting], Peers(LIMITS)
    for peer in found:
        assert all_of_them.add(peer) is None
    return all_of_them, found


def test_one_of_the_largest_address_gives_way_when_all_places_are_taken() -> None:
    table, found = peers(("a", 1.0), ("b", 3.0), ("b", 2.0), ("c", 4.0))
    assert table.add(FakePeer("d", 5.0)) is None
    assert [peer.reason for peer in found] == [None, None, "overloaded", None] and len(table) == 4


def test_nobody_gives_way_while_being_served() -> None:
    table, found = peers(("a", SERVED), ("a", SERVED), ("b", 1.0), ("c", 1.0))
    refusal = table.add(FakePeer("d", 5.0))
    assert refusal is not None and refusal.code == "overloaded"
    assert [peer.reason for peer in found] == [None] * 4


def test_what_is_removed_holds_nothing() -> None:
    table, (first, second) = peers(("a", 1.0), ("a", 1.0))
    table.hold(first, 30)
    table.hold(second, 20)
    table.remove(first)
    table.remove(first)
    table.hold(first, 40)
    assert (table.held_bytes, len(table)) == (20, 1)
    other = FakePeer("nobody's", 1.0)
    table.replace(second, other)
    assert (table.held_bytes, len(table), other.address) == (0, 1, "a")


@pytest.mark.parametrize(
    ("held", "dropped"),
    [
        ([("a", 30), ("a", 30)], []),
        ([("a", 35), ("a", 26)], [0]),
        ([("a", 35), ("b", 35), ("c", 31)], [0]),
        ([("a", 20), ("a", 21), ("b", 30), ("c", 31)], [1]),
        ([("2001:db8::1", 31), ("2001:db8::2", 30)], [0]),
        ([("2001:db8::1", 31), ("2001:db8:0:1::1", 30)], []),
    ],
)
def test_the_largest_of_the_heaviest_address_is_dropped(held: list[tuple[str, int]], dropped: list[int]) -> None:
    table, found = peers(*((address, SERVED) for address, _ in held))
    for peer, (_, size_bytes) in zip(found, held, strict=True):
        table.hold(peer, size_bytes)
    assert [index for index, peer in enumerate(found) if peer.reason] == dropped
    assert table.held_bytes == sum(size for index, (_, size) in enumerate(held) if index not in dropped)


def test_an_allowance() -> None:
    allowance = Allowance(rate=2.0, burst=3.0)
    assert [allowance.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(11.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(99.0) for _ in range(4)] == [True, True, True, False]
    assert allowance.spend(2.0, 100.0) and not allowance.spend(100.0, 100.0)  # three are owed
    assert not allowance.take(101.5) and allowance.take(102.0)


def test_the_connections_of_an_address_share_an_allowance_once_they_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.protocols.peers.ADDRESS_BURST", 100.0)
    table, waiting = peers(("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 1.0))
    taken = []
    for peer in waiting:
        taken.append(0)
        while table.allows(peer, 10.0):
            taken[-1] += 1
    assert taken == [BURST, FRESH + (100 - (BURST - FRESH)), FRESH, BURST]


def test_connections_one_after_the_other_share_the_allowance_of_their_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.protocols.peers.ADDRESS_BURST", 100.0)
    monkeypatch.setattr(Peers, "LEFT", 1)

    def taken(address: str) -> int:
        peer, steps = FakePeer(address, 1.0), 0
        table.add(peer)
        while table.allows(peer, 10.0):
            steps += 1
        table.remove(peer)
        return steps

    table, _ = peers()
    assert [taken("a"), taken("a"), taken("a")] == [BURST, FRESH + (100 - (BURST - FRESH)), FRESH]
    taken("b")
    assert taken("a") == BURST, "only so many addresses are remembered"


def test_what_costs_much_counts_as_many_steps() -> None:
    table, (peer, other) = peers(("a", 1.0), ("a", 1.0))
    assert table.spend(peer, FRESH, 10.0) and table.allows(peer, 10.0)
    assert not table.spend(peer, 1000.0, 10.0) and not table.allows(peer, 10.0)
    assert all(table.allows(other, 10.0) for _ in range(int(FRESH)))
    assert not table.allows(other, 10.0)  # the address owes


def test_large_reads_let_others_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("connection", "websocket"):
        monkeypatch.setattr(f"server.protocols.{module}.STEP_BYTES", LARGE_BYTES // 10)

    async def check(wire: Wire) -> None:
        socket = await wire.open_socket("192.0.2.2")
        for transport, head in ((wire.connect(), POST), (socket, frame(2, bytes(2**24))[:14])):
            transport.protocol.data_received(head + bytes(LARGE_BYTES))
            assert not transport.reading
            await wire.settle(10)
            fed = 0
            while transport.reading:
                transport.protocol.data_received(bytes(LARGE_BYTES))
                await wire.settle(10)
                fed += 1
            assert fed == pytest.approx(BURST / 10, abs=2) and len(wire.gate.turns) == 1
            await wire.take_turns()
            assert transport.reading

    on_a_wire(check)


def test_turns_are_fair_and_leave_the_loop_to_others() -> None:
    now_s = 0.0
    rests_s: list[float] = []
    calls: list[str] = []

    async def check() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later = lambda rest_s, call: rests_s.append(rest_s)  # type: ignore[method-assign, assignment]
        turns = Turns(lambda: now_s)

        def task() -> None:
            nonlocal now_s
            now_s += 0.1

        def step(name: str) -> None:
            nonlocal now_s
            now_s += 0.0015
            calls.append(name)
            turns.wait(lambda: step(name))
            if name == "c":
                loop.call_soon(task)

        for name in "abc":
            turns.wait(lambda name=name: step(name))  # type: ignore[misc]
        for _ in range(2):
            turns.run()
            for _ in range(10):
                await asyncio.sleep(0)

    asyncio.run(check())
    assert calls == ["a", "b", "c", "a"]  # of a round of 2 ms, two began
    assert rests_s == pytest.approx([Turns.MIN_REST_S, 4 * 0.003, 4 * 0.103])


def test_a_step_that_takes_the_time_of_a_round_ends_it() -> None:
    async def check() -> None:
        now_s = 0.0
        turns = Turns(lambda: now_s)

        def step() -> None:
            nonlocal now_s
            now_s += Turns.WORK_S

        for _ in range(Turns.STEPS):
            turns.wait(step)
        turns.run()
        assert len(turns) == Turns.STEPS - 1

    asyncio.run(check())


def test_who_waits_again_has_its_turn_in_the_next_round() -> None:
    async def check() -> None:
        turns, calls = Turns(lambda: 0.0), []

        def step() -> None:
            calls.append(len(turns))
            turns.wait(step)

        turns.wait(step)
        for _ in range(3):
            turns.run()
        assert len(calls) == 3 and len(turns) == 1

    asyncio.run(check())


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b"", None),
        (b"\x82", None),
        (b"\x82\x05", (2, True, 7, 2)),
        (b"\x02\x85mas", None),
        (b"\x02\x85mask", (2, False, 11, 6)),
        (b"\x89\xfe\x01", None),
        (b"\x89\xfe\x01\x00mask", (9, True, 2 + 2 + 4 + 256, 8)),
        (b"\x82\xff" + bytes(7), None),
        (b"\x82\xff" + bytes(5) + b"\x01\x00\x00mask", (2, True, 2 + 8 + 4 + 65536, 14)),
    ],
)
def test_the_header_of_a_frame(data: bytes, header: tuple[int, bool, int, int] | None) -> None:
    expected = None if header is None else FrameHeader(*header[:3], data[: header[3]])
    assert parse_frame_header(data + b"payload" * (header is not None)) == expected
    assert expected is None or expected.is_control == (expected.opcode >= 8)


def test_pieces_may_be_few_or_large() -> None:
    check_pieces(FREE_PIECES, 0)
    check_pieces(FREE_PIECES + 10, 10 * PIECE_BYTES)
    with pytest.raises(InvalidError, match="pieces"):
        check_pieces(FREE_PIECES + 11, 10 * PIECE_BYTES)


def test_a_complaint_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    complaints.KINDS = 2  # type: ignore[misc]
    with caplog.at_level(logging.WARNING):
        for now_s in (0.0, 1.0, 59.0, 61.0):
            complaints.note("a", "bad", "wrong", now_s)
        for address in ("b::1", "c::1", "b::2"):
            complaints.note(address, "bad", "wrong", 62.0)
        complaints.note("a", "bad", "wrong", 63.0)  # was forgotten
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["a: bad: wrong", "a: bad: wrong (2 more since)"]
    assert [line[0] for line in lines[2:]] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("limits", "room", "raised_to"),
    [
        ((256, 256), 156, None),
        ((256, 4096), 1024, 1124),
        ((256, 500), 400, 500),
        ((4096, 4096), 1024, None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1024, None),
    ],
)
def test_connections_leave_a_reserve_of_descriptors(
    limits: tuple[int, int], room: int, raised_to: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, pair: raised.append(pair))
    assert connection_room(Settings(reserve_descriptors=100)) == room
    assert [soft for soft, _ in raised if soft != limits[0]] == ([] if raised_to is None else [raised_to])


def test_a_limit_below_the_reserve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    with pytest.raises(ValueError, match="--reserve-descriptors keeps 128"):
        connection_room(Settings())
