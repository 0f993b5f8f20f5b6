"""Slots: every letter is run once, by as many tasks as there are, whatever is cancelled."""

import random
from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from tests.support.holding import held
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.slots import Slot, Slots


@pytest.mark.parametrize("tasks", [1, 3])
async def test_each_letter_is_run_once_and_at_most_so_many_at_a_time(tasks: int) -> None:
    """In the order in which they came, as far as they start."""
    started: list[str] = []
    now = most = 0

    async def attempt(letter: Held) -> None:
        nonlocal now, most
        started.append(letter.letter.id)
        now += 1
        most = max(most, now)
        await anyio.sleep(0.001)
        now -= 1

    slots = Slots(attempt)
    letters = [held(n) for n in range(20)]
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(Slot(slots).run)
        slots.put(letters[:7])
        await anyio.sleep(0.003)
        slots.put(letters[7:])
        await eventually(lambda: len(started) == 20 and not now)
        group.cancel_scope.cancel()
    assert started == [letter.letter.id for letter in letters]
    assert most == tasks


async def test_handlers_that_never_wait_run_in_a_single_task() -> None:
    """No crowd is woken for them."""
    tasks: list[int] = []

    async def attempt(letter: Held) -> None:
        tasks.append(anyio.get_current_task().id)

    slots = Slots(attempt)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(Slot(slots).run)
        await anyio.sleep(0.001)
        slots.put([held(n) for n in range(50)])
        await eventually(lambda: len(tasks) == 50)
        group.cancel_scope.cancel()
    assert len(set(tasks)) <= 2


async def test_letters_that_no_task_has_started_can_be_withdrawn() -> None:
    """What runs is not among them; a letter that is put first is run first."""
    release = anyio.Event()
    started: list[str] = []

    async def attempt(letter: Held) -> None:
        started.append(letter.letter.id)
        await release.wait()

    slots = Slots(attempt)
    one, two, three, first = (held(n) for n in range(4))
    async with anyio.create_task_group() as group:
        group.start_soon(Slot(slots).run)
        slots.put([one, two, three])
        await eventually(lambda: started)
        assert slots.withdraw() == [two, three]
        slots.put([two])
        slots.put_first(first)
        release.set()
        await eventually(lambda: len(started) == 3)
        group.cancel_scope.cancel()
    assert started == [x.letter.id for x in (one, first, two)]


@pytest.mark.parametrize("swallows", [False, True], ids=["ends", "swallows the cancellation"])
async def test_a_cancelled_letter_leaves_its_slot_to_the_next(swallows: bool) -> None:
    """The cancellation reaches that letter's handler and no other."""
    done: list[str] = []

    async def attempt(letter: Held) -> None:
        if letter is lost:
            try:
                await anyio.sleep(60)
            except anyio.get_cancelled_exc_class():
                if not swallows:
                    raise
            return
        await anyio.sleep(0.001)
        done.append(letter.letter.id)

    lost, following = held(1), held(2)
    slots = Slots(attempt)
    async with anyio.create_task_group() as group:
        group.start_soon(Slot(slots).run)
        slots.put([lost, following])
        await eventually(lambda: lost.slot)
        assert lost.slot is not None
        lost.slot.cancel()
        await eventually(lambda: done)
        group.cancel_scope.cancel()
    assert lost.slot is None


async def test_a_cancellation_at_the_very_end_of_a_letter_does_not_reach_the_next() -> None:
    """Its handler has been woken already when its slot is told to cancel it."""
    wake = anyio.Event()
    done: list[str] = []

    async def attempt(letter: Held) -> None:
        if letter is lost:
            await wake.wait()
            return
        await anyio.sleep(0.001)
        done.append(letter.letter.id)

    lost, following = held(1), held(2)
    slots = Slots(attempt)
    async with anyio.create_task_group() as group:
        group.start_soon(Slot(slots).run)
        slots.put([lost, following])
        await eventually(lambda: lost.slot)
        wake.set()
        assert lost.slot is not None
        lost.slot.cancel()
        await eventually(lambda: done)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(5))
async def test_no_letter_is_forgotten_when_letters_are_cancelled_at_random(seed: int) -> None:
    """Every letter is started once, and every one that nobody cancelled comes to its end."""
    chance = random.Random(seed)
    started: Counter[str] = Counter()
    ended: set[str] = set()
    cancelled: set[str] = set()

    async def attempt(letter: Held) -> None:
        started[letter.letter.id] += 1
        for _ in range(chance.randrange(4)):
            await anyio.lowlevel.checkpoint()
        ended.add(letter.letter.id)

    slots = Slots(attempt)
    letters = [held(n) for n in range(300)]
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(Slot(slots).run)
        for letter in letters:
            slots.put([letter])
            if chance.random() < 0.5:
                await anyio.lowlevel.checkpoint()
            victim = chance.choice(letters)
            if victim.slot is not None:
                cancelled.add(victim.letter.id)
                victim.slot.cancel()
        await eventually(lambda: len(started) == 300 and not any(letter.slot for letter in letters))
        group.cancel_scope.cancel()
    assert set(started.values()) == {1}
    assert ended | cancelled == {letter.letter.id for letter in letters}
