"""The spool: where letters wait, on this machine's disk, while Redis is away.

A capture that Redis cannot take is written to a segment file and fsynced, and `add` answers ``spooled:<event id>``.
While letters wait, later captures go behind them, so that their order holds; one task sends them when Redis is back.

==========================  ====================================================================================
what happens                what becomes of the letters
==========================  ====================================================================================
this process is killed      they stay; the next process with the same directory and queue adopts and sends them,
                            at its start, or within ten seconds when it runs already
killed while it writes      the torn record was never acknowledged; all complete ones are sent
killed while it sends       the batch is marked as tried: see `spool_sender` for how it is captured once
the disk is full, or sick   the caller gets `StoreUnavailable` with the disk's error: the event is not captured
the bound is reached        the caller gets `SpoolFull`, a `QueueFull`: nothing is dropped to make room
the machine is lost         they are lost with it: until they are sent, one disk has them
==========================  ====================================================================================

All file work runs in one thread of the spool's own, in order; all other state belongs to the event loop.
"""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from time import time
from typing import Final
from weakref import WeakSet

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.spool_files import Full, SpoolFiles, SpoolStats
from uno.event_bus.dead_letter.spool_record import Packed, State, pack
from uno.event_bus.dead_letter.spool_sender import Sender
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["PREFIX", "SENDER", "Spool", "SpoolFull"]

logger = logging.getLogger(__name__)

PREFIX: Final = "spooled:"
"""What the id of a spooled letter begins with; the event's id follows."""

SENDER: Final = "uno-dlq-spool"
"""Name of the task that sends."""

ADOPT_EVERY_S: Final = 10.0
"""How often a process looks for letters of dead ones."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""Between two rounds that could not send everything: doubled each time, less up to half of it by chance."""

TURN_S: Final = 0.5
"""While Redis takes letters, a capture waits this long for those before it; then it goes behind them, on disk."""

END_S: Final = 1.0
"""How long a batch that is on its way may take when the queue is closed."""

type Capture = Callable[[Store, Sequence[NewLetter]], Awaitable[list[str | Exception]]]


class SpoolFull(QueueFull):
    """Raised when Redis is away and the spool has its bytes. ``certain`` as of `StoreUnavailable`."""

    def __init__(self, queue: str, directory: str, limit: int, why: str, *, certain: bool = True) -> None:
        self.queue = queue
        self.directory = directory
        self.limit = limit
        self.shards = 1
        self.certain = certain
        outcome = "the event was not captured" if certain else "outcome unknown"
        DeadLetterError.__init__(
            self, f"spool {directory} is full (spool_max_bytes is {limit} bytes) and {why}: {outcome}"
        )


