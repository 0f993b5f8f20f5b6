"""Holdings: places are given out once, in turn, and come back however a letter ends."""

from collections import Counter
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.holding import held
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.worker.holdings import Held, Holdings


async def reserved(holdings: Holdings, most: int) -> int | None:
    """What `reserve` gives at once; None when it waits."""
    with anyio.move_on_after(0.01):
        return await holdings.reserve(most)
    return None


async def test_as_many_places_are_given_as_handlers_may_run() -> None:
    """The rest waits until one is free."""
    holdings = Holdings(concurrency=3, batch_size=10)
    assert await reserved(holdings, 2) == 2
    assert await reserved(holdings, 5) == 1
    assert await reserved(holdings, 5) is None
    letters = [held(1), held(2)]
    holdings.hold(2, letters)
    holdings.hold(1, [])
    assert await reserved(holdings, 5) == 1
    holdings.hold(1, [])
    holdings.handled(letters[0])
    assert await reserved(holdings, 5) == 2


async def test_places_that_are_not_used_are_free_again() -> None:
    """A take that found one of three gives two back."""
    holdings = Holdings(3, 10)
    assert await holdings.reserve(3) == 3
    holdings.hold(3, [held(1)])
    assert await reserved(holdings, 3) == 2


async def test_a_letter_whose_handler_is_done_takes_no_place_but_is_held_until_it_is_settled() -> None:
    """`unhandled` counts the one, `is_empty` the other."""
    holdings = Holdings(1, 10)
    await holdings.reserve(1)
    letter = held(1)
    holdings.hold(1, [letter])
    assert (holdings.unhandled, len(holdings), holdings.is_empty) == (1, 1, False)
    holdings.handled(letter)
    holdings.handled(letter)  # twice is once
    assert (holdings.unhandled, len(holdings), holdings.is_empty) == (0, 1, False)
    holdings.drop(letter)
    assert (holdings.unhandled, len(holdings), holdings.is_empty) == (0, 0, True)


async def test_a_letter_that_is_leased_again_gives_the_older_handler_up() -> None:
    """The older lease is lost, its slot cancelled, and its end does not touch the younger one."""
    holdings = Holdings(5, 10)

    class Slot:
        cancelled = 0

        def cancel(self) -> None:
            self.cancelled += 1

    older, younger = held(1, token=1), held(1, token=2)
    older.slot = slot = Slot()  # type: ignore[assignment]
    await holdings.reserve(2)
    holdings.hold(1, [older])
    holdings.hold(1, [younger])
    assert older.lease.lost
    assert slot.cancelled == 1
    assert not younger.lease.lost
    holdings.drop(older)
    assert holdings.get(younger.letter.id) is younger
    assert holdings.unhandled == 1


async def test_takers_get_their_places_in_turn() -> None:
    """The one that has just had some waits behind the others, also when it asks first."""
    holdings = Holdings(2, 10)
    got: list[str] = []

    async def take(name: str) -> None:
        for _ in range(10):
            places = await holdings.reserve(2)
            got.append(name)
            letters = [held(len(got) * 10 + n) for n in range(places)]
            holdings.hold(places, letters)
            for letter in letters:
                tasks.start_soon(_handle, holdings, letter)

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(take, name)
    assert min(Counter(got[:15]).values()) >= 4


async def _handle(holdings: Holdings, letter: Held) -> None:
    await anyio.sleep(0.001)
    holdings.drop(letter)


async def test_a_taker_that_is_cancelled_in_the_line_holds_up_nobody() -> None:
    """Its turn goes to the next."""
    holdings = Holdings(1, 10)
    await holdings.reserve(1)
    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.01):
            await holdings.reserve(1)
        waiting: list[int] = []

        async def wait() -> None:
            waiting.append(await holdings.reserve(1))

        group.start_soon(wait)
        await anyio.sleep(0.01)
        holdings.hold(1, [])
        await eventually(lambda: waiting)
    assert waiting == [1]


