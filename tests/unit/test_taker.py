"""The taker: takes while it may and there is more, and otherwise waits without a busy loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.support.holding import held, session
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.handlers import Handlers
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.store.values import Taken
from uno.event_bus.dead_letter.worker import taker as module
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.taker import Taker

pytestmark = pytest.mark.timed(0.1)
"""It wakes at its time, well before it would look by itself."""


def taken(*letters: Letter, more: bool = False, next_due_ms: int | None = None) -> Taken:
    return Taken(list(letters), 1_000_000, b"1-1", more, next_due_ms, None, False, False)


class FakeShard:
    """Answers each take with the next of what it was given, and with nothing after that."""

    tag = "fake"
    index = 0

    def __init__(self, *answers: Taken | Exception) -> None:
        self.answers = list(answers)
        self.takes: list[tuple[float, int]] = []
        self.waits: list[bytes] = []
        self.new = anyio.Event()

    async def take(self, consumer: str, count: int, *, alone: bool = False) -> Taken:
        self.takes.append((monotonic(), count))
        await anyio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if self.answers else taken()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait(self, after: bytes, timeout_s: float) -> None:
        self.waits.append(after)
        await self.new.wait()
        self.new = anyio.Event()


@asynccontextmanager
async def taking(shard: FakeShard, made: Session | None = None) -> AsyncIterator[tuple[Taker, Session, list[Held]]]:
    """A taker at work; it ends in order after the block."""
    made = made or session(shard, concurrency=5, batch_size=5)
    got: list[Held] = []
    taker = Taker(made, shard, got.extend)  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(taker.run)
        yield taker, made, got
        made.holdings.shut()
        taker.wake()


def count_looks(made: Session, most: int = 500) -> list[int]:
    """Count how often places are reserved, and stop a loop that spins: nothing else could."""
    looks: list[int] = []
    whole = made.holdings.reserve

    async def reserve(places: int) -> int:
        looks.append(places)
        if len(looks) > most:
            raise KeyboardInterrupt("the taker spins")
        return await whole(places)

    made.holdings.reserve = reserve  # type: ignore[method-assign, assignment]
    return looks


async def test_it_waits_while_leases_cannot_be_kept_although_a_letter_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats are cut, settles are not: a retry of this process becomes due, and must not make the loop spin."""
    monkeypatch.setattr(Session, "can_keep_leases", lambda self, shard: False)
    shard = FakeShard()
    made = session(shard, concurrency=5, batch_size=5)
    looks = count_looks(made)
    async with taking(shard, made) as (taker, _, _):
        taker.scheduled(0)
        await anyio.sleep(0.35)
        assert len(looks) < 10
        assert shard.takes == []
        monkeypatch.undo()
        await eventually(lambda: shard.takes)


async def test_it_waits_while_every_handler_needs_a_thread_and_all_threads_hang() -> None:
    """And takes again once a thread has ended, or there is a handler that needs none; `process` does not wait."""
    shard = FakeShard()
    made = session(shard, concurrency=2, batch_size=5)
    made.handlers.add(lambda event: None)
    hanging = [object(), object()]
    made.handlers.left.update(hanging)
    looks = count_looks(made)
    async with taking(shard, made) as (taker, _, _):
        taker.scheduled(0)
        await anyio.sleep(0.35)
        assert made.is_stuck and taker.is_idle
        assert shard.takes == [] and len(looks) < 10
        made.handlers.left.discard(hanging[0])
        await eventually(lambda: shard.takes)

    async def handle(event: Any) -> None: ...

    made.handlers.left.update(hanging)
    assert made.is_stuck
    made.handlers.add(handle, "async")
    assert not made.is_stuck
    made.handlers.clear()
    assert not made.is_stuck  # without a handler letters are given back, as ever


async def test_it_takes_at_once_while_there_is_more_and_then_sleeps() -> None:
    """Also when what it got were no letters, as behind a thousand that are not due."""
    letter = held(1).letter
    shard = FakeShard(taken(more=True), taken(letter), taken(more=True), taken())
    async with taking(shard) as (_, _, got):
        await eventually(lambda: got and not shard.answers, within_s=0.5)
        await anyio.sleep(0.2)
        assert len(shard.takes) == 4
        assert shard.waits == [b"1-1"]
        shard.new.set()
        await eventually(lambda: len(shard.takes) == 5, within_s=0.5)


async def test_it_wakes_when_the_next_letter_is_due() -> None:
    """By the server's reply, or because this process has scheduled one that is due earlier."""
    shard = FakeShard(taken(next_due_ms=1_000_300))
    async with taking(shard) as (taker, _, _):
        await eventually(lambda: len(shard.takes) == 2, within_s=0.6)
        assert shard.takes[1][0] - shard.takes[0][0] >= 0.29
        taker.scheduled(0.1)
        await eventually(lambda: len(shard.takes) == 3, within_s=0.4)
        assert shard.takes[2][0] - shard.takes[1][0] >= 0.09


async def test_it_asks_for_as_much_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all while there is none."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.holdings.monotonic", lambda: 0.0)  # none are taken ahead
    letters = [held(n).letter for n in range(5)]
    shard = FakeShard(taken(*letters[:3], more=True), taken(*letters[3:], more=True))
    async with taking(shard) as (_, made, got):
        await eventually(lambda: len(got) == 5)
        await anyio.sleep(0.05)
        assert [count for _, count in shard.takes] == [5, 2]
        made.holdings.drop(got[0])
        await eventually(lambda: len(shard.takes) == 3)
        assert shard.takes[2][1] == 1


async def test_it_goes_on_after_failures_with_growing_pauses() -> None:
    """0.05 s, doubled each time; the places are free meanwhile."""
    away = StoreUnavailable("refused", certain=True)
    shard = FakeShard(away, away, away, taken(held(1).letter))
    async with taking(shard) as (_, made, got):
        await eventually(lambda: got)
    assert [places for _, places in shard.takes[:4]] == [5, 5, 5, 5]
    times = [at for at, _ in shard.takes]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    for pause, least_s in zip(pauses[:3], (0.05, 0.1, 0.2), strict=True):
        assert least_s - 0.005 <= pause
    assert made.recorder.of["store_failed"] == [1, 1, 1]  # type: ignore[attr-defined]


def test_a_pause_is_short() -> None:
    """Letters that may be taken again do not wait for long."""
    assert module.PAUSE_S <= 0.1
    assert not Handlers().all_need_threads
