"""A look-up or a cancel reaches the replica that has the request."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import live
import pytest
import tiny

from server.errors import UnavailableError
from server.protocols.hop import HOP_HEADER, Address, Hop, PeerReply, named_peers

SECRET = {"X-Request-Token": "a secret of some length"}


def test_a_request_is_found_and_cancelled_from_another_replica(tmp_path: Path) -> None:
    folder = live.write_configs(tmp_path)
    model = tiny.SEGMENTATION.name
    with live.scripted(folder, default_model=model, trusted_proxies="127.0.0.0/8") as (owner, next_worker):
        worker = next_worker()
        worker.say_ready()
        owner.wait_for(lambda: owner.http.get("/health/ready").is_success)
        with live.scripted(folder, default_model=model, peers=f"127.0.0.1:{owner.port}") as (other, next_other):
            next_other()
            headers = {"X-Request-Id": "a/b", "X-Forwarded-For": "2001:db8::7", **SECRET}
            asked = live.Later(lambda: owner.http.post("/v1/predict", content=live.photo(), headers=headers))
            owner.wait_for(lambda: owner.http.get("/v1/requests/a%2Fb", headers=SECRET).is_success)
            assert worker.hear_job().client == "2001:db8::/64"  # whose addresses share what one client may have
            assert other.http.get("/v1/requests/a%2Fb", headers=SECRET).json()["state"] == "open"
            assert other.http.get("/v1/requests/nobody", headers=SECRET).json()["code"] == "unknown_request"
            stranger = {"X-Request-Token": "another of some length"}
            assert other.http.delete("/v1/requests/a%2Fb", headers=stranger).status_code == 404
            assert other.http.delete("/v1/requests/a%2Fb", headers=SECRET).is_success
            assert asked.result().json()["code"] == "cancelled"
            assert other.http.get("/v1/requests/a%2Fb", headers=SECRET).json()["stop"] == "cancelled"


@contextmanager
def replica(status: int) -> Iterator[tuple[Address, list[Mapping[str, str]]]]:
    """A replica that answers everything with `status`, or hangs up for 0, and the headers that it was sent."""
    seen: list[Mapping[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ("127.0.0.1", server.server_port), seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(peers: Sequence[Address], headers: Mapping[str, str] | None = None) -> PeerReply | None:
    hop = Hop(lambda: peers)
    try:
        return asyncio.run(hop.ask("GET", "a/b", headers or {}, "192.0.2.7"))
    finally:
        hop.close()


def test_the_client_is_named_and_what_it_proves_goes_along() -> None:
    with replica(200) as (peer, seen):
        assert ask([peer], {"authorization": "Bearer k", "cookie": "c"}) == PeerReply(200, b"{}")
    assert seen[0]["path"] == "/v1/requests/a%2Fb"
    assert seen[0]["authorization"] == "Bearer k" and "cookie" not in seen[0]
    assert (seen[0]["x-forwarded-for"], seen[0][HOP_HEADER]) == ("192.0.2.7", "1")


def test_a_replica_that_is_asked_by_another_asks_nobody() -> None:
    with replica(200) as (peer, seen):
        assert ask([peer], {HOP_HEADER: "1"}) is None
    assert not seen


def test_a_replica_that_is_gone_has_nothing_and_one_that_is_silent_may_have_it() -> None:
    with replica(404) as (empty, _):
        pass
    gone = empty
    with replica(404) as (empty, _), replica(0) as (silent, _), replica(200) as (owner, _):
        assert ask([empty, gone]) is None
        assert ask([empty, silent, owner]) is not None
        with pytest.raises(UnavailableError, match=r"1 of 2 other replicas did not answer") as refused:
            ask([empty, silent])
        assert refused.value.code == "replica_silent"


def test_a_name_is_all_its_addresses() -> None:
    assert ("127.0.0.1", 80) in named_peers(("localhost", 80))()
    assert named_peers(None)() == ()


def test_only_so_many_look_ups_wait_for_other_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.protocols.hop.MOST_LOOK_UPS", 1)

    async def check() -> None:
        hop = Hop(lambda: [])
        for _ in range(2):
            first, second = await asyncio.gather(
                *(hop.ask("GET", "a", {}, "192.0.2.7") for _ in range(2)), return_exceptions=True
            )
            assert first is None and isinstance(second, UnavailableError) and "which is the limit" in str(second)
        hop.close()

    asyncio.run(check())


def test_replicas_that_are_not_needed_any_more_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica is asked after the other here. The first has the request, so all but the next leave the queue."""
    asked, answered = [], threading.Event()

    def ask_one(peer: Address, *_: object) -> PeerReply:
        asked.append(peer[1])
        if peer[1]:
            answered.wait(live.PATIENCE_S)
        return PeerReply(404 if peer[1] else 200, b"{}")

    async def check() -> None:
        hop = Hop(lambda: [("a", number) for number in range(50)])
        hop._threads._max_workers = 1
        assert await hop.ask("GET", "a", {}, "192.0.2.7") == PeerReply(200, b"{}")
        for _ in range(3):  # the event loop takes them from the queue
            await asyncio.sleep(0)
        answered.set()
        hop._threads.shutdown()
        assert asked in ([0], [0, 1])

    monkeypatch.setattr("server.protocols.hop._ask", ask_one)
    asyncio.run(check())
