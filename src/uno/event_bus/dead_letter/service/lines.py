"""Streams of JSON lines: each line whole, flat in memory, and at an end when the client leaves or the service stops.

The lines come from a source that runs in a task of its own, and waits when the client is behind. When it fails, and
when the service stops, the last line has the one field ``problem``. Whoever reads a stream passes over empty lines.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Final, override

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from uno.event_bus.dead_letter.remote.wire import NDJSON, Answers, Problem
from uno.event_bus.dead_letter.service.ending import Ending, run_until_ended, stopping
from uno.event_bus.dead_letter.service.operation import Call
from uno.event_bus.dead_letter.service.reply import GUARDS, problem, problem_for, reply_problem

__all__ = ["Lines", "Source", "Tell", "line"]

BUFFERED: Final = 1
"""Pieces that wait for the client, before the source waits: each may be a whole letter, and there are many clients."""

SILENCE_S: Final = 10.0
"""The longest time without a line: proxies take a connection that is silent for longer for dead."""

LAST_LINE_S: Final = 1.0
"""How long the line that tells of the end may take to leave: a client that reads nothing is left without."""

MOST_STREAMS: Final = 16
"""Streams at a time: one of large letters that nobody reads holds some 16 MiB. Further ones get 503."""

type Tell = Callable[[bytes], Awaitable[None]]
type Source = Callable[[Tell], Awaitable[object]]
"""Awaits `tell` for each piece, which has whole lines."""


class Lines(Response):
    """A stream of JSON lines.

    Args:
        call: Whose reply it is.
        source: Where the lines come from.
        silent: What is sent after `SILENCE_S` without a line.
    """

    def __init__(self, call: Call, source: Source, *, silent: Callable[[], bytes] = lambda: b"\n") -> None:
        super().__init__(None, HTTPStatus.OK, {**GUARDS, "content-type": NDJSON, "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._call = call
        self._source = source
        self._silent = silent

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._call.service.streams
        if len(streams) >= MOST_STREAMS:
            await _too_many(self._call.request_id)(scope, receive, send)
            return
        streams.add(self)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD" and await self._run(receive, send) is Ending.CLIENT_LEFT:
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            streams.remove(self)

    async def _run(self, receive: Receive, send: Send) -> Ending:
        told: Problem | None = None
        try:
            ending = await run_until_ended(self._call.service.stop, receive, partial(self._stream, send))
            if ending is Ending.SERVICE_STOPS:
                told = stopping(self._call.request_id)
        except ClientDisconnect:
            return Ending.CLIENT_LEFT
        except Exception as error:
            ending, told = Ending.BY_ITSELF, problem_for(error, self._call.request_id)
        if told is not None and ending is not Ending.CLIENT_LEFT:
            with anyio.move_on_after(LAST_LINE_S):
                await send({"type": "http.response.body", "body": line(Answers(problem=told)), "more_body": True})
        return ending

    async def _stream(self, send: Send) -> None:
        """Send what the source tells, then raise what it raised."""
        give, take = anyio.create_memory_object_stream[bytes](BUFFERED)
        failures: list[Exception] = []
        async with anyio.create_task_group() as group, take:
            group.start_soon(self._produce, give, failures)
            try:
                while (piece := await self._next(take)) is not None:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except OSError:  # what a server may raise for a client that is gone
                failures.append(ClientDisconnect())
                group.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _produce(self, give: MemoryObjectSendStream[bytes], failures: list[Exception]) -> None:
        async with give:
            try:
                await self._source(give.send)
            except Exception as error:
                failures.append(error)

    async def _next(self, take: MemoryObjectReceiveStream[bytes]) -> bytes | None:
        """Return the next piece, or what is sent while there is none; None at the end."""
        with anyio.move_on_after(SILENCE_S):
            try:
                return await take.receive()
            except anyio.EndOfStream:
                return None
        return self._silent()


def _too_many(request_id: str) -> Response:
    detail = f"{MOST_STREAMS} streams are under way, as many as there may be: nothing was done"
    told = problem(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", detail, request_id)
    return reply_problem(told, {"retry-after": "1"})


def line(told: object) -> bytes:
    """Return a value as one line."""
    return msgspec.json.encode(told) + b"\n"
