"""Capture keys are remembered for a window, or half as long again; a producer's own repeat by its own clock."""

from contextlib import suppress

import pytest

from tests.support.faults import fault
from tests.support.look import Look, new
from uno.event_bus.dead_letter.errors import StoreError
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome

WINDOW_MS = 10_000
TURN_MS = WINDOW_MS // 2


def forward(shard: Shard, ms: int) -> None:
    assert shard.now_us is not None
    shard.now_us += ms * 1000


async def capture(shard: Shard, *keys: str, window_ms: int = WINDOW_MS) -> list[str | None]:
    return await shard.add([new(key) for key in keys], window_ms=window_ms)


async def test_a_repeat_answers_the_first_id(shard: Shard, look: Look) -> None:
    """After an unknown outcome the caller repeats, and nothing is captured twice."""
    first = await capture(shard, "a")
    assert await capture(shard, "a") == first
    assert look.letters == first and look.totals == {"captured": 1, "repeated": 1}


async def test_a_key_is_known_within_one_batch(shard: Shard, look: Look) -> None:
    """The second of two equal letters of one call is a repeat, too."""
    a, b, again = await capture(shard, "a", "b", "a")
    assert again == a != b
    assert len(look.letters) == 2 and look.totals == {"captured": 2, "repeated": 1}


async def test_the_dedupe_key_counts_before_the_event_id(shard: Shard) -> None:
    """Two events with one dedupe key are one letter; one event of two subscriptions is two."""
    same = await shard.add([new("a", dedupe_key="k"), new("b", dedupe_key="k")])
    assert len(set(same)) == 1
    two = await shard.add([new("c", subscription="x"), new("c", subscription="y")])
    assert len(set(two)) == 2


async def test_a_repeat_of_a_resolved_letter_answers_its_id(shard: Shard, look: Look) -> None:
    """A caller that repeats late does not run a finished letter again."""
    (id,) = await capture(shard, "a")
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.lease is not None
    await shard.settle("w", [Outcome(letter.id, letter.lease.token, Verb.RESOLVE)])
    assert await capture(shard, "a") == [id]
    assert look.letters == []


@pytest.mark.parametrize("later_ms", [0, TURN_MS, WINDOW_MS - 1])
async def test_a_key_is_remembered_for_the_window(later_ms: int, shard: Shard) -> None:
    """Whatever the generations do meanwhile, each repeat inside the window is known."""
    for start_ms in (0, 1, TURN_MS - 1, TURN_MS, WINDOW_MS - 1):
        forward(shard, start_ms)
        key = f"k{start_ms}-{shard.now_us}"
        first = await capture(shard, key)
        forward(shard, later_ms)
        await capture(shard, f"other-{shard.now_us}")  # may turn the generations
        assert await capture(shard, key) == first
        shard.producer = ("another", 0)
        assert await capture(shard, key) == first
        shard.producer = None


@pytest.mark.parametrize("start_ms", [0, 1, TURN_MS - 1])
@pytest.mark.parametrize("turn_ms", [TURN_MS - 1, TURN_MS, WINDOW_MS, WINDOW_MS + TURN_MS])
async def test_a_key_is_forgotten_after_a_window_and_a_half(start_ms: int, turn_ms: int, shard: Shard) -> None:
    """Also when the generations turn late."""
    await capture(shard, "opens the generation")
    forward(shard, start_ms)
    first = await capture(shard, "k")
    forward(shard, turn_ms)
    await capture(shard, "turns the generations")
    forward(shard, WINDOW_MS + TURN_MS - turn_ms)
    shard.producer = ("another", 0)
    assert await capture(shard, "k") != first


