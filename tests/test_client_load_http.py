"""POSTs of a load test, and how it finds its server, against one that says what each test tells it to."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from types import MappingProxyType
from unittest.mock import Mock
from urllib.parse import parse_qsl, urlsplit

import pytest
from adpc_client import AdpcError, ConnectionFailedError
from adpc_client.load.http_transport import HttpTransport
from adpc_client.load.transport import LoadTarget
from adpc_client.transport import Endpoint
from load_requests import IMAGE, reply, request, sent

MAP = b"map" * 2000
ANSWER = (
    f"HTTP/1.1 200 OK\r\nX-Anytime-Exit: 3\r\nx-anytime-stop: deadline\r\nX-Anytime-Elapsed-Ms: 41.5\r\n"
    f"X-Anytime-Unsure: 0.25\r\nContent-Type: image/png\r\nContent-Length: {len(MAP)}\r\n\r\n"
).encode() + MAP


def json_answer(status, body, *fields):
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *fields, "", body]).encode()


class Seen:
    """A request as the server saw it."""

    def __init__(self, head, body, peer):
        line, *fields = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.headers = {name.lower(): value for name, value in (field.split(": ") for field in fields)}
        self.query = dict(parse_qsl(urlsplit(self.target).query))
        self.body, (self.address, self.port) = body, peer


class Server:
    """Answers the n-th request by the n-th of `replies`: chunks of bytes, and None, which closes the connection. `left`
    counts the connections that the client closed."""

    def __init__(self, *replies):
        self.replies, self.seen, self.left, self.open = list(replies), [], 0, 0

    async def serve(self, reader, writer):
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen = Seen(head, b"", writer.get_extra_info("peername"))
                seen.body = await reader.readexactly(int(seen.headers.get("content-length", 0)))
                self.seen.append(seen)
                reply = self.replies.pop(0) if self.replies else []
                for chunk in reply:
                    if chunk is None:
                        return
                    writer.write(chunk)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        finally:
            writer.close()
            self.open -= 1


@asynccontextmanager
async def http(*replies, clients=("0",), prefix="", encoding="png", headers=None, **options):
    server = Server(*replies)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}{prefix}"
    target = await LoadTarget.resolve(url, clients, headers)
    transport = HttpTransport(target, encoding, options, time.perf_counter)
    try:
        yield server, transport
    finally:
        transport.close()
        listening.close()
        await until(lambda: server.open == 0)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
        await asyncio.sleep(0.001)


def test_a_post_says_what_is_wanted_and_its_answer_is_read_from_its_head():
    async def main():
        async with http(*[[ANSWER]] * 4, prefix="/under", min_exit="2") as (server, transport):
            found = await reply(transport, "mine", model="a b", priority=2)
            await reply(transport, model="a b", priority=1)
            await reply(transport, model="c", priority=1)
            await reply(transport)
        seen, other, another, plain = server.seen
        assert seen.target.count("deadline_ms") == 1
        assert other.query == {**seen.query, "priority": "1"}
        assert another.query == {**other.query, "model": "c"}
        assert plain.query == {"deadline_ms": "80.0", "min_exit": "2"}
        assert (seen.method, urlsplit(seen.target).path) == ("POST", "/under/v1/predict")
        assert seen.query == {"deadline_ms": "80.0", "min_exit": "2", "model": "a b", "priority": "2"}
        assert seen.headers["content-type"] == "image/png" and seen.body == IMAGE.data
        assert seen.headers["accept"] == "image/png, application/json;q=0.5"
        assert seen.headers["x-request-id"] == "mine" and ":" in seen.headers["host"]
        assert (found.stop, found.status, found.unsure, found.elapsed_ms) == ("deadline", 200, 0.25, 41.5)
        assert [received.exit for received in found.exits] == [3] and not found.fault
        assert found.exits[0].at_s <= found.ended_s <= time.perf_counter()

    asyncio.run(main())


def test_an_answer_may_come_in_pieces_and_its_connection_serves_again():
    pieces = [ANSWER[:20], ANSWER[20:150], ANSWER[150:4000], ANSWER[4000:]]
    body = '{"exit": 2, "stop": "complete", "unsure": 0.5, "elapsed_ms": 9, "keypoints": [[1, 2, 3]]}'

    async def main():
        async with http(pieces, [json_answer(200, body)], pieces) as (server, transport):
            await transport.connect(["0"])
            found = [await reply(transport) for _ in range(3)]
        assert [(each.exits[0].exit, each.stop) for each in found] == [
            (3, "deadline"),
            (2, "complete"),
            (3, "deadline"),
        ]
        assert found[1].unsure == 0.5 and found[1].elapsed_ms == 9
        assert len({seen.port for seen in server.seen}) == 1

    asyncio.run(main())


def test_a_connection_that_the_server_closed_serves_no_more():
    async def main():
        async with http([ANSWER, None], [ANSWER]) as (server, transport):
            assert (await reply(transport)).stop == "deadline"
            await until(lambda: server.open == 0 and not transport._connected)
            assert (await reply(transport)).stop == "deadline"

    asyncio.run(main())


def test_open_requests_have_connections_of_their_own():
    async def main():
        async with http([], [], [ANSWER], [ANSWER]) as (server, transport):
            waiting = [await sent(transport, str(number)) for number in range(2)]
            await until(lambda: len(server.seen) == 2)
            assert (await reply(transport)).stop == (await reply(transport)).stop == "deadline"
            assert [opened.reply.done() for opened in waiting] == [False, False]
        assert len({seen.port for seen in server.seen}) == 3

    asyncio.run(main())


def test_refusals_say_why_and_when_to_come_back():
    body = '{"error": "busy now", "code": "overloaded", "id": "r"}'
    closing = [json_answer(503, body, "Retry-After: 0.25", "Connection: close")]

    async def main():
        async with http(closing, [json_answer(400, "oops")], [ANSWER]) as (server, transport):
            refused, broken, answered = [await reply(transport) for _ in range(3)]
        assert (refused.stop, refused.status, refused.retry_after_s) == ("overloaded", 503, 0.25)
        assert (refused.error, refused.fault, refused.exits) == ("busy now", False, ())
        assert (broken.stop, broken.fault, answered.stop) == ("status_400", True, "deadline")
        assert server.seen[0].port != server.seen[1].port == server.seen[2].port

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "code", "sentence"),
    [
        (
            json_answer(429, '{"error": "too many", "code": "client_limit"}', "Connection: close"),
            "client_limit",
            "too many",
        ),
        (b"", None, "closed a connection at once"),
    ],
)
def test_a_connection_that_is_refused_as_soon_as_it_exists_is_no_connection(data, code, sentence):
    """The refusal has come before the transport looks at its new connection."""

    class Target:
        url, netloc, path, headers = "http://there", "there", "", MappingProxyType({})

        async def connect(self, make, _):
            connection, transport = make(), Mock()
            transport.is_closing.return_value = False
            connection.connection_made(transport)
            if data:
                connection.data_received(data)
            connection.connection_lost(None)
            return connection

    async def main():
        transport = HttpTransport(Target(), "png", {}, time.perf_counter)
        with pytest.raises(AdpcError, match=sentence) as raised:
            await transport.connect(["0"])
        assert getattr(raised.value, "code", None) == code
        assert transport.open(request()) is None

    asyncio.run(main())


def test_a_connection_that_is_being_closed_takes_no_request():
    async def main():
        async with http([ANSWER], [ANSWER]) as (server, transport):
            await reply(transport)
            for connection in transport._connected:
                connection.hang_up()
            assert (await reply(transport)).stop == "deadline"
        assert len({seen.port for seen in server.seen}) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "stop"),
    [
        ([None], "connection_failed"),
        ([ANSWER[:4000], None], "connection_failed"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], "protocol_error"),
        ([b"SMTP here, what now?\r\n\r\n"], "protocol_error"),
        ([json_answer(200, "{}")], "protocol_error"),
        ([json_answer(200, "a page")], "protocol_error"),
    ],
)
def test_what_is_no_answer_is_a_fault_of_one_request(answer, stop):
    async def main():
        async with http(answer, [ANSWER]) as (_, transport):
            failed, answered = await reply(transport), await reply(transport)
        assert (failed.stop, failed.fault, answered.stop) == (stop, True, "deadline")
        assert failed.error

    asyncio.run(main())


def test_cancelling_sends_delete_and_hanging_up_closes_the_connection():
    async def main():
        key = {"Authorization": "Bearer robot.secret"}
        async with http([], [json_answer(200, "{}")], [], headers=key) as (server, transport):
            opened = await sent(transport, "a/b")
            await until(lambda: len(server.seen) == 1)
            opened.cancel()
            await until(lambda: len(server.seen) == 2)
            assert not opened.reply.done()  # the answer to the POST itself says how it ended
            assert (server.seen[1].method, server.seen[1].target) == ("DELETE", "/v1/requests/a%2Fb")
            assert [seen.headers["authorization"] for seen in server.seen] == [*key.values()] * 2
            hung_up = await sent(transport)
            await until(lambda: len(server.seen) == 3)
            assert server.seen[2].port == server.seen[1].port  # the connection of the DELETE is free again
            assert {connection.refusal for connection in transport._connected} == {None}
            left = server.left
            hung_up.hang_up()
            await until(lambda: server.left == left + 1)
            assert (await hung_up.reply).stop == "hung_up" and not opened.reply.done()

    asyncio.run(main())


def test_several_clients_of_this_machine_have_addresses_of_their_own():
    async def main():
        async with http([ANSWER], [ANSWER], [ANSWER], clients=("a", "b")) as (server, transport):
            await transport.connect(["a", "b"])
            for client in ("a", "b", "a"):
                await reply(transport, client=client)
        assert [seen.address for seen in server.seen] == ["127.0.0.2", "127.0.0.3", "127.0.0.2"]
        async with http([ANSWER]) as (server, transport):
            await reply(transport)
        assert [seen.address for seen in server.seen] == ["127.0.0.1"]

    asyncio.run(main())


def test_a_server_that_is_not_there_is_told_before_the_start(monkeypatch):
    async def main():
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        listening.close()
        await LoadTarget.resolve(f"http://127.0.0.1:{port}", ["0"])

    with pytest.raises(ConnectionFailedError, match=r"cannot reach http://127.0.0.1:\d+: "):
        asyncio.run(main())
    with pytest.raises(ValueError, match="must look like"):
        asyncio.run(LoadTarget.resolve("nowhere", ["0"]))

    def unknown(*_, **__):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectionFailedError, match="cannot reach http://nowhere: no such name"):
        asyncio.run(LoadTarget.resolve("http://nowhere", ["0"]))


def test_of_several_addresses_the_first_that_accepts_is_used(monkeypatch):
    """As for `localhost`, which may be ::1 first while the server listens on 127.0.0.1 only."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.9", "127.0.0.1")]

    async def main():
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        target = await LoadTarget.resolve(f"http://both:{listening.sockets[0].getsockname()[1]}", ["0"])
        listening.close()
        await asyncio.sleep(0)
        assert target.address == "127.0.0.1" and target.netloc.startswith("both:")

    asyncio.run(main())


def test_a_load_test_trusts_the_same_certificates_as_other_requests(monkeypatch):
    async def connected(*_):
        return Mock()

    monkeypatch.setattr(LoadTarget, "connect", connected)
    for url in ("https://127.0.0.1:8443", "http://127.0.0.1:8000"):
        assert asyncio.run(LoadTarget.resolve(url, ["0"])).tls is Endpoint(url).stream_tls
