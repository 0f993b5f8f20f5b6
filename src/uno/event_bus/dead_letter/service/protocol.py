"""A connection of the service: uvicorn's HTTP over llhttp, with bounds on what those two leave open.

Of the head: `HEAD_BYTES`, `MOST_HEADERS`, and the time from the connection's first moment (or a later request's first
byte) to its end. Of anything that the parser takes in without a word, such as a trailer or a chunk's extensions:
`HEAD_BYTES`. Of connections: their number, and how long a client may leave a reply unread. Requests in a form that two
servers could read differently are refused, so that no proxy before the service can be made to see another request.
"""

import asyncio
import logging
from functools import partial
from typing import Any, Final, override

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from uno.event_bus.dead_letter.service.connections import Connections
from uno.event_bus.dead_letter.service.headers import new_request_id
from uno.event_bus.dead_letter.service.heads import HEAD_BYTES, MOST_HEADERS, check_head, too_large
from uno.event_bus.dead_letter.service.refusal import Refusal, reply_of

__all__ = ["Protocol"]

logger = logging.getLogger(__name__)

MOST_PIPELINED: Final = 16

LINGER_S: Final = 1.0
"""How long a client that is refused in the middle of its request may take to read why, and hang up."""

UNREAD_S: Final = 60.0
"""How long a client may leave a reply unread."""

UNREAD_AT_END_S: Final = 2.0
"""How long it may read nothing of one once the server is to end: it would hold that up for all of its time."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, of: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._of = of
        self._silent_bytes = 0
        """Fed to the parser since it last said something."""
        self._head_bytes = 0
        self._is_in_body = False
        self.is_ending = False
        """It is about to be closed: nothing that comes in counts any more."""
        self._lingered_bytes = 0
        self._refused: Refusal | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        """Of replies, when `_end_timer` was set."""

    # -- the connection ------------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(_Lingering(transport, self))  # type: ignore[arg-type]
        if self._of.admit(self):
            self._await_head()
        else:
            self._tell(Refusal(503, "overloaded", "every connection is at work", {"retry-after": "1"}))
            self.is_ending = True
            transport.close()  # without lingering: there are too many already

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._of.forget(self)
        self._stop_timers()
        if self._end_timer is not None:
            self._end_timer.cancel()

    @override
    def shutdown(self) -> None:
        """End it when its requests under way are answered, and the answers read: some of them each moment."""
        super().shutdown()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._end_timer = self.loop.call_later(UNREAD_AT_END_S, self._look_at_end)

    def _look_at_end(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        if 0 < self._unread_bytes <= unread_bytes:
            self.abort()
            return
        self._unread_bytes = unread_bytes
        self._end_timer = self.loop.call_later(UNREAD_AT_END_S, self._look_at_end)

    def abort(self) -> None:
        """End it at once."""
        self._of.forget(self)
        self.transport.abort()

    def linger(self, transport: asyncio.Transport) -> None:
        """End it as `transport.close` would, but let the client read what it was told before.

        A connection that is closed while more is coming in is reset, and the client may never see its reply.
        """
        if self.is_ending or transport.is_closing():
            return
        self.is_ending = True
        self._stop_timers()
        if not self._is_in_body and self._refused is None:
            transport.close()
            return
        if self in self._of.all:
            self._of.idle[self] = None  # it may give way to others
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        self._head_timer = self.loop.call_later(LINGER_S, transport.abort)

    # -- time ----------------------------------------------------------------------------------------

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._of.timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(Refusal(408, "timeout", f"the head took longer than {self._of.timeout_s:g} s"))
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._unread_timer = None

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_S, self.abort)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    # -- what comes in -------------------------------------------------------------------------------

    @override
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.is_ending:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > self._of.linger_bytes:
                self.transport.abort()
            return
        if not self._is_in_body:
            self._await_head()
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(self._refused or Refusal(400, "bad_request", "this is no sound HTTP/1.1 request"))
        else:
            if self._silent_bytes > HEAD_BYTES:
                self._refuse(too_large())

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 1
        self._silent_bytes = 0

    @override
    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= MOST_HEADERS:
            self._stop(too_large())
        if self._is_in_body:
            return  # a trailer: nobody may rely on what comes after the body
        super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """Note that the parser gets on."""
        self._silent_bytes = 0

    @override
    def on_headers_complete(self) -> None:
        self._check_head()
        if len(self.pipeline) >= MOST_PIPELINED:
            self._stop(Refusal(400, "bad_request", f"more than {MOST_PIPELINED} requests wait for their replies"))
        self._silent_bytes = self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._is_in_body = True
        self._of.idle.pop(self, None)
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._silent_bytes = 0
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline and not self._is_in_body and self in self._of.all:
            self._of.idle[self] = None

    def _count(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            self._stop(too_large())

    def _check_head(self) -> None:
        if self.parser.should_upgrade():
            self._stop(Refusal(400, "bad_request", "the protocol cannot be changed (Upgrade)"))
        try:
            check_head(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        except Refusal as refused:
            self._stop(refused)

    def _stop(self, refused: Refusal) -> None:
        """Stop the parser, from within one of its callbacks."""
        self._refused = refused
        raise ValueError

    def _refuse(self, refused: Refusal) -> None:
        """Say why, and end the connection; without a word where a reply is under way that this would garble."""
        if self.is_ending:
            return
        self._refused = refused
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering:
            cycle.disconnected = True  # its route is told that nobody listens
            cycle.message_event.set()
        if self.pipeline or (is_answering and cycle.response_started):
            self.abort()
            return
        self._tell(refused)
        self.transport.close()

    def _tell(self, refused: Refusal) -> None:
        refused.closes = True
        headers, body = reply_of(refused, request_id := new_request_id())
        logger.info("connection refused: %d %s, request %s", refused.status, refused.detail, request_id)
        lines = [b"%s: %s\r\n" % pair for pair in (*self.server_state.default_headers, *headers)]
        self.transport.write(b"".join([STATUS_LINE[refused.status], *lines, b"\r\n", body]))


class _Lingering:
    """A transport whose `close` lets the client read what it was told; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, connection: Protocol) -> None:
        self._transport, self._connection = transport, connection
        self.close = partial(connection.linger, transport)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Answer whether it ends, or is about to."""
        return self._connection.is_ending or self._transport.is_closing()
