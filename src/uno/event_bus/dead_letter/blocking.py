"""The blocking twin of `DeadLetterQueue`, for Django, Flask, Celery and scripts: the same code, without async.

One event loop in a background thread serves every caller of a queue. It is made at the first call, and made anew
in a process that was forked since, and after `close`.
"""

import asyncio
import atexit
import os
import selectors
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from opentelemetry.trace import TracerProvider

from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.queue import DeadLetterQueue as AsyncQueue
from uno.event_bus.dead_letter.spool.spool import SENDER
from uno.event_bus.dead_letter.store.connect import Client, seeds_of

__all__ = ["DeadLetterQueue"]

END_SECONDS: Final = 20.0
"""For the thread to end once no call runs; usually a millisecond, but an embedded server may take 15 s."""


class DeadLetterQueue:
    """Capture and operators' verbs without async; safe from any thread, and after a fork.

    Arguments, meanings and errors are those of `uno.event_bus.dead_letter.DeadLetterQueue`. Called from within a
    running event loop, which it would block, a verb raises `RuntimeError`; the async queue is for there.
    """

    def __init__(
        self,
        redis: Client | str | None = None,
        config: DeadLetterConfig | None = None,
        *,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._background: _Background | None = None
        self._lock = threading.RLock()  # re-entrant: a signal's handler may capture, too
        self._make: Callable[[], AsyncQueue] = partial(AsyncQueue, redis, config, tracer_provider=tracer_provider)
        self._config = self._make().config  # what is wrong is told now
        _queues.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return a queue with the settings of the environment. Raises `ConfigError`."""
        config = DeadLetterConfig.from_env(environ)
        return cls(config.require_url(), config)

    @property
    def config(self) -> DeadLetterConfig:
        """The settings."""
        return self._config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._background is not None:
            self._background.stop()  # without waiting: this may be any thread, that one as well

    def close(self) -> None:
        """Close the connections and end the background thread; the queue can be used again.

        Waits for calls of other threads, at most ``operation_timeout``; those that take longer raise
        `StoreUnavailable`. The end of the process does the same.
        """
        with self._lock:
            background, self._background = self._background, None
            if background is not None:
                background.stop()
        if background is not None:
            background.join()

    def _call[T](self, verb: Callable[[AsyncQueue], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the async queue on the background loop, and wait for its result."""
        if _in_event_loop():
            raise RuntimeError(
                "the blocking queue was called from within a running event loop, which it would block: "
                "use uno.event_bus.dead_letter.DeadLetterQueue there, or call it in a thread"
            )
        with self._lock:  # so that no call comes after stop(), when nobody would answer it
            if self._background is None or not self._background.is_alive():
                self._background = _Background(self._make())
            future = self._background.start(verb)
        try:
            return future.result()
        except CancelledError:
            raise StoreUnavailable("the queue was closed during the call") from None
        except BaseException:
            future.cancel()  # KeyboardInterrupt, a task's time limit: nobody waits for the result any more
            raise

    def _forked(self) -> None:
        """Begin anew in a forked child: the thread stayed behind, and the lock may be taken for ever."""
        background, self._background, self._lock = self._background, None, threading.RLock()
        if background is not None:
            background.abandon()

    def add(self, event: Any, **how: Any) -> str:
        """Capture one event that failed; return the letter's id."""
        return self._call(lambda queue: queue.add(event, **how))

    def add_many(self, events: Sequence[Any], **how: Any) -> list[str]:
        """Capture events that failed alike; return the letters' ids in order."""
        return self._call(lambda queue: queue.add_many(events, **how))

    @contextmanager
    def capture(self, event: Any, **how: Any) -> Generator[None]:
        """Capture the event when the body raises an `Exception`, which then goes no further."""
        try:
            yield
        except Exception as error:
            if not self.config.enabled:
                raise
            try:
                how.setdefault("error", error)
                self.add(event, **how)
            except Exception as failure:
                raise failure from error

    def get(self, letter_id: str) -> Letter:
        """Return an open letter."""
        return self._call(lambda queue: queue.get(letter_id))

    def retry(self, letter_id: str, *, delay: float = 0.0) -> None:
        """Send a letter back to the workers."""
        self._call(lambda queue: queue.retry(letter_id, delay=delay))

    def discard(self, letter_id: str, why: str) -> None:
        """Remove a letter for good."""
        self._call(lambda queue: queue.discard(letter_id, why))

    def stats(self) -> QueueStats:
        """Return counts and totals."""
        return self._call(lambda queue: queue.stats())


class _Background:
    """An event loop in a thread, and the async queue whose connections belong to it."""

    def __init__(self, queue: AsyncQueue) -> None:
        self._queue = queue
        # Not epoll or kqueue: a forked child would share the first with us, so what it removes, we no longer see.
        self._selector = selectors.PollSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._stopping = asyncio.Event()
        # A daemon, since Python waits for all others before it calls `_close_all`, which ends this one in order.
        self._thread = threading.Thread(target=self._run, name="uno-dead-letter", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.stop()  # interrupted while it starts: it is nobody's
            raise

    def is_alive(self) -> bool:
        """Say whether there is somebody to answer a call."""
        return self._thread.is_alive()

    def start[T](self, verb: Callable[[AsyncQueue], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a call, in the caller's context: the letter gets the caller's trace."""
        return asyncio.run_coroutine_threadsafe(verb(self._queue), self._loop)

    def stop(self) -> None:
        """Have the thread end after the calls that were started; waits for nothing."""
        with suppress(RuntimeError):  # it has ended, and closed its loop
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        """Wait for the thread's end, but not for ever."""
        self._thread.join(self._queue.config.operation_timeout + END_SECONDS)

    def abandon(self) -> None:
        """Let go of the parent's connections, in a forked child, and without a word on them.

        They are the parent's sockets: what a finaliser sends (TLS says goodbye) would end its connections, and
        while a child holds them open, the server does not notice that the parent has closed them.
        """
        _abandoned.append(self)
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in list((self._selector.get_map() or {}).values()):  # none when its loop is closed
            os.dup2(nothing, key.fd, inheritable=False)
        os.close(nothing)

    def _run(self) -> None:
        asyncio.run(self._main(), loop_factory=lambda: self._loop)

    async def _main(self) -> None:
        try:
            await self._stopping.wait()
            await self._end_calls()
        finally:
            with suppress(Exception):  # a connection that cannot be closed is gone already
                await self._queue.aclose()

    async def _end_calls(self) -> None:
        calls = {task for task in asyncio.all_tasks() - {asyncio.current_task()} if task.get_name() != SENDER}
        if calls:
            _, late = await asyncio.wait(calls, timeout=self._queue.config.operation_timeout)
            for call in late:
                call.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _import_the_rest() -> None:
    """Have all imported now that the first call would import in the background.

    A fork just then would leave the child with an import lock that is taken for ever.
    """
    import_module("anyio._backends._asyncio")
    import_module("encodings.idna")  # for names of hosts
    [target] = seeds_of("unix:///").targets
    pool = target.pool(name="", size=1, timeout_s=1.0)
    pool.make_connection()  # type: ignore[no-untyped-call]  # does not connect, but asks for redis-py's version


_import_the_rest()

_queues: WeakSet[DeadLetterQueue] = WeakSet()
_abandoned: list[_Background] = []
"""What forked children inherited; kept, so that no finaliser runs for what was never theirs."""


def _forked() -> None:
    for queue in list(_queues):
        queue._forked()


@atexit.register
def _close_all() -> None:
    for queue in list(_queues):
        queue.close()


os.register_at_fork(after_in_child=_forked)
