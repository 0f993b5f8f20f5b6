"""What the roles of one worker share."""

import inspect
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.handlers import Handlers
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.retry import RetryPolicy
from uno.event_bus.dead_letter.store.shard import LARGEST_BATCH
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.telemetry.recorder import Recorder
from uno.event_bus.dead_letter.worker.holdings import Holdings

__all__ = ["Clock", "Report", "Session", "consumer_name", "keep_running"]

logger = logging.getLogger(__name__)

type ParkedHook = Callable[[Letter, str], Awaitable[object] | object]


def consumer_name() -> str:
    """Return a name that no worker ever had: host, process id and a random part.

    The fence needs it: a settle of a dead worker must never pass for a living one's.
    """
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


class Clock:
    """The server's time, as far as this process knows it from the last `take`."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def heard(self, now_ms: int) -> None:
        """Set the clock by a reply that has just come."""
        self._ahead_s = now_ms / 1000 - monotonic()

    def now_ms(self) -> int:
        """Return Unix time by the server's clock, ms."""
        return int((monotonic() + self._ahead_s) * 1000)


@dataclass(slots=True)
class Report:
    """What became of the letters of one run, by settles that the store took."""

    resolved: int = 0
    retried: int = 0
    parked: int = 0
    released: int = 0
    discarded: int = 0
    stale: int = 0
    """Outcomes refused: the lease was lost meanwhile."""

    def __str__(self) -> str:
        return (
            f"resolved {self.resolved}, retried {self.retried}, parked {self.parked}, released {self.released}, "
            f"discarded {self.discarded}, stale {self.stale}"
        )


@dataclass(slots=True)
class Session:
    """One run of a worker: its settings, its name, and what it holds."""

    store: Store
    config: DeadLetterConfig
    handlers: Handlers
    policy_now: Callable[[], RetryPolicy]
    """The queue's policy, which may be set while this runs."""
    recorder: Recorder
    parked_hooks: Sequence[ParkedHook]
    consumer: str = field(default_factory=consumer_name)
    clock: Clock = field(default_factory=Clock)
    report: Report = field(default_factory=Report)
    beaten_at: dict[int, float] = field(default_factory=dict)
    """Shard index → monotonic time of the last heartbeat that the shard has answered."""
    holdings: Holdings = field(init=False)
    tasks: TaskGroup = field(init=False)
    """In which hooks run; set when the session does."""

    def __post_init__(self) -> None:
        self.holdings = Holdings(self.config.concurrency, min(self.config.batch_size, LARGEST_BATCH))

    @property
    def policy(self) -> RetryPolicy:
        """The queue's policy, as it is now."""
        return self.policy_now()

    @property
    def lease_s(self) -> float:
        """Length of a lease: the queue's, seconds."""
        return self.store.layout.lease_ms / 1000

    @property
    def tick_s(self) -> float:
        """How often the background roles look after a shard, seconds: a third of a lease, at most 1 s."""
        return min(1.0, self.lease_s / 3)

    def can_keep_leases(self, shard: int) -> bool:
        """Whether heartbeats get through to the shard: what is taken without them is lost again."""
        beaten_at = self.beaten_at.get(shard)
        return beaten_at is None or monotonic() - beaten_at < self.lease_s * 2 / 3

    def parked(self, letter: Letter, why: str) -> None:
        """Run the hooks for a letter that was parked, in the background; a hook that fails is logged."""
        for hook in self.parked_hooks:
            self.tasks.start_soon(_run_hook, hook, letter, why)


async def _run_hook(hook: ParkedHook, letter: Letter, why: str) -> None:
    try:
        if inspect.iscoroutinefunction(hook):
            result: object = hook(letter, why)
        else:  # it may block; a thread cannot be stopped, and must not keep the worker from leaving
            call: Callable[[], object] = partial(hook, letter, why)
            result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        if isinstance(result, Awaitable):
            await result
    except Exception:
        logger.exception("on_parked hook failed for letter %s; the letter is parked all the same", letter.id)


async def keep_running(name: str, role: Callable[[], Awaitable[None]]) -> None:
    """Run a role until it returns; whatever it raises is logged, and it starts again after 0.1 to 5 s.

    A worker whose loop died while the process looks healthy is the worst failure of its kind.
    """
    pause = 0.1
    while True:
        started = monotonic()
        try:
            await role()
        except Exception:
            logger.exception("%s failed; it starts again", name)
        else:
            return
        pause = 0.1 if monotonic() - started > 10 else min(pause * 2, 5.0)
        await anyio.sleep(pause)