async def test_the_oldest_of_three_generations_makes_room(shard: Shard, look: Look) -> None:
    """Each takes keys for half a window: the memory of dedupe is bounded by one and a half windows of captures."""

    def keys() -> list[set[bytes]]:
        names = ("dedupe_a", "dedupe_b", "dedupe_c")
        return [{key.rstrip(b"\0") for key in look.client.hkeys(look.key(name))} - {b""} for name in names]

    for event_id in "abc":
        await capture(shard, event_id)
        forward(shard, TURN_MS)
    assert keys() == [{b"a"}, {b"b"}, {b"c"}]
    await capture(shard, "d", "e")
    forward(shard, TURN_MS - 1)
    await capture(shard, "f")
    assert keys() == [{b"d", b"e", b"f"}, {b"b"}, {b"c"}]
    forward(shard, 50 * WINDOW_MS)
    await capture(shard, "g")  # of those before it only their producer hears, if it was a jump
    assert keys() == [{b"d", b"e", b"f"}, {b"g"}, {b"c"}]


@pytest.mark.parametrize("year_ahead_ms", [0, 365 * 86_400_000])
@pytest.mark.parametrize("back_ms", [1, WINDOW_MS, 3_600_000])
async def test_a_clock_that_is_set_back_remembers_no_longer_for_that(
    year_ahead_ms: int, back_ms: int, shard: Shard, look: Look
) -> None:
    """Nor does the memory of it grow: what was captured before the clock was right is forgotten as anything else."""
    await capture(shard, "right")
    forward(shard, year_ahead_ms)
    for event_id in "abc":
        await capture(shard, event_id)
        forward(shard, TURN_MS)
    first = await capture(shard, "d")
    forward(shard, -year_ahead_ms - back_ms)
    shard.producer = ("another", 0)
    assert await capture(shard, "d") == first
    await capture(shard, "other")
    forward(shard, WINDOW_MS - 1)
    assert await capture(shard, "d") == first
    for number in range(4):
        forward(shard, TURN_MS)
        await capture(shard, f"other {number}")
    assert await capture(shard, "d") != first
    assert sum(look.client.hlen(look.key(f"dedupe_{name}")) for name in "abc") == 3 + 4


async def test_a_window_of_nothing_remembers_nothing(shard: Shard, look: Look) -> None:
    """`dedupe_window` 0 turns it off: every capture is a letter of its own."""
    ids = await capture(shard, "a", "a", window_ms=0) + await capture(shard, "a", window_ms=0)
    assert look.letters == ids and len(set(ids)) == 3
    assert not look.client.exists(*(look.key(f"dedupe_{name}") for name in "abc"))


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_is_remembered_survives_the_loss_of_meta(turns: int, shard: Shard, look: Look) -> None:
    """Each generation says itself since when it takes keys."""
    ids = {}
    for turn in range(turns + 1):
        forward(shard, TURN_MS if turn else 0)
        ids[f"k{turn}"] = (await capture(shard, f"k{turn}"))[0]
    remembered = dict(list(ids.items())[-2:])
    look.lose("meta")
    assert await capture(shard, *remembered) == list(remembered.values())
    await capture(shard, "new")
    assert await capture(shard, *remembered) == list(remembered.values())
    await shard.repair()  # without mark and group, the letters are in no place


# -- a server's clock that jumps ----------------------------------------------------------------------------

JUMPS_MS = [300, TURN_MS, WINDOW_MS - 1, WINDOW_MS, 15_001, 19_000, 2 * WINDOW_MS, 180 * WINDOW_MS, -180 * WINDOW_MS]


