"""WebSocket connections: uvicorn's protocol, with limits on what one client can cost the server.

Frames are handed to uvicorn one by one, large ones in fragments, each of which takes little time. Frames beyond the
allowance of a connection wait for turns. Too many control frames, and messages in tiny fragments, close the connection.
A malformed handshake is answered with an error.
"""

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import Any

from starlette.status import WS_1001_GOING_AWAY, WS_1007_INVALID_FRAME_PAYLOAD_DATA, WS_1008_POLICY_VIOLATION
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.protocol import OPEN

from server.errors import InvalidError, ServerError
from server.garbage import without_frames
from server.protocols.gate import Gate
from server.protocols.peers import Peer
from server.protocols.pieces import MAX_HEADER_BYTES, TEXT, FrameHeader, check_pieces, parse_frame_header
from server.protocols.turns import LARGE_BYTES, STEP_BYTES, TEXT_BYTES, Allowance
from server.requests.body import join

logger = logging.getLogger("anytime.websocket")
logger.setLevel(logging.WARNING)  # without the access log, opened and closed sockets are not logged


class WebSocketProtocol(Peer, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, frame by frame."""

    FRAMES_PER_TURN = 16
    MAX_REST_BYTES = 64 * 1024
    """While more bytes than this wait to be parsed, reading is paused."""
    CONTROL_RATE, CONTROL_BURST = 10.0, 100.0
    """The rate and the burst of control frames; a connection that exceeds them is closed."""

    _rest = b""  # received bytes that are not parsed yet
    _lets_others_read = False
    _waits_for_turn = False
    _frame: FrameHeader | None = None  # the frame that is being read
    _left = 0  # bytes of it that are still to come
    _message_bytes = 0  # of the unfinished message
    _fragments = 0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._gate: Gate = config.app.state.gate  # type: ignore[union-attr]
        self._parts: list[bytes] = []  # of the message that the application takes next, if there are several
        self._control = Allowance(self.CONTROL_RATE, self.CONTROL_BURST)
        self.due_s = time.monotonic() + self._gate.settings.header_timeout_s
        if not config.access_log:
            self.logger = self.conn.logger = logger

    # --- the connection ---

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.conn.parser.close()  # a generator that refers to `conn`, as do the frames of its errors
        for error in filter(None, (self.conn.parser_exc, self.conn.handshake_exc)):
            without_frames(error)
        self._rest = b""
        self._gate.peers.remove(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread_due_s = time.monotonic() + self._gate.settings.unread_timeout_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_due_s = math.inf

    def shutdown(self) -> None:
        """Shut down as uvicorn does, which alone would raise InvalidState if the connection is closed already."""
        with suppress(InvalidState):
            super().shutdown()
        self.transport.close()

    def expire(self) -> None:
        settings = self._gate.settings
        if self._message_bytes:
            reason = f"a message was not complete after {settings.body_timeout_s:g} s"
            self._fail(WS_1008_POLICY_VIOLATION, "too_slow", reason)
        else:
            self._fail(WS_1001_GOING_AWAY, "idle", f"nothing was said for {settings.socket_idle_timeout_s:g} s")

    def give_way(self, error: ServerError) -> None:
        self._rest = b""
        self.frames = []
        self._fail(error.close_code, error.code, str(error))

    # --- from bytes to messages ---

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.handshake_initiated:
            self._rest += data
            if len(data) >= LARGE_BYTES and not self._lets_others_read:
                self._lets_others_read = True
                may_go_on = self._gate.peers.spend(self, len(data) / STEP_BYTES, time.monotonic())
                (self.loop.call_soon if may_go_on else self._gate.turns.wait)(self._read_on)
            self._go_on()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self._refuse_handshake()

    def _go_on(self, turns: int = 0) -> None:
        """Hand frames on while the application takes the messages: `turns` frames, and what the allowance permits."""
        at, rest, now_s = 0, self._rest, time.monotonic()
        while at < len(rest) and self.handshake_complete and not (self.read_paused or self.transport.is_closing()):
            if self._frame is None:
                header = parse_frame_header(rest[at : at + MAX_HEADER_BYTES])
                if header is None or self._waits_for_turn:
                    break
                if turns:
                    turns -= 1
                elif not self._gate.peers.allows(self, now_s):
                    if self.close_sent:  # a client that reads the close stops
                        self.transport.close()
                        break
                    self._waits_for_turn = True
                    self._gate.turns.wait(self._turn)
                    break
                self._begin(header, now_s)
            piece = rest[at : at + self._left]
            at += len(piece)
            self._take(piece, now_s)
        self._rest = rest[at:]
        if self.transport.is_closing():
            self._rest, self._message_bytes = b"", 0
        self._gate.peers.hold(self, len(self._rest) + self._message_bytes)
        self._regulate()

    def _read_on(self) -> None:
        self._lets_others_read = False
        self._regulate()

    def _turn(self) -> None:
        self._waits_for_turn = False
        self._go_on(self.FRAMES_PER_TURN)

    def _begin(self, header: FrameHeader, now_s: float) -> None:
        """Begin a frame. Closes the connection if the limit on frames is exceeded."""
        self._frame, self._left = header, header.size_bytes
        if header.is_control:
            if not self._control.take(now_s):
                reason = f"more than {self.CONTROL_RATE:g} control frames a second came; send fewer"
                self._fail(WS_1008_POLICY_VIOLATION, "too_many_control_frames", reason)
            return
        if header.opcode == TEXT:
            self._gate.peers.spend(self, header.size_bytes // TEXT_BYTES, now_s)
        if not self._message_bytes:
            self.due_s = now_s + self._gate.settings.body_timeout_s
        self._fragments += 1
        try:
            check_pieces(self._fragments, self._message_bytes)
        except InvalidError as error:
            self._fail(WS_1008_POLICY_VIOLATION, error.code, str(error))

    def _take(self, piece: bytes, now_s: float) -> None:
        """Hand a part of the present frame on."""
        frame = self._frame
        if frame is None or self.transport.is_closing():
            return
        at = frame.size_bytes - self._left
        self._left -= len(piece)
        self._message_bytes += len(piece)
        is_large = frame.is_large(self.config.ws_max_size)
        for part in frame.fragments(at, piece) if is_large else (piece,):
            self.conn.receive_data(part)
        if self.conn.parser_exc is not None:
            self._gate.complaints.note(self.address, "bad_frame", str(self.conn.parser_exc))
            self.handle_parser_exception()
            return
        if self._left:
            return
        self._frame = None
        if frame.is_control:
            self._message_bytes -= frame.size_bytes
        elif frame.final:
            self._message_bytes = self._fragments = 0
            self.due_s = now_s + self._gate.settings.socket_idle_timeout_s
        self.handle_events()

    def _regulate(self) -> None:
        """Read while there is room for what comes."""
        if self.transport.is_closing():
            return
        if self._lets_others_read or self.read_paused or len(self._rest) > self.MAX_REST_BYTES:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError as error:
                reason = f"a text is not UTF-8 at byte {error.start}"
                self._fail(WS_1007_INVALID_FRAME_PAYLOAD_DATA, "not_utf8", reason)
                return
        elif len(self.frames) > 1 and not self.close_sent:
            self._parts, self.frames = self.frames, [b""]
        super().send_receive_event_to_app()

    # --- the application ---

    async def receive(self) -> ASGIReceiveEvent:
        message = await self.queue.get()
        if self._parts and message["type"] == "websocket.receive":
            message = {"type": "websocket.receive", "bytes": await join(self._parts), "text": None}
            self._parts = []
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        self.handshake_complete |= self.close_sent  # by an HTTP response; otherwise uvicorn would log an error
        if not self._message_bytes:
            self.due_s = time.monotonic() + self._gate.settings.socket_idle_timeout_s
        if self._rest:  # it came before the handshake was complete, or before the close
            self._go_on()

    # --- refusals ---

    def _refuse_handshake(self) -> None:
        """Refuse a malformed handshake and close the connection. The websockets library has written a response for some
        errors; for the others this method writes one."""
        self._gate.complaints.note(self.address, "bad_handshake", str(self.conn.handshake_exc))
        answer = b"".join(self.conn.data_to_send())
        if not answer:
            sentence = b"This is no WebSocket handshake (RFC 6455, section 4.1).\n"
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            answer = STATUS_LINE[400] + head % len(sentence) + sentence
        self.handshake_complete = self.close_sent = True
        self.transport.write(answer)
        self.transport.close()

    def _fail(self, close_code: int, code: str, reason: str) -> None:
        """Close the connection with a reason, without waiting for the client."""
        if close_code != WS_1001_GOING_AWAY:
            self._gate.complaints.note(self.address, code, reason)
        if self.handshake_complete and self.conn.state is OPEN:
            self.conn.fail(close_code, reason[:120])
            self.handle_parser_exception()
        else:
            self.transport.close()
        self.due_s = math.inf
