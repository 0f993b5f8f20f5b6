"""The blocking twin of `DeadLetterQueue`, for Django, Flask, Celery and scripts: the same code, without async.

One event loop in a background thread serves every caller of the process. It is made at the first call, and
made anew in a process that was forked since.
"""

import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.operations import QueueStats
from uno.event_bus.dead_letter.queue import DeadLetterQueue as AsyncQueue
from uno.event_bus.dead_letter.store.connect import Redis

__all__ = ["DeadLetterQueue"]


class DeadLetterQueue:
    """Capture and operators' verbs without async; safe from any thread, and after a fork.

    Arguments, meanings and errors are those of `uno.event_bus.dead_letter.DeadLetterQueue`. It must not be
    called from within an event loop, which it would block; the async queue is for there.
    """

    def __init__(self, redis: Redis | str | None = None, config: DeadLetterConfig | None = None) -> None:
        self._make: Callable[[], AsyncQueue] = partial(AsyncQueue, redis, config)
        self._queue = self._make()
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._life = ExitStack()
        self._pid = os.getpid()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return a queue with the settings of the environment. Raises `ConfigError`."""
        config = DeadLetterConfig.from_env(environ)
        return cls(config.require_redis_url(), config)

    @property
    def config(self) -> DeadLetterConfig:
        """The settings."""
        return self._queue.config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the background thread; the queue can be used again."""
        with self._lock:
            if self._portal is not None and self._pid == os.getpid():
                with suppress(RuntimeError):  # the portal's thread has ended already
                    self._portal.call(self._queue.aclose)
                self._life.close()
            self._portal = None
        atexit.unregister(self.close)

    def _call[T](self, verb: Callable[[AsyncQueue], Awaitable[T]]) -> T:
        """Run a coroutine of the async queue on the background loop, and wait for its result."""

        async def run() -> T:
            return await verb(self._queue)

        return self._running_portal().call(run)

    def _running_portal(self) -> BlockingPortal:
        if self._pid != os.getpid():
            # Forked: the thread stayed behind, and its lock may be taken for ever.
            self._lock, self._portal, self._life = threading.Lock(), None, ExitStack()
            self._queue, self._pid = self._make(), os.getpid()
        with self._lock:
            if self._portal is None:
                self._portal = self._life.enter_context(start_blocking_portal(name="uno-dead-letter"))
                atexit.register(self.close)
            return self._portal

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
