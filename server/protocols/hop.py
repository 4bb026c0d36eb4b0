"""The hop to other replicas: a look-up or a cancel that came to a replica that does not have the request.

A balancer knows nothing of ids. The replica that it chose asks all others at once, in the client's name, and passes on
what the one that has the request says. A replica that was asked by another one asks no further replica.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple
from urllib.parse import quote

from server.errors import UnavailableError

HOP_HEADER = "x-request-hop"
"""Marks a request that another replica sends."""

PASSED_ON = ("authorization", "x-request-token")
"""The headers by which clients prove that a request is theirs. `X-Forwarded-For` passes on the client's address."""

PATIENCE_S = 2.0
"""The seconds to wait for the answer of one replica."""
MOST_AT_ONCE = 16
"""The number of replicas that are asked at the same time. The limit keeps look-ups of unknown ids from flooding
them."""

MOST_LOOK_UPS = 64
"""The number of look-ups that may wait for other replicas at the same time."""

Address = tuple[str, int]


class PeerReply(NamedTuple):
    """What the replica that has the request said."""

    status: int
    body: bytes


class Hop:
    """Asks the replicas whose addresses `find_peers` returns, which may wait; this one may be among them."""

    def __init__(self, find_peers: Callable[[], Sequence[Address]]) -> None:
        self._find_peers = find_peers
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "hop")
        self._look_ups = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, method: str, request_id: str, headers: Mapping[str, str], client: str) -> PeerReply | None:
        """Ask all other replicas about a request. Returns the reply of the replica that has it, or None if all answered
        that they do not have it. Raises UnavailableError if no replica has it and some did not answer, or if too many
        look-ups wait already."""
        if HOP_HEADER in headers:
            return None
        if self._look_ups >= MOST_LOOK_UPS:
            sentence = f"{MOST_LOOK_UPS} look-ups wait for other replicas, which is the limit; ask again"
            raise UnavailableError(sentence, "replica_silent", 1.0)
        self._look_ups += 1
        try:
            return await self._ask_all(method, request_id, headers, client)
        finally:
            self._look_ups -= 1

    async def _ask_all(self, method: str, request_id: str, headers: Mapping[str, str], client: str) -> PeerReply | None:
        loop = asyncio.get_running_loop()
        passed_on = {name: headers[name] for name in PASSED_ON if name in headers}
        passed_on |= {HOP_HEADER: "1", "x-forwarded-for": client}
        path = f"/v1/requests/{quote(request_id, safe='')}"
        silent = 0
        try:
            peers = await loop.run_in_executor(self._threads, self._find_peers)
        except OSError:
            peers, silent = (), 1
        asked = [loop.run_in_executor(self._threads, _ask, peer, method, path, passed_on) for peer in peers]
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    found = await answer
                except ConnectionRefusedError:  # no server runs at this address
                    continue
                except (OSError, HTTPException):
                    silent += 1
                    continue
                if found.status != 404:
                    return found
        finally:
            for future in asked:  # those that are not needed any more leave the queue
                if not future.cancel() and not future.cancelled():
                    future.exception()  # otherwise asyncio reports that nobody has looked at it
        if silent:
            raise UnavailableError(
                f"the request is not here, and {silent} of {len(peers) or 'the'} other replicas did not answer within "
                f"{PATIENCE_S:g} s; ask again",
                "replica_silent",
                1.0,
            )
        return None


def _ask(peer: Address, method: str, path: str, headers: Mapping[str, str]) -> PeerReply:
    """Raises OSError or HTTPException if the replica does not answer."""
    connection = HTTPConnection(*peer, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return PeerReply(answer.status, answer.read())
    finally:
        connection.close()


def named_peers(address: Address | None) -> Callable[[], Sequence[Address]]:
    """A function that resolves the name in `address` to the addresses of all replicas, for example a headless Service
    of Kubernetes. If `address` is None, there are no other replicas."""

    def find() -> Sequence[Address]:
        if address is None:
            return ()
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        return sorted({(str(peer[0]), int(peer[1])) for *_, peer in found})

    return find
