"""add: a capture key is remembered for the window, at most for two."""

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
    await capture(shard, "a")
    forward(shard, WINDOW_MS)
    await capture(shard, "b")
    assert look.client.hkeys(look.key("dedupe_b")) == [b"b\0"]
    forward(shard, WINDOW_MS)
    await capture(shard, "c")
    assert look.client.hkeys(look.key("dedupe_a")) == [b"c\0"]
    forward(shard, 5 * WINDOW_MS)
    await capture(shard, "d")
    assert [look.client.hkeys(look.key(name)) for name in ("dedupe_a", "dedupe_b")] == [[], [b"d\0"]]


async def test_a_window_of_nothing_remembers_nothing(shard: Shard, look: Look) -> None:
    """`dedupe_window` 0 turns it off: every capture is a letter of its own."""
    ids = await capture(shard, "a", "a", window_ms=0) + await capture(shard, "a", window_ms=0)
    assert look.letters == ids and len(set(ids)) == 3
    assert not look.client.exists(look.key("dedupe_a"), look.key("dedupe_b"))


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_is_remembered_survives_the_loss_of_meta(turns: int, shard: Shard, look: Look) -> None:
    """Which generation is the younger is forgotten with `meta`; the keys in both are not."""
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
