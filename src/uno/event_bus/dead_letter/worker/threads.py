"""Threads in which plain functions run: so many at a time, those included that nobody waits for any more.

A thread cannot be stopped. A call that outlives its timeout or its lease runs on, and whatever it does settles
nothing; but it keeps its place until it ends. So a handler that hangs costs a worker its threads, never the
process its memory: when all of them hang, `place` says so, and letters for plain functions are left to others.

The threads are daemons: those that still run when the worker has ended do not keep the process from leaving. They end
with it, in the middle of whatever they do, as by a kill; their letters were given back before.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, override

import anyio
import anyio.from_thread
from anyio.lowlevel import EventLoopToken, current_token

from uno.event_bus.dead_letter.handlers import caught

__all__ = ["Call", "Place", "Threads"]

LONGEST_IDLE_S = 10.0
"""A thread that had nothing to do for this long ends when the next one gets work."""

LOOK_AGAIN_S = 1.0
"""How often who waits for a place looks for one by itself: a call of an event loop that is gone wakes nobody."""

_OF_ANYIO: Final[Any] = getattr(anyio.from_thread, "threadlocals", None) or threading.local()
"""Where `anyio.from_thread` looks for the event loop, and for what was cancelled. Not public; nothing else needs it."""


def _context() -> Context:
    """Return a copy of the caller's context in which no event loop runs."""
    context = copy_context()
    if sniffio := sys.modules.get("sniffio"):
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


class Call:
    """One call of a function in a thread."""

    __slots__ = ("context", "fn", "has_ended", "is_left", "result", "scope")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn
        self.context = _context()
        self.scope = anyio.CancelScope()
        self.result: asyncio.Future[tuple[Any, BaseException | None]] = asyncio.get_running_loop().create_future()
        self.has_ended = False
        """Written by the thread."""
        self.is_left = False
        """Nobody waits for it any more, and it had not ended then."""


class _Thread(threading.Thread):
    """Runs one call after another, until it gets None."""

    def __init__(self, threads: "Threads") -> None:
        super().__init__(name="uno handler", daemon=True)
        self.calls: SimpleQueue[Call | None] = SimpleQueue()
        self.idle_since = 0.0
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._token: EventLoopToken = current_token()

    @override
    def run(self) -> None:
        _OF_ANYIO.current_token = self._token
        while (call := self.calls.get()) is not None:
            _OF_ANYIO.current_cancel_scope = call.scope
            result = call.context.run(caught, call.fn)
            del _OF_ANYIO.current_cancel_scope
            call.has_ended = True
            self._threads.left.discard(call)
            try:
                self._loop.call_soon_threadsafe(self._threads.ended, self, call, result)
            except RuntimeError:  # the loop is closed
                return
            del call, result


class Place:
    """Room for one call; free again when the block ends, unless the call runs on."""

    def __init__(self, threads: "Threads", thread: _Thread, name: str) -> None:
        self._threads = threads
        self._thread = thread
        self._name = name
        self._is_used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.leave(None if self._is_used else self._thread)

    async def run(self, fn: Callable[[], Any]) -> Any:
        """Call the function in the thread, once; raise what it raises. A cancellation does not wait for it."""
        call = Call(fn)
        self._is_used = True
        with call.scope:
            self._thread.calls.put(call)
            try:
                result, error = await call.result
            except BaseException:
                self._threads.abandon(call, self._name)
                raise
        if error is not None:
            raise error
        return result


class Threads:
    """At most `most` calls run, the ones in `left` included."""

    def __init__(self, most: int, left: set[Any], note: Callable[[str, int], None]) -> None:
        self._most = most
        self.left = left
        """Calls that nobody waits for any more and that have not ended, here or in other `Threads` that share it."""
        self._note = note
        """Called when a call is left, with its name and how many there are now, and with "" when one has ended."""
        self._places_taken = 0
        self._idle: list[_Thread] = []
        self._changed = anyio.Event()
        self._is_closed = False

    @property
    def are_all_left(self) -> bool:
        """Whether every place is taken by a call that nobody waits for."""
        return len(self.left) >= self._most

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop().calls.put(None)

    async def place(self, name: str) -> Place | None:
        """Return a place for a call of this name, or None when every place is taken by a call that runs on.

        Waits while places are taken by calls that somebody waits for. Raises RuntimeError when the system gives
        no more threads.
        """
        while self._places_taken + len(self.left) >= self._most:
            if self.are_all_left:
                return None
            with anyio.move_on_after(LOOK_AGAIN_S):
                await self._changed.wait()
        thread = self._idle.pop() if self._idle else self._start()
        self._end_idle()
        self._places_taken += 1
        return Place(self, thread, name)

    def _start(self) -> _Thread:
        thread = _Thread(self)
        thread.start()
        return thread

    def _end_idle(self) -> None:
        """End threads that many calls at once have brought, and that nobody has needed since."""
        while self._idle and monotonic() - self._idle[0].idle_since > LONGEST_IDLE_S:
            self._idle.pop(0).calls.put(None)

    def leave(self, unused: _Thread | None) -> None:
        """Give a place back; its thread, too, if nothing was called in it."""
        self._places_taken -= 1
        if unused is not None:
            self._rest(unused)
        self._wake()

    def abandon(self, call: Call, name: str) -> None:
        """Note that nobody waits for a call any more."""
        self.left.add(call)
        if call.has_ended:  # asked after it was added: the thread looks the other way round
            self.left.discard(call)
            return
        call.is_left = True
        self._wake()
        self._note(name, len(self.left))

    def ended(self, thread: _Thread, call: Call, result: tuple[Any, BaseException | None]) -> None:
        """Hand on the result of a call, in the event loop, and keep its thread for the next one."""
        self._rest(thread)
        if call.is_left:
            self._wake()
            self._note("", len(self.left))
        elif not call.result.done():
            call.result.set_result(result)

    def _rest(self, thread: _Thread) -> None:
        if self._is_closed:
            thread.calls.put(None)
        else:
            thread.idle_since = monotonic()
            self._idle.append(thread)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
