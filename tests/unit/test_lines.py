"""Lines: letters that wait for a handler with a concurrency of its own."""

from tests.support.holding import held
from uno.event_bus.dead_letter.handlers import Handler
from uno.event_bus.dead_letter.worker.holdings import Holdings
from uno.event_bus.dead_letter.worker.lines import Lines


async def nothing(event: object) -> None:
    pass


def two_at_a_time() -> Handler:
    return Handler("h#1", nothing, concurrency=2)


def lines(longest: int = 3) -> tuple[Holdings, Lines]:
    holdings = Holdings(10, 10)
    return holdings, Lines(holdings, longest)


def test_so_many_run_the_next_ones_wait_and_a_full_line_refuses() -> None:
    """What waits takes no place from others."""
    holdings, line = lines()
    handler = two_at_a_time()
    letters = [held(n) for n in range(6)]
    holdings.hold(0, letters)
    assert [line.enter(letter, handler) for letter in letters] == [True, True, False, False, False, None]
    assert [letter.aside for letter in letters] == [False, False, True, True, True, False]


def test_the_next_in_line_runs_when_one_ends_before_all_that_come_later() -> None:
    """Its place is kept for it until it comes."""
    holdings, line = lines()
    handler = two_at_a_time()
    first, second, third, late = (held(n) for n in range(4))
    holdings.hold(0, [first, second, third, late])
    for letter in (first, second, third):
        line.enter(letter, handler)
    assert line.leave(handler) is third
    assert not third.aside
    assert line.enter(late, handler) is False
    assert line.enter(third, handler) is True
    assert line.leave(handler) is late


def test_a_kept_place_that_is_not_taken_goes_to_the_next() -> None:
    """The handler was removed, or the lease is over: the line does not come to a halt."""
    holdings, line = lines()
    handler = two_at_a_time()
    letters = [held(n) for n in range(5)]
    holdings.hold(0, letters)
    for letter in letters:
        line.enter(letter, handler)
    called = line.leave(handler)
    assert called is letters[2]
    assert line.pass_on(called) is letters[3]
    assert line.pass_on(called) is None
    assert line.pass_on(letters[3]) is letters[4]
    assert line.pass_on(letters[4]) is None
    assert line.enter(held(9), handler) is True


def test_letters_whose_lease_is_over_are_passed_over() -> None:
    """And forgotten, as their worker has to."""
    holdings, line = lines()
    handler = two_at_a_time()
    letters = [held(0), held(1), held(2, lease_s=-1), held(3)]
    holdings.hold(0, letters)
    for letter in letters:
        line.enter(letter, handler)
    assert line.leave(handler) is letters[3]
    assert holdings.get(letters[2].letter.id) is None


def test_what_waits_can_be_withdrawn() -> None:
    """At the end of a worker: it is given back."""
    holdings, line = lines()
    handler = two_at_a_time()
    letters = [held(n) for n in range(4)]
    holdings.hold(0, letters)
    for letter in letters:
        line.enter(letter, handler)
    assert line.withdraw() == letters[2:]
    assert line.withdraw() == []