class Spool:
    """The spool of one queue, in one event loop."""

    def __init__(self, config: DeadLetterConfig, open_store: Callable[[], Awaitable[Store]]) -> None:
        assert config.spool_dir is not None
        self._config = config
        self._open_store = open_store
        self._files = SpoolFiles(config.spool_dir, config.queue, config.spool_max_bytes)
        self._sender = Sender(config, self._files, self._in_thread, open_store, lambda: self._closing)
        self._begin_anew()
        _spools.add(self)

    def _begin_anew(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uno-dlq-spool")
        self._opening = anyio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._on_disk = 0
        self._unwritten = 0
        self._waiting: list[tuple[list[Packed], asyncio.Future[Exception | None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._gate: asyncio.Event | None = None
        """Set when the round is over; None: no round that is likely to send everything."""
        self._well = False
        """Redis takes letters, as far as is known: the last round sent everything."""
        self._told = ""
        self._closed = False

    @property
    def letters(self) -> int:
        """Letters that wait: written, being written, adopted."""
        return self._on_disk + self._unwritten

    @property
    def _closing(self) -> bool:
        return self._stop.is_set()

    # -- life ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what dead processes have left, and begin to send. Idempotent; raises nothing of the disk's."""
        if self._task is not None:
            return
        async with self._opening:
            if self._task is None:
                try:
                    await self._in_thread(self._files.adopt)
                except OSError as error:
                    self._tell(error)
                self._task = asyncio.create_task(self._run(), name=SENDER, context=Context())

    async def aclose(self) -> None:
        """Stop sending, and leave the files to whoever comes next; a batch on its way gets a second to arrive."""
        self._stop.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait({task}, timeout=END_S if self._sender.sending else 0.05)
            task.cancel()
            await asyncio.wait({task})
        while self._committer is not None:
            await asyncio.wait({self._committer})
        self._closed = True
        await self._in_thread(self._files.close)
        self._thread.shutdown(wait=False)

    def forget(self) -> None:
        """Leave the files: the event loop has ended without `aclose`."""
        self._closed = True
        self._thread.shutdown()
        self._files.close()

    def forked(self) -> None:
        """Begin anew in a forked child: files, locks and letters are the parent's."""
        self._files.abandon()
        _abandoned.append(self.__dict__.copy())
        self._begin_anew()

    async def _in_thread[**P, T](self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def run() -> tuple[T | None, OSError | None, int]:
            try:
                return act(*args, **kwargs), None, self._files.letters
            except OSError as error:
                return None, error, self._files.letters

        result, error, self._on_disk = await asyncio.get_running_loop().run_in_executor(self._thread, run)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # None only where T is

    async def stats(self) -> SpoolStats | None:
        """Count what waits, of all processes that share the directory; None when the disk does not tell."""
        try:
            return await self._in_thread(self._files.survey)
        except OSError as error:
            logger.warning("spool %s: %s", self._files.folder, error)
            return None

    # -- capturing -----------------------------------------------------------------------------------

    async def add(self, letters: Sequence[NewLetter], capture: Capture) -> list[str | Exception]:
        """Capture letters; return by position the id or the error of each. What Redis cannot take is spooled.

        That is what it could not be asked, or may have taken: the capture key makes the repeat safe. So with
        ``dedupe_window=0`` a letter whose outcome is unknown is not spooled, and the caller hears of it.
        """
        captured_at_ms = int(time() * 1000)
        await self.open()
        if self._gate is not None:
            await _wait(self._gate, TURN_S)
        if self.letters:
            return await self._keep(letters, [None] * len(letters), captured_at_ms)
        results = await self._captured(letters, capture)
        away = [
            (position, result)
            for position, result in enumerate(results)
            if isinstance(result, StoreUnavailable) and (result.certain or self._config.dedupe_window)
        ]
        if away:
            self._well = False
            kept = await self._keep([letters[p] for p, _ in away], [error for _, error in away], captured_at_ms)
            for (position, _), result in zip(away, kept, strict=True):
                results[position] = result
        return results

    async def _captured(self, letters: Sequence[NewLetter], capture: Capture) -> list[str | Exception]:
        try:
            store = await self._open_store()
        except StoreUnavailable as error:  # no letter was sent, whatever became of the question for the layout
            certain = StoreUnavailable(error.why, certain=True)
            certain.__cause__ = error
            return [certain] * len(letters)
        return await capture(store, letters)

    async def _keep(
        self, letters: Sequence[NewLetter], errors: Sequence[StoreUnavailable | None], captured_at_ms: int
    ) -> list[str | Exception]:
        """Write letters, with what Redis said of each: None where it was not asked, because others wait."""
        if errors[0] is not None and not self.letters:
            logger.warning("queue %s: letters go to %s: %s", self._config.queue, self._files.folder, errors[0])
        refusal = await self._written(
            [
                pack(new, captured_at_ms, State.WAITING if error is None or error.certain else State.TRIED)
                for new, error in zip(letters, errors, strict=True)
            ]
        )
        if refusal is None:
            return [f"{PREFIX}{new.event_id}" for new in letters]
        return [self._refused(refusal, error) for error in errors]

    def _refused(self, refusal: Exception, error: StoreUnavailable | None) -> Exception:
        certain = error is None or error.certain
        why = "letters wait there to be sent first" if error is None else error.why
        if isinstance(refusal, Full):
            why = why if error is None else f"Redis is unavailable ({why})"
            return SpoolFull(self._config.queue, self._files.folder, self._config.spool_max_bytes, why, certain=certain)
        certain = certain and not (isinstance(refusal, OSError) and refusal.errno is None)
        refused = StoreUnavailable(f"{why}; spool {self._files.folder}: {refusal}", certain=certain)
        refused.__cause__ = error or refusal
        return refused

    async def _written(self, records: list[Packed]) -> Exception | None:
        """Have records on disk, or return why not; calls that come together share one fsync."""
        if self._closed:
            return OSError(0, "it is closed")
        written = asyncio.get_running_loop().create_future()
        self._unwritten += len(records)
        self._waiting.append((records, written))
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit(), context=Context())
        return await asyncio.shield(written)  # who is cancelled does not take the others' letters along

    async def _commit(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting, []
                refusals: Sequence[Exception | None]
                try:
                    refusals = await self._in_thread(self._files.append, [records for records, _ in calls])
                except OSError as error:
                    refusals = [error] * len(calls)
                for (records, written), refusal in zip(calls, refusals, strict=True):
                    self._unwritten -= len(records)
                    if not written.done():
                        written.set_result(refusal)
                self._wake.set()
        finally:
            self._committer = None

    # -- sending -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = 0.0
        while not self._closing:
            self._wake.clear()
            try:
                await self._in_thread(self._files.adopt)
                why = await self._round() if self._on_disk else None
            except Exception as error:
                why = error
            self._well = why is None
            self._tell(why)
            pause = 0.0 if why is None else min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            if pause:
                await _wait(self._stop, pause * (0.5 + random.random() / 2))
            elif not self._on_disk:
                await _wait(self._wake, ADOPT_EVERY_S)

    async def _round(self) -> Exception | None:
        if not self._well:
            return await self._sender.run()
        # Else captures that go on and on would find letters that wait for ever: a disk takes them as fast as Redis.
        self._gate = asyncio.Event()
        try:
            while self._committer is not None:
                await asyncio.wait({self._committer})
            return await self._sender.run()
        finally:
            gate, self._gate = self._gate, None
            gate.set()

    def _tell(self, why: Exception | None) -> None:
        """Log why letters wait, once for each reason; and that all are sent."""
        text = "" if why is None else f"{type(why).__name__}: {why}"
        if text and text != self._told and (self._on_disk or isinstance(why, OSError)):
            known = isinstance(why, DeadLetterError | OSError)
            what = "queue %s: %d letters wait in %s: %s"
            logger.warning(
                what, self._config.queue, self._on_disk, self._files.folder, text, exc_info=None if known else why
            )
            self._told = text
        elif not text and not self._on_disk:
            if self._sender.sent:
                logger.info("queue %s: %d letters are sent from the spool", self._config.queue, self._sender.sent)
            self._sender.sent, self._told = 0, ""


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    try:
        async with asyncio.timeout(at_most_s):
            await event.wait()
    except TimeoutError:
        return


_spools: WeakSet[Spool] = WeakSet()
_abandoned: list[dict[str, object]] = []
"""What forked children inherited: kept, so that no finaliser speaks of tasks that were never theirs."""


def _forked() -> None:
    for spool in list(_spools):
        spool.forked()


os.register_at_fork(after_in_child=_forked)
