"""The spool of one queue in one event loop: captures what Redis cannot take, and has it sent when Redis is back.

A capture that Redis cannot take is written to a segment and fsynced, and `add` answers ``spooled:<event id>``. While
letters wait, later captures of the same home shards go behind them, so that their order holds; one task sends them.

All file work runs in one thread of the spool's own, in order; all other state belongs to the event loop.
"""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from time import time
from typing import Final, NamedTuple
from weakref import WeakSet

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, SpoolFull, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.spool.disk import reason
from uno.event_bus.dead_letter.spool.folder import Folder, Full, SpoolStats
from uno.event_bus.dead_letter.spool.record import Packed, State, pack
from uno.event_bus.dead_letter.spool.sender import Sender
from uno.event_bus.dead_letter.spool.writer import Writer
from uno.event_bus.dead_letter.store.receiver import Receiver

__all__ = ["PREFIX", "SENDER", "Spool"]

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
"""While its home takes letters, a capture waits this long for those before it; then it goes behind them, on disk."""

END_S: Final = 1.0
"""How long a batch that is on its way may take when the queue is closed."""

type Capture = Callable[[Receiver, Sequence[NewLetter]], Awaitable[list[str | Exception]]]


class Waiting(NamedTuple):
    """What waits on disk, as of the last work on the files."""

    letters: int = 0
    homes: frozenset[int] | None = frozenset()
    """Home shards that they wait for; None: not known."""


