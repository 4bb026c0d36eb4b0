"""HTTP connections: uvicorn's protocol, with limits on what one client can cost the server.

- One request at a time: the next request is parsed once the answer to the one before has been sent and read.
- Headers, trailers and chunks are limited in size, in number and in the time that they may take to arrive.
- Requests to upgrade to another protocol than WebSocket are answered as plain HTTP requests.
- The time of each request's first byte is noted.
"""

import asyncio
import math
import time
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import HeadersTooLargeError, InvalidError, ServerError, SlowRequestError
from server.protocols.flow import HeldFlow, limit_unread
from server.protocols.gate import Gate
from server.protocols.head import HeldHead, last_response
from server.protocols.http import ARRIVED_S, HOP_S
from server.protocols.message import Message, OverrunError, announced_bytes, to_head, without_upgrades
from server.protocols.peers import Peer
from server.protocols.pieces import check_pieces
from server.protocols.turns import LARGE_BYTES, STEP_BYTES
from server.protocols.websocket import WebSocketProtocol


class HttpProtocol(Peer, HttpToolsProtocol):
    """uvicorn's HTTP protocol, one request at a time."""

    MAX_HEAD_BYTES = 64 * 1024
    """The most bytes of a request's headers, and of anything else that brings no byte of a body, such as empty lines,
    chunk extensions and trailers. The parser takes time that grows with the square of their number."""
    MAX_REST_BYTES = 64 * 1024
    """While more bytes than this wait behind an unanswered request, reading is paused."""

    _rest = b""  # received bytes that are not parsed yet
    _received_s = 0.0  # when the last of them arrived
    _lets_others_read = _waits_for_turn = False
    _pipelined = False  # `_rest` arrived before the last request was answered
    _refused = False  # what still arrives is dropped

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._gate: Gate = config.app.state.gate  # type: ignore[union-attr]
        self._message = Message()

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: HeldFlow = HeldFlow(transport)
        self.address = self.client[0] if self.client else "unknown"
        settings = self._gate.settings
        limit_unread(transport, settings.unread_timeout_s)
        self.waits_since_s = time.monotonic()
        self.due_s = self.waits_since_s + settings.header_timeout_s
        if refusal := self._gate.peers.add(self):
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # lets go of `HeldHead`, see server/garbage.py
        self._rest = b""
        self._gate.peers.remove(self)

    def expire(self) -> None:
        settings, part = self._gate.settings, "body" if self._message.in_body else "header"
        limit_s = settings.body_timeout_s if part == "body" else settings.header_timeout_s
        sentence = f"the {part} was not complete after {limit_s:g} s (--{part}-timeout-s); send faster"
        self.give_way(SlowRequestError(sentence, "too_slow"))

    def give_way(self, error: ServerError) -> None:
        if self._message.begun and not self.lingers:
            self._refuse(error)
        else:
            self.transport.close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.lingers:
            self.transport.close()

    # --- from bytes to requests ---

    def data_received(self, data: bytes) -> None:
        self._received_s = time.monotonic()
        if not self._refused:
            self._rest += data
        if len(data) >= LARGE_BYTES and not self._lets_others_read:
            self._lets_others_read = True
            may_go_on = self._gate.peers.spend(self, len(data) / STEP_BYTES, self._received_s)
            (self.loop.call_soon if may_go_on else self._gate.turns.wait)(self._read_on)
        self._go_on()

    def _read_on(self) -> None:
        self._lets_others_read = False
        self._go_on()

    def _go_on(self) -> None:
        """Parse the received bytes as far as the order of requests and the allowance permit."""
        if self.transport.is_closing():
            return
        while self._rest and not (self._message.complete or self._waits_for_turn or self.transport.is_closing()):
            if self._message.begun or self._begin():
                self._parse()
        self._hold(self._lets_others_read or len(self._rest) > self.MAX_REST_BYTES)
        unfinished_bytes = len(self._rest)
        if not (self._refused or self._message.complete or self.cycle is None or self.cycle.response_complete):
            unfinished_bytes += self._message.body_bytes
        if unfinished_bytes != self.held_bytes:
            self._gate.peers.hold(self, unfinished_bytes)

    def _begin(self) -> bool:
        """Begin the next request if its first bytes are here and the connection is within its allowance."""
        rest = self._rest.lstrip(b"\r\n")  # RFC 9112, section 2.2
        self._message.idle_bytes += len(self._rest) - len(rest)
        self._rest = rest
        if self._message.idle_bytes > self.MAX_HEAD_BYTES:
            self.send_400_response("empty lines are no request.")
        elif self._rest and not self._pipelined and self._gate.peers.allows(self, time.monotonic()):
            self._start()
        elif self._rest:
            self._waits_for_turn = True
            self._gate.turns.wait(self._turn)
        return self._message.begun

    def _turn(self) -> None:
        """Parse one request, because it is this connection's turn."""
        self._waits_for_turn = self._pipelined = False
        if self._rest and not self.transport.is_closing():
            self._start()
            self._go_on()

    def _start(self) -> None:
        self._message.begun, self._message.arrived_s = True, self._received_s
        self.waits_since_s = time.monotonic()
        self.due_s = self.waits_since_s + self._gate.settings.header_timeout_s

    def _hold(self, hold: bool) -> None:
        """Pause reading from the connection (`hold` is True), or resume it."""
        if hold != self.flow.held and not self.transport.is_closing():
            self.flow.held = hold
            (self.flow.pause_reading if hold else self.flow.resume_reading)()

    def _parse(self) -> None:
        """Parse received bytes, at most to the end of the message's present part: its head, its body, or a portion of a
        chunked body."""
        end = self._message.end(self._rest)
        piece, self._rest = self._rest[:end], self._rest[end:]
        self._message.take(piece)
        self._feed(piece)
        if self._message.idle_bytes > self.MAX_HEAD_BYTES and not (self._refused or self.transport.is_closing()):
            sentence = f"headers may have {self.MAX_HEAD_BYTES:,} bytes, and these have more; send shorter ones"
            self._refuse(HeadersTooLargeError(sentence, "headers_too_large"))

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._unsupported_upgrade_warning()
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if isinstance(refusal, OverrunError):
                self._end_after_this()
            elif isinstance(refusal, ServerError):
                self._refuse(refusal)
            else:
                self.send_400_response("these bytes are not HTTP.")
            del refusal  # its frames refer to this one, see server/garbage.py

    # --- what the parser finds ---

    def on_message_begin(self) -> None:
        if self._message.complete:
            raise OverrunError
        super().on_message_begin()
        # The time of the first byte, since headers may come slowly. ASGI allows further keys.
        self.scope.update({ARRIVED_S: self._message.arrived_s})  # type: ignore[misc]

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._message.in_body:  # what follows a body is a trailer, and no header (RFC 9110, section 6.5)
            super().on_header(name, value)

    def on_headers_complete(self) -> Any:
        if self.parser.get_method() == b"CONNECT":
            raise InvalidError("CONNECT is for proxies, and this is none; send GET or POST", "bad_http")
        self._message.begin_body(announced_bytes(self.headers))
        self.waits_since_s = math.inf
        self.due_s = time.monotonic() + self._gate.settings.body_timeout_s
        if self.parser.should_upgrade() and not self._should_upgrade():  # as `curl --http2` asks for
            return
        super().on_headers_complete()
        if self.cycle is not None:  # it is None before a WebSocket
            self.cycle.transport = HeldHead(self.cycle, self.loop, self._end)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._message.take_body(len(body))
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._message.chunks += 1
        check_pieces(self._message.chunks, self._message.body_bytes)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._message.complete, self.due_s = True, math.inf
        super().on_message_complete()
        if self.cycle.response_complete:
            self._next()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self.cycle.transport = self.transport  # lets go of `HeldHead`, see server/garbage.py
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self._message.complete:
                self._next()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread_due_s = time.monotonic() + self._gate.settings.unread_timeout_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_due_s = math.inf
        if self._message.complete and self.cycle.response_complete:
            self._next()

    def _end(self, awaits_100: bool) -> None:
        """Close the connection after its last response. If the client is still sending a body, linger first.
        `awaits_100`: the client sent `Expect: 100-continue`, and got no 100."""
        if self._message.complete or (awaits_100 and not self._message.body_bytes) or not self.cycle.response_complete:
            self.transport.close()
        else:
            self.linger(time.monotonic())

    def _next(self) -> None:
        """Wait for the next request, if the client reads its answers and the response was not the last one."""
        if self.flow.write_paused or self.transport.is_closing():
            return
        if not self.cycle.keep_alive:
            self.transport.close()
            return
        self.waits_since_s = time.monotonic()
        if self.scope["method"] != "POST":  # they run on the event loop alone: a step for each ms after the last byte
            took_s = self.waits_since_s - self._received_s - self.scope.get(HOP_S, 0.0)  # type: ignore[operator]
            self._gate.peers.spend(self, max(0.0, 1000 * took_s - 1), self.waits_since_s)
        self._pipelined = bool(self._rest)
        self._message = Message()
        self.due_s = self.waits_since_s + self._gate.settings.idle_timeout_s
        if self._rest:
            self.loop.call_soon(self._go_on)

    def _end_after_this(self) -> None:
        """Drop what came behind a chunked body, and close after the answer (RFC 9112, section 9.3.2)."""
        self._rest = b""
        if self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    # --- other protocols ---

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket protocol."""
        self.connections.discard(self)
        protocol = WebSocketProtocol(config=self.config, server_state=self.server_state, app_state=self.app_state)
        self._gate.peers.replace(self, protocol)
        head = to_head(self.parser.get_method(), self.url, self.headers)
        self.parser = None  # type: ignore[assignment]  # it refers to this connection, see server/garbage.py
        rest, self._rest = self._rest, b""
        self._hold(False)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(head)
        if rest:
            protocol.data_received(rest)

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore the request's wish to upgrade (RFC 9110, section 7.8): parse its head again without the fields that
        ask for another protocol."""
        head = to_head(self.parser.get_method(), self.url, without_upgrades(self.headers))
        self.parser, self._message.in_body = httptools.HttpRequestParser(self), False
        self._feed(head)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self._refuse(InvalidError(f"{msg} Speak HTTP/1.1 (RFC 9112)", "bad_http"))

    def _refuse(self, error: ServerError) -> None:
        """Close the connection. Send an error first, unless the request has a response, or the client would mistake the
        error for the response to an earlier request. What is left of a body is dropped."""
        self._gate.complaints.note(self.address, error.code, str(error))
        cycle, message = self.cycle, self._message
        own = message.in_body and cycle is not None and cycle.scope is self.scope
        free = cycle is None or (cycle.more_body and not cycle.response_started if own else cycle.response_complete)
        if free := free and not self.transport.is_closing():
            self.transport.write(last_response(error))
        # A client that waits for a 100 sends no body now.
        lingers = free and message.awaits_body and (cycle is None or not cycle.waiting_for_100_continue)
        if cycle is not None and cycle.more_body:  # the application holds the body so far
            cycle.disconnected, cycle.waiting_for_100_continue, cycle.body = True, False, bytearray()
            cycle.message_event.set()
        self._refused, self._rest = True, b""
        self._gate.peers.hold(self, 0)
        if lingers:
            self._hold(False)
            self.flow.resume_reading()
            self.linger(time.monotonic())
        else:
            self.transport.close()
