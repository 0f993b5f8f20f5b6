"""Capture keys: one is remembered for the window, at most for two; a producer's own repeat by its own clock."""

import pytest

from tests.support.look import Look, new
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome

WINDOW_MS = 10_000


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


@pytest.mark.parametrize("later_ms", [0, WINDOW_MS - 1, WINDOW_MS])
async def test_a_key_is_remembered_for_the_window(later_ms: int, shard: Shard) -> None:
    """Whatever the generations do meanwhile, each repeat inside the window is known."""
    for start_ms in (0, 1, WINDOW_MS // 2, WINDOW_MS - 1):
        forward(shard, start_ms)
        key = f"k{start_ms}-{shard.now_us}"
        first = await capture(shard, key)
        forward(shard, later_ms)
        await capture(shard, f"other-{shard.now_us}")  # may turn the generations
        assert await capture(shard, key) == first


@pytest.mark.parametrize("start_ms", [0, 1, WINDOW_MS - 1])
@pytest.mark.parametrize("turn_ms", [WINDOW_MS - 1, WINDOW_MS, 2 * WINDOW_MS - 1, 2 * WINDOW_MS])
async def test_a_key_is_forgotten_after_two_windows(start_ms: int, turn_ms: int, shard: Shard) -> None:
    """At most twice the window, also when the generations turn late."""
    await capture(shard, "opens the generation")
    forward(shard, start_ms)
    first = await capture(shard, "k")
    forward(shard, turn_ms)
    await capture(shard, "turns the generations")
    forward(shard, 2 * WINDOW_MS - turn_ms + 1)
    assert await capture(shard, "k") != first


async def test_a_generation_is_dropped_when_the_younger_is_a_window_old(shard: Shard, look: Look) -> None:
    """Two hashes in turn: the memory of dedupe is bounded by two windows of captures."""

    def keys() -> list[set[bytes]]:
        return [set(look.client.hkeys(look.key(name))) - {b""} for name in ("dedupe_a", "dedupe_b")]

    await capture(shard, "a")
    forward(shard, WINDOW_MS)
    await capture(shard, "b")
    assert keys() == [{b"a\0"}, {b"b\0"}]
    forward(shard, WINDOW_MS)
    await capture(shard, "c")
    assert keys() == [{b"c\0"}, {b"b\0"}]
    forward(shard, 5 * WINDOW_MS)
    await capture(shard, "d")
    assert keys() == [{b"c\0"}, {b"d\0"}]  # c is known to its producer alone, if the server's clock has jumped
    forward(shard, WINDOW_MS)
    await capture(shard, "e")
    assert keys() == [{b"e\0"}, {b"d\0"}]


async def test_a_window_of_nothing_remembers_nothing(shard: Shard, look: Look) -> None:
    """`dedupe_window` 0 turns it off: every capture is a letter of its own."""
    ids = await capture(shard, "a", "a", window_ms=0) + await capture(shard, "a", window_ms=0)
    assert look.letters == ids and len(set(ids)) == 3
    assert not look.client.exists(look.key("dedupe_a"), look.key("dedupe_b"))


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_is_remembered_survives_the_loss_of_meta(turns: int, shard: Shard, look: Look) -> None:
    """Each generation says itself since when it takes keys."""
    ids = {}
    for turn in range(turns + 1):
        forward(shard, WINDOW_MS if turn else 0)
        ids[f"k{turn}"] = (await capture(shard, f"k{turn}"))[0]
    remembered = dict(list(ids.items())[-2:])
    look.lose("meta")
    assert await capture(shard, *remembered) == list(remembered.values())
    await capture(shard, "new")
    assert await capture(shard, *remembered) == list(remembered.values())
    await shard.repair()  # without mark and group, the letters are in no place


# -- a server's clock that jumps ----------------------------------------------------------------------------

JUMPS_MS = [WINDOW_MS, 2 * WINDOW_MS - 1, 2 * WINDOW_MS, 180 * WINDOW_MS, -180 * WINDOW_MS]


async def jumped(shard: Shard, ms: int, *, own_ms: int, who: str = "p") -> None:
    """The replica that takes over is ahead by `ms`; by the producer's clock it is `own_ms` after the capture."""
    forward(shard, ms)
    shard.producer = (who, 7_000 + own_ms)


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
@pytest.mark.parametrize("others", [0, 1, 2])
async def test_a_producers_own_repeat_is_known_when_the_servers_clock_has_jumped(
    jump_ms: int, others: int, shard: Shard, look: Look
) -> None:
    """Though the letter has been resolved, and others were first to capture by the new clock."""
    shard.producer = ("p", 7_000)
    first = await capture(shard, "a", "b")
    for letter in (await shard.take("w", 2)).letters:
        assert letter.lease is not None
        await shard.settle("w", [Outcome(letter.id, letter.lease.token, Verb.RESOLVE)])
    await jumped(shard, jump_ms, own_ms=WINDOW_MS - 1)
    assert await shard.recall(["a\0", "b\0"], window_ms=WINDOW_MS) == first
    for other in range(others):
        await capture(shard, f"other {other}")
    assert await capture(shard, "b", "a") == first[::-1]
    assert look.totals["captured"] == 2 + others


async def test_an_event_that_rightly_comes_again_is_a_letter_of_its_own(shard: Shard) -> None:
    """After a quiet time: its producer's clock tells that from a server's that has jumped."""
    shard.producer = ("p", 7_000)
    (first,) = await capture(shard, "a")
    await jumped(shard, 2 * WINDOW_MS, own_ms=WINDOW_MS)
    assert await shard.recall(["a\0"], window_ms=WINDOW_MS) == [None]
    (second,) = await capture(shard, "a")
    assert second != first
    shard.producer = ("p", 7_000 + 2 * WINDOW_MS - 1)
    assert await capture(shard, "a") == [second]


@pytest.mark.parametrize(("later_ms", "known"), [(WINDOW_MS - 1, True), (2 * WINDOW_MS, False)])
async def test_a_repeat_by_another_producer_goes_by_the_servers_clock(later_ms: int, known: bool, shard: Shard) -> None:
    """Each process's clock has a beginning of its own."""
    shard.producer = ("p", 7_000)
    first = await capture(shard, "a")
    await jumped(shard, later_ms, own_ms=1, who="q")
    assert (await capture(shard, "a") == first) is known