class Spool:
    """The spool of one queue, in one event loop."""

    def __init__(self, config: DeadLetterConfig, open_receiver: Callable[[], Awaitable[Receiver]]) -> None:
        assert config.spool_dir is not None
        self._config = config
        self._directory = config.spool_dir
        self._open_receiver = open_receiver
        self._begin_anew()
        _spools.add(self)

    def _begin_anew(self) -> None:
        config = self._config
        self._wake, self._stop = asyncio.Event(), asyncio.Event()
        self._folder = Folder(self._directory, config.queue, config.spool_max_bytes)
        self._sender = Sender(config, self._folder, self._in_thread, self._opened, self._stop.is_set)
        self._writer = Writer(self._append)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uno-dlq-spool")
        self._opening = anyio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._receiver: Receiver | None = None
        """Since it was open once."""
        self._on_disk = Waiting()
        self._away: frozenset[int] | None = None
        """Homes that took no letter in the last round; None: not known."""
        self._turn: asyncio.Event | None = None
        """Set when the letters of all other homes are sent; None: no round that is likely to bring that about."""
        self._told = ""
        self._closed = False

    @property
    def letters(self) -> int:
        """Letters that wait: written, being written, adopted."""
        return self._on_disk.letters + self._writer.unwritten.total()

    # -- life ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what dead processes have left, and begin to send. Idempotent; raises nothing of the disk's."""
        if self._task is not None:
            return
        async with self._opening:
            if self._task is None:
                try:
                    await self._in_thread(self._folder.adopt)
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
        while self._writer.unwritten:
            await self._writer.settled()
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._folder.close)
        self._thread.shutdown(wait=False)

    def forget(self) -> None:
        """Leave the files: the event loop has ended without `aclose`."""
        self._closed = True
        self._thread.shutdown()
        self._folder.close()

    def forked(self) -> None:
        """Begin anew in a forked child: files, locks and letters are the parent's."""
        self._folder.abandon()
        _abandoned.append(self.__dict__.copy())
        self._begin_anew()

    async def _in_thread[**P, T](self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function on the files, and note what waits then. Raises `OSError`, also once it is closed."""
        if self._closed:
            raise OSError(0, "it is closed")

        def run() -> T:
            try:
                return act(*args, **kwargs)
            finally:
                self._on_disk = Waiting(self._folder.letters, self._folder.homes)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def _opened(self) -> Receiver:
        self._receiver = await self._open_receiver()
        return self._receiver

    async def stats(self) -> SpoolStats | None:
        """Count what waits, of all processes that share the directory; None when the disk does not tell."""
        try:
            return await self._in_thread(self._folder.survey)
        except OSError as error:
            logger.warning("spool %s: %s", self._folder.path, error)
            return None

    # -- capturing -----------------------------------------------------------------------------------

    async def add(self, letters: Sequence[NewLetter], capture: Capture) -> list[str | Exception]:
        """Capture letters; return by position the id or the error of each. What Redis cannot take is spooled.

        That is what it could not be asked, or may have taken: the capture key makes the repeat safe. So with
        ``dedupe_window=0`` a letter whose outcome is unknown is not spooled, and the caller hears of it.
        """
        captured_at_ms = int(time() * 1000)
        await self.open()
        behind = await self._behind(letters) if self.letters else frozenset[int]()
        free = [position for position in range(len(letters)) if position not in behind]
        results: dict[int, str | Exception] = {}
        if free:
            results |= zip(free, await self._captured([letters[p] for p in free], capture), strict=True)
        errors: dict[int, StoreUnavailable | None] = dict.fromkeys(behind)
        errors |= {
            position: result
            for position, result in results.items()
            if isinstance(result, StoreUnavailable) and (result.certain or self._config.dedupe_window)
        }
        if errors:
            results |= await self._keep(letters, dict(sorted(errors.items())), captured_at_ms)
        return [results[position] for position in range(len(letters))]

    async def _behind(self, letters: Sequence[NewLetter]) -> frozenset[int]:
        """Return the positions of those before which others wait, after waiting for a turn where that may help."""
        homes = [self._home_of(new) for new in letters]
        if self._turn is not None and any(self._is_behind(home) and home not in (self._away or ()) for home in homes):
            await _wait(self._turn, TURN_S)
        return frozenset(position for position, home in enumerate(homes) if self._is_behind(home))

    def _home_of(self, new: NewLetter) -> int | None:
        return None if self._receiver is None else self._receiver.home_of(new)

    def _is_behind(self, home: int | None) -> bool:
        on_disk, unwritten = self._on_disk.homes, self._writer.unwritten
        if home is None or on_disk is None or unwritten[None]:
            return bool(self.letters)
        return home in on_disk or unwritten[home] > 0

    async def _captured(self, letters: Sequence[NewLetter], capture: Capture) -> list[str | Exception]:
        try:
            receiver = await self._opened()
        except StoreUnavailable as error:  # no letter was sent, whatever became of the question for the layout
            certain = StoreUnavailable(error.why, certain=True)
            certain.__cause__ = error
            return [certain] * len(letters)
        return await capture(receiver, letters)

    async def _keep(
        self, letters: Sequence[NewLetter], errors: Mapping[int, StoreUnavailable | None], captured_at_ms: int
    ) -> dict[int, str | Exception]:
        """Write letters, with what Redis said of each: None where it was not asked, because others wait."""
        told = next((error for error in errors.values() if error is not None), None)
        if told is not None:
            self._away = None
            if not self.letters:
                logger.warning(
                    "queue %s: letters go to %s: %s",
                    self._config.queue,
                    self._folder.path,
                    str(told),
                    extra={"queue": self._config.queue},
                )
        refusal = await self._writer.write(
            [
                pack(
                    letters[position],
                    captured_at_ms,
                    State.WAITING if error is None or error.certain else State.TRIED,
                    self._home_of(letters[position]),
                )
                for position, error in errors.items()
            ]
        )
        if refusal is None:
            return {position: f"{PREFIX}{letters[position].event_id}" for position in errors}
        return {position: self._refused(refusal, error) for position, error in errors.items()}

    def _refused(self, refusal: Full | OSError, error: StoreUnavailable | None) -> StoreUnavailable:
        """Return what the caller hears of a letter that the disk did not take."""
        certain = error is None or error.certain
        why = "letters wait to be sent first" if error is None else error.why
        if isinstance(refusal, Full):
            return SpoolFull(why, self._folder.path, self._config.spool_max_bytes, certain=certain)
        refused = StoreUnavailable(
            f"{why}; spool {self._folder.path}: {reason(refusal)}", certain=certain and refusal.errno is not None
        )
        refused.__cause__ = error or refusal
        return refused

    async def _append(self, calls: Sequence[Sequence[Packed]]) -> Sequence[Full | OSError | None]:
        try:
            return await self._in_thread(self._folder.append, calls)
        finally:
            self._wake.set()

    # -- sending -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            self._wake.clear()
            why: Exception | None
            try:
                await self._in_thread(self._folder.adopt)
                self._away, why = await self._round() if self._on_disk.letters else (frozenset[int](), None)
            except Exception as error:
                self._away, why = None, error
            self._tell(why)
            pause = 0.0 if why is None else min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            if pause:
                await _wait(self._stop, pause * (0.5 + random.random() / 2))
            elif not self._on_disk.letters:
                await _wait(self._wake, ADOPT_EVERY_S)

    async def _round(self) -> tuple[frozenset[int], Exception | None]:
        """Send what can be sent; return the homes that take no letters, and why the first one was not sent.

        A disk takes letters as fast as Redis does: captures that go on and on would find others that wait for ever.
        So homes that took letters in the last round come first, and their captures wait for the end of that.
        """
        away = self._away
        if away is not None:
            self._turn = asyncio.Event()
            try:
                await self._writer.settled()
                walk = await self._sender.run(away)
            finally:
                turn, self._turn = self._turn, None
                turn.set()
            if not away:
                return frozenset(walk.away), walk.why
        walk = await self._sender.run()
        return frozenset(walk.away), walk.why

    def _tell(self, why: Exception | None) -> None:
        """Log why letters wait, once for each reason; and that all are sent."""
        text = "" if why is None else f"{type(why).__name__}: {why}"
        if text and text != self._told and (self._on_disk.letters or isinstance(why, OSError)):
            known = isinstance(why, DeadLetterError | OSError)
            logger.warning(
                "queue %s: %d letters wait in %s: %s",
                self._config.queue,
                self._on_disk.letters,
                self._folder.path,
                text,
                exc_info=None if known else why,
                extra={"queue": self._config.queue},
            )
            self._told = text
        elif not text and not self._on_disk.letters:
            if self._sender.sent:
                logger.info(
                    "queue %s: %d letters are sent from the spool",
                    self._config.queue,
                    self._sender.sent,
                    extra={"queue": self._config.queue},
                )
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