async def test_no_place_is_given_after_shut() -> None:
    """Who waits hears it at once."""
    holdings = Holdings(1, 10)
    await holdings.reserve(1)
    answers: list[int] = []
    async with anyio.create_task_group() as group:
        for _ in range(3):

            async def wait() -> None:
                answers.append(await holdings.reserve(1))

            group.start_soon(wait)
        await anyio.sleep(0.01)
        holdings.shut()
    assert answers == [0, 0, 0]
    assert await holdings.reserve(1) == 0
    assert holdings.is_shut


async def test_alone_waits_for_emptiness_and_gives_no_place_meanwhile() -> None:
    """And gives them again afterwards, whatever happened inside."""
    holdings = Holdings(5, 10)
    await holdings.reserve(1)
    letter = held(1)
    holdings.hold(1, [letter])
    entered = anyio.Event()

    async def isolate() -> None:
        with suppress(ValueError):
            async with holdings.alone(within_s=10):
                entered.set()
                assert await reserved(holdings, 1) is None
                raise ValueError("inside")

    async with anyio.create_task_group() as group:
        group.start_soon(isolate)
        await anyio.sleep(0.01)
        assert not entered.is_set()
        assert await reserved(holdings, 1) is None
        holdings.drop(letter)
    assert await reserved(holdings, 5) == 5


async def test_the_end_waits_for_a_take_on_its_way() -> None:
    """`arrived` and `emptied` both count what is reserved, a suspect's place included."""
    holdings = Holdings(5, 10)
    places = holdings.reserve_alone()
    assert not holdings.is_empty
    with anyio.move_on_after(0.01) as scope:
        await holdings.arrived()
    assert scope.cancelled_caught
    letter = held(1)
    holdings.hold(places, [letter])
    await holdings.arrived()
    holdings.drop(letter)
    await holdings.emptied()


@given(
    st.integers(1, 5),
    st.lists(st.sampled_from(["reserve", "hold", "hold none", "handled", "drop", "lose", "aside"]), max_size=60),
)
def test_the_books_hold_whatever_happens_in_whichever_order(concurrency: int, steps: list[str]) -> None:  # noqa: C901
    """Letters that wait or run never pass the places that were given; at the end all is empty."""

    async def play() -> None:  # noqa: C901 - one step after another
        holdings = Holdings(concurrency, 10)
        given_out: list[int] = []
        letters: list[Held] = []
        number = 0
        for step in steps:
            match step:
                case "reserve" if holdings.has_room:
                    given_out.append(await holdings.reserve(3))
                case "hold" if given_out:
                    places = given_out.pop()
                    new = [held(number + n) for n in range(places)]
                    number += places
                    holdings.hold(places, new)
                    letters += new
                case "hold none" if given_out:
                    holdings.hold(given_out.pop(), [])
                case "handled" if letters:
                    holdings.handled(letters[0])
                case "drop" if letters:
                    holdings.drop(letters.pop(0))
                case "lose" if letters:
                    holdings.lose(letters.pop())
                case "aside" if letters and not letters[-1].handled:
                    holdings.set_aside(letters[-1])
            assert holdings.unhandled == sum(not letter.handled for letter in letters)
            assert len(holdings) == len(letters)
            in_places = sum(not letter.handled and not letter.aside for letter in letters) + sum(given_out)
            assert in_places <= concurrency
        for places in given_out:
            holdings.hold(places, [])
        for letter in letters:
            holdings.drop(letter)
        assert holdings.is_empty
        assert await reserved(holdings, 100) == concurrency

    with patch("uno.event_bus.dead_letter.worker.holdings.monotonic", lambda: 0.0):  # none are taken ahead
        anyio.run(play)


async def test_letters_ahead_follow_the_rate_of_what_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """None while handlers are slow; up to a batch when they are quick; none again when they slow down."""
    now = 1000.0
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.holdings.monotonic", lambda: now)
    holdings: Any = Holdings(2, 50)
    assert await holdings.reserve(100) == 2
    holdings.hold(2, [])
    for n in range(40):
        letter = held(n)
        holdings.hold(await holdings.reserve(1), [letter])
        holdings.drop(letter)
    now += 0.1  # 400 a second: a tenth of a second's worth ahead
    ahead = await holdings.reserve(100) - 2
    assert ahead == pytest.approx(40, abs=1)
    holdings.hold(2 + ahead, [])
    now += 1
    assert await holdings.reserve(100) == 2
