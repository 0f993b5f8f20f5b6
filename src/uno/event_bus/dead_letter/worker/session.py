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
from anyio.abc import TaskGroup

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.handlers import Handlers
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.retry import RetryPolicy
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH
from uno.event_bus.dead_letter.telemetry.log_fields import bind, fields_of
from uno.event_bus.dead_letter.telemetry.ration import Ration
from uno.event_bus.dead_letter.telemetry.recorder import NO_RECORDER, Recorder
from uno.event_bus.dead_letter.telemetry.tracing.work import WorkSpans
from uno.event_bus.dead_letter.worker.cancellation import by_worker, take_back
from uno.event_bus.dead_letter.worker.holdings import Holdings
from uno.event_bus.dead_letter.worker.outages import Outages
from uno.event_bus.dead_letter.worker.served import Served
from uno.event_bus.dead_letter.worker.threads import Threads

__all__ = ["Clock", "Report", "Session", "consumer_name", "keep_running"]

logger = logging.getLogger(__name__)

HOOK_THREADS = 40
"""Hooks that are plain functions and run at a time. They are the application's, and none of the handlers' threads."""

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
    """Outcomes refused, or given up: the lease was lost meanwhile."""
    unknown: int = 0
    """Outcomes whose settle was not answered, and whose lease is over: settled by that, or lost."""

    def __str__(self) -> str:
        return (
            f"resolved {self.resolved}, retried {self.retried}, parked {self.parked}, released {self.released}, "
            f"discarded {self.discarded}, stale {self.stale}, unknown {self.unknown}"
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
    tracing: WorkSpans | None = None
    """None: nobody traces."""
    consumer: str = field(default_factory=consumer_name)
    clock: Clock = field(default_factory=Clock)
    report: Report = field(default_factory=Report)
    beaten_at: dict[int, float] = field(default_factory=dict)
    """Shard index → monotonic time of the last heartbeat that the shard has answered."""
    unheard: set[int] = field(default_factory=set)
    """Indexes of shards of which a `take` was not answered: what it leased, if it did, has to be given back."""
    outages: Outages = field(default_factory=Outages)
    served: Served = field(default_factory=Served)
    parked_lines: Ration = field(default_factory=Ration)
    """Of the log lines about letters that were parked: of a flood a few are enough."""
    records: bool = field(init=False)
    """Whether anybody records: hooks that are called for each letter cost nothing otherwise."""
    holdings: Holdings = field(init=False)
    threads: Threads = field(init=False)
    """Of handlers that are plain functions."""
    hook_threads: Threads = field(init=False)
    tasks: TaskGroup = field(init=False)
    """In which hooks run; set when the session does."""

    def __post_init__(self) -> None:
        self.records = self.recorder is not NO_RECORDER
        self.holdings = Holdings(self.config.concurrency, min(self.config.batch_size, LARGEST_BATCH))
        self.threads = Threads(self.config.concurrency, self.handlers.left, self._note_left())
        self.hook_threads = Threads(HOOK_THREADS, set(), lambda name, left: None)

    def _note_left(self) -> Callable[[str, int], None]:
        """Return what tells how many calls run on in threads, and when that is over."""
        some, all_ = self.outages.of("threads"), self.outages.of("threads")
        most, queue = self.config.concurrency, self.config.queue

        def note(name: str, left: int) -> None:
            if name:
                some.failed(
                    f"{left} of {most} are taken, the last by {name}", "calls run on past their timeout or lease"
                )
            if name and left >= most:
                all_.failed(f"all {most} are taken", "no letter of a plain function is run until such a call ends")
            if left < most:
                all_.over()
            if not left:
                some.over()
            self.recorder.threads_left(queue, left)

        return note

    @property
    def is_stuck(self) -> bool:
        """Whether no letter can be run: every handler needs a thread, and a call that hangs is in each of them."""
        return self.threads.are_all_left and self.handlers.all_need_threads

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

    def can_run(self, shard: int) -> bool:
        """Whether letters of the shard should be taken: their leases can be kept, and they can be run."""
        return self.can_keep_leases(shard) and not self.is_stuck

    def parked(self, letter: Letter, why: str) -> None:
        """Run the hooks for a letter that was parked, in the background; a hook that fails is logged."""
        for hook in self.parked_hooks:
            self.tasks.start_soon(self._run_hook, hook, letter, why)

    async def _run_hook(self, hook: ParkedHook, letter: Letter, why: str) -> None:
        try:
            result = await self._call_hook(partial(hook, letter, why), is_async=inspect.iscoroutinefunction(hook))
            if isinstance(result, Awaitable):
                await result
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or by_worker():
                raise
            logger.exception(
                "on_parked hook failed for letter %s; the letter is parked all the same",
                letter.id,
                extra=fields_of(letter),
            )
        take_back()

    async def _call_hook(self, call: Callable[[], object], *, is_async: bool) -> object:
        if is_async:
            return call()
        place = await self.hook_threads.place("on_parked")
        assert place is not None  # hooks have no timeout: none is left before the end
        with place:
            return await place.run(call)


async def keep_running(name: str, role: Callable[[], Awaitable[None]], shard: Shard | None = None) -> None:
    """Run a role until it returns; whatever it raises is logged, and it starts again after 0.1 to 5 s.

    A role of one shard has it in the fields of its log lines.

    A worker whose loop died while the process looks healthy is the worst failure of its kind.
    """
    if shard is not None:
        bind(shard=shard.index)
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
