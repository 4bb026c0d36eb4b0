"""WebSockets of a load test against a server that says what each test tells it to."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from adpc_client import AdpcError, OverloadedError
from adpc_client.load.transport import LoadTarget
from adpc_client.load.websocket_transport import WebSocketTransport, _StreamedRequest
from load_requests import IMAGE, reply, request, sent
from scripted_server import MAP, Talk, accepted, end, exit_header, scripted
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol


@asynccontextmanager
async def socket_to(server, most=None, clients=("0",), **options):
    target = await LoadTarget.resolve(server.url, clients)
    transport = WebSocketTransport(target, "delta", options, time.perf_counter, most)
    try:
        yield transport
    finally:
        transport.close()
        await asyncio.sleep(0)


def answer(talk: Talk) -> None:
    talk.say(accepted(talk.id))
    talk.exit(1)
    talk.exit(3)
    talk.say(end(talk.id, 3))


def exits(found):
    return [received.exit for received in found.exits]


def test_a_request_says_what_is_wanted_and_hears_every_exit():
    seen = []

    def script(talk):
        seen.append((talk.message, talk.image))
        answer(talk)

    async def main(server):
        async with socket_to(server, min_exit="2") as transport:
            found = await reply(transport, "mine", model="m", priority=0)
            assert (found.stop, found.elapsed_ms, found.unsure, found.fault) == ("complete", 41.5, 0.5, False)
            assert exits(found) == [1, 3]
            assert found.exits[0].at_s <= found.exits[1].at_s <= found.ended_s <= time.perf_counter()
            await reply(transport)

    with scripted(script) as server:
        asyncio.run(main(server))
    wanted = {"type": "predict", "id": "mine", "deadline_ms": 80, "model": "m", "priority": 0}
    assert seen[0] == ({**wanted, "encoding": "delta", "min_exit": "2"}, IMAGE.data)
    assert "model" not in seen[1][0] and "priority" not in seen[1][0]
    assert server.connections == 1


def test_an_exit_has_come_once_its_maps_have():
    def script(talk):
        payload = MAP.tobytes()
        extra = {"extra": {"kind": "unsure", "encoding": "raw", "bytes": len(payload)}}
        talk.say(exit_header(talk.id, 1, payload, **extra), payload)
        if talk.hear()["type"] == "cancel":
            talk.say(payload, exit_header(talk.id, 2, b"", keypoints=[[1, 2, 3]]))
            talk.say(exit_header(talk.id, 3, b"", encoding="json", mask={}, extra={}), end(talk.id, 3))

    async def main(server):
        async with socket_to(server) as transport:
            opened = await sent(transport)
            while opened.unsure is None:  # noqa: ASYNC110 - the header of the exit comes over a socket
                await asyncio.sleep(0.001)
            assert opened.exits == []
            opened.cancel()
            assert exits(await opened.reply) == [1, 2, 3]

    with scripted(script) as server:
        asyncio.run(main(server))


def test_an_overtaken_request_gives_way_once_it_has_an_exit():
    heard = []

    def script(talk):
        talk.exit(1)
        heard.append(talk.hear()["type"])
        talk.say(end(talk.id, 1, "cancelled"))

    async def main(server):
        async with socket_to(server) as transport:
            opened = await sent(transport)
            while not opened.exits:  # noqa: ASYNC110 - it comes over a socket
                await asyncio.sleep(0.001)
            opened.give_way()
            found = await opened.reply
            assert (found.stop, exits(found)) == ("cancelled", [1])

    with scripted(script) as server:
        asyncio.run(main(server))
    assert heard == ["cancel"]


def test_a_request_that_shall_give_way_waits_for_its_exit():
    class Socket:
        cancelled: ClassVar[list[str]] = []

        def cancel(self, name):
            self.cancelled.append(name)

    async def main():
        opened = _StreamedRequest(Socket(), "r", time.perf_counter)
        opened.give_way()
        assert Socket.cancelled == []
        opened.reach(1)
        assert Socket.cancelled == ["r"]

    asyncio.run(main())


@pytest.mark.parametrize(("most", "shares"), [(None, [1, 1, 1, 1]), (1, [4]), (2, [2, 2]), (3, [1, 1, 2])])
def test_open_requests_have_a_socket_each_unless_they_shall_share(most, shares):
    heard = Counter()

    def script(talk):
        heard[talk.connection] += 1  # and the request stays open

    async def main(server):
        async with socket_to(server, most) as transport:
            for number in range(4):
                await sent(transport, str(number))
            while heard.total() < 4:  # noqa: ASYNC110 - they are heard in threads
                await asyncio.sleep(0.001)

    with scripted(script) as server:
        asyncio.run(main(server))
    assert sorted(heard.values()) == shares


def test_requests_that_share_a_socket_hear_of_their_own():
    waiting = []

    def script(talk):
        waiting.append(talk.id)
        if len(waiting) == 2:
            talk.say(end(waiting[1], 0), exit_header(waiting[0], 4, b"", keypoints=[]), end(waiting[0], 4))

    async def main(server):
        async with socket_to(server, most=1) as transport:
            first, second = [await sent(transport, name) for name in ("a", "b")]
            assert (exits(await first.reply), exits(await second.reply)) == ([4], [])

    with scripted(script) as server:
        asyncio.run(main(server))


def test_hanging_up_closes_a_socket_that_no_other_request_uses():
    def script(talk):
        if talk.id == "stays" and talk.hear()["type"] == "cancel":
            answer(talk)

    async def main(server):
        async with socket_to(server, most=1) as transport:
            await transport.connect(["0"])
            leaving = await sent(transport, "leaves", hang_up=True)
            staying = await sent(transport, "stays")
            other = await sent(transport, "leaves, too", hang_up=True)
            leaving.hang_up()
            other.hang_up()
            assert (await leaving.reply).stop == (await other.reply).stop == "hung_up"
            staying.cancel()
            assert (await staying.reply).stop == "complete"

    with scripted(script) as server:
        asyncio.run(main(server))
        assert server.connections == 3


def test_requests_that_are_sent_at_once_have_a_socket_each():
    async def main(server):
        async with socket_to(server) as transport:
            opened = await asyncio.gather(*(sent(transport, f"{number}") for number in range(8)))
            assert [(await each.reply).stop for each in opened] == ["complete"] * 8
            assert len(transport._sockets["0"]) == 8

    with scripted(answer) as server:
        asyncio.run(main(server))
        assert server.connections == 8


def test_a_socket_for_hanging_up_is_given_back_once_its_request_is_answered():
    async def main(server):
        async with socket_to(server) as transport:
            for name in ("a", "b"):
                assert (await reply(transport, name, hang_up=True)).stop == "complete"
            await reply(transport, "c")
            assert transport._unshared == set()

    with scripted(answer) as server:
        asyncio.run(main(server))
        assert server.connections == 1


def test_closing_ends_all_that_is_open():
    async def main(server):
        async with socket_to(server) as transport:
            opened = [await sent(transport, "a", hang_up=True), await sent(transport, "b")]
        assert [(await each.reply).stop for each in opened] == ["connection_failed"] * 2

    with scripted(lambda _: None) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize(
    ("said", "code", "sentence"),
    [
        (
            '{"type": "error", "id": null, "error": "too many sockets", "code": "overloaded", "status": 503}',
            "overloaded",
            "too many",
        ),
        (None, None, "closed the stream as soon as it was open"),
    ],
)
def test_a_socket_that_the_server_closes_at_once_is_no_socket(said, code, sentence):
    """The server says why in the same packet in which it accepts the WebSocket."""

    async def serve(reader, writer):
        protocol = ServerProtocol()
        protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
        (asked,) = protocol.events_received()
        protocol.send_response(protocol.accept(asked))
        if said:
            protocol.send_text(said.encode())
        protocol.send_close(1013)
        writer.write(b"".join(protocol.data_to_send()))
        writer.close()

    async def main():
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        transport = WebSocketTransport(await LoadTarget.resolve(url, ["0"]), "delta", {}, time.perf_counter)
        with pytest.raises(AdpcError, match=sentence) as raised:
            await transport.connect(["0"])
        assert getattr(raised.value, "code", None) == code
        assert transport.open(request()) is None
        listening.close()

    asyncio.run(main())


def test_errors_end_their_request_alone():
    def script(talk):
        error = '{"type": "error", "id": "%s", "code": "%s", "error": "so it is", "status": %d%s}'
        if talk.id == "late":
            talk.say(error % ("late", "odd", 400, ', "open": true'), error % ("late", "no_exit", 504, ""))
        elif talk.id == "early":
            talk.say(error % ("nobody", "odd", 400, ""))
            talk.say(error % ("early", "overloaded", 503, ', "retry_after_s": 0.5'))
        else:
            answer(talk)

    async def main(server):
        async with socket_to(server) as transport:
            late, early, answered = [await reply(transport, name) for name in ("late", "early", "fine")]
            assert (late.stop, late.status, late.error, late.fault) == ("no_exit", 504, "so it is", False)
            assert (early.stop, early.retry_after_s, answered.stop) == ("overloaded", 0.5, "complete")

    with scripted(script) as server:
        asyncio.run(main(server))
        assert server.connections == 1


@pytest.mark.parametrize(
    ("script", "stop", "fault"),
    [
        (lambda talk: talk.connection.close(1001), "draining", False),
        (lambda talk: talk.connection.close(1011, "oops"), "server_fault", True),
        (lambda talk: talk.connection.socket.close(), "connection_failed", True),
        (lambda talk: talk.say("no JSON"), "protocol_error", True),
        (lambda talk: talk.say('{"type": "exit"}'), "protocol_error", True),
    ],
)
def test_a_socket_that_fails_costs_its_requests_and_the_next_opens_another(script, stop, fault):
    def once(talk):
        (script if server.connections == 1 else answer)(talk)

    async def main():
        async with socket_to(server) as transport:
            failed, answered = await reply(transport), await reply(transport)
            assert (failed.stop, failed.fault, answered.stop) == (stop, fault, "complete")

    with scripted(once) as server:
        asyncio.run(main())


def test_a_refused_socket_says_why():
    def script(talk):
        talk.say('{"type": "error", "id": null, "code": "overloaded", "error": "256 sockets are open", "status": 503}')
        talk.connection.close(1013)

    async def main(server):
        async with socket_to(server) as transport:
            found = await reply(transport)
            assert (found.stop, found.error, found.status) == ("overloaded", "256 sockets are open", 503)

    with scripted(script) as server:
        asyncio.run(main(server))


def test_a_refused_handshake_says_why():
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error": "draining now", "code": "draining"}'
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def main():
        listening = await asyncio.start_server(refuse, "127.0.0.1", 0)
        target = await LoadTarget.resolve(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", ["0"])
        transport = WebSocketTransport(target, "png", {}, time.perf_counter)
        with pytest.raises(OverloadedError, match="draining now"):
            await transport.connect(["0"])
        transport.close()
        listening.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_messages_may_come_in_fragments():
    def script(talk):
        text = end(talk.id, 2).encode()
        frames = Frame(Opcode.TEXT, text[:9], fin=False), Frame(Opcode.CONT, text[9:])
        talk.connection.socket.sendall(b"".join(frame.serialize(mask=False) for frame in frames))

    async def main(server):
        async with socket_to(server) as transport:
            assert (await reply(transport)).stop == "complete"

    with scripted(script) as server:
        asyncio.run(main(server))