async def settle_all(shard: Shard) -> None:
    for letter in (await shard.take("w", 100)).letters:
        assert letter.lease is not None
        await shard.settle("w", [Outcome(letter.id, letter.lease.token, Verb.RESOLVE)])


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
@pytest.mark.parametrize("turned", [False, True])
async def test_a_producers_own_repeat_is_known_when_the_servers_clock_has_jumped(
    jump_ms: int, turned: bool, shard: Shard, look: Look
) -> None:
    """For half a window: though the letter has been resolved, others captured, and the generations just turned."""
    own_ms = 7_000

    def pass_time(ms: int) -> None:
        nonlocal own_ms
        own_ms += ms
        forward(shard, ms)
        shard.producer = ("p", own_ms)

    pass_time(0)
    await capture(shard, "opens the generation")
    pass_time(TURN_MS - 1)
    first = await capture(shard, "a", "b")
    await settle_all(shard)
    pass_time(1)
    if turned:
        await capture(shard, "turns the generations")
    captured = look.totals["captured"]
    forward(shard, jump_ms)
    assert await shard.recall(["a\0", "b\0"], window_ms=WINDOW_MS) == first
    for other in range(10):
        await capture(shard, f"other {other}")
        assert await capture(shard, "b", "a") == first[::-1]
        pass_time(TURN_MS // 10)
    assert look.totals["captured"] == captured + 10


@pytest.mark.parametrize("own_ms", [WINDOW_MS, -WINDOW_MS])
async def test_an_event_that_rightly_comes_again_is_a_letter_of_its_own(own_ms: int, shard: Shard) -> None:
    """After a quiet time: its producer's clock tells that from a server's that has jumped."""
    shard.producer = ("p", 70_000)
    (first,) = await capture(shard, "a")
    forward(shard, 2 * WINDOW_MS)
    shard.producer = ("p", 70_000 + own_ms)
    assert await shard.recall(["a\0"], window_ms=WINDOW_MS) == [None]
    (second,) = await capture(shard, "a")
    assert second != first
    shard.producer = ("p", 70_000 + own_ms + WINDOW_MS - 1)
    assert await capture(shard, "a") == [second]


@pytest.mark.parametrize(("later_ms", "known"), [(WINDOW_MS - 1, True), (WINDOW_MS + TURN_MS, False)])
async def test_a_repeat_by_another_producer_goes_by_the_servers_clock(later_ms: int, known: bool, shard: Shard) -> None:
    """Each process's clock has a beginning of its own."""
    shard.producer = ("p", 7_000)
    first = await capture(shard, "a")
    forward(shard, later_ms)
    shard.producer = ("q", 7_001)
    assert (await capture(shard, "a") == first) is known


@pytest.mark.parametrize("back_ms", [WINDOW_MS, 365 * 86_400_000])
@pytest.mark.parametrize("others", [False, True])
async def test_after_a_clock_was_set_back_an_event_may_come_again_and_again(
    back_ms: int, others: bool, shard: Shard, look: Look
) -> None:
    """And nothing else does. Of other producers the first notices the step, and its capture is taken for a repeat."""
    own_ms = 7_000
    shard.producer = ("0", own_ms)
    await capture(shard, "a")
    forward(shard, -back_ms)
    for number in range(1, 10):
        own_ms += 2 * WINDOW_MS
        forward(shard, 2 * WINDOW_MS)
        shard.producer = (str(number) if others else "0", own_ms)
        await capture(shard, "a")
    assert look.totals["captured"] == 10 - others


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("call", range(1, 16))
async def test_a_death_while_the_generations_are_dated_back_forgets_nothing(
    call: int, repeats: bool, shard: Shard
) -> None:
    """Whichever call of the script it comes before: what is known to others stays so for its window."""
    for key in "ab":
        await capture(shard, key)
        forward(shard, TURN_MS)
    first = await capture(shard, "c")
    forward(shard, TURN_MS - 1 - 3_600_000)
    shard.producer = ("another", 0)
    with fault("add", call), suppress(StoreError):
        await capture(shard, "c" if repeats else "d")
    await capture(shard, "e")
    forward(shard, TURN_MS)
    assert await capture(shard, "c") == first
    await shard.repair()  # a letter whose script died is in no total yet


@pytest.mark.parametrize("began", ["", "nan", "inf", "-1", "9" * 400, "one"])
async def test_a_generation_whose_beginning_is_damaged_ends(began: str, shard: Shard, look: Look) -> None:
    """A stranger's stroke neither stops captures nor makes their keys be remembered for ever."""
    first = await capture(shard, "a")
    look.client.hset(look.key("dedupe_a"), "", began)
    assert await capture(shard, "a") == first  # its own producer's
    shard.producer = ("q", 0)
    for number in range(4):
        await capture(shard, f"other {number}")
        forward(shard, TURN_MS)
    assert await capture(shard, "a") != first
