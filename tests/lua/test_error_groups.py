"""Error groups: open letters a fingerprint, without a scan; never below 0, and gone at 0."""

import pytest

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000


async def leased(shard: Shard, count: int, fingerprint: str = "f") -> list[str]:
    ids = [str(id) for id in await shard.add(several(count, fingerprint=fingerprint), window_ms=0)]
    await shard.take("w", count)
    return ids


async def test_a_group_counts_the_letters_that_are_open(shard: Shard, look: Look) -> None:
    """Retries and parks do not leave it; ends of any kind do."""
    ids = await leased(shard, 5)
    verbs = [Verb.RETRY, Verb.PARK, Verb.RELEASE, Verb.RESOLVE, Verb.DISCARD]
    await shard.settle("w", [Outcome(id, TOKEN, verb, fingerprint="f") for id, verb in zip(ids, verbs, strict=True)])
    assert look.groups == {"f": 3}
    await shard.discard([Seen(ids[0], LetterState.SCHEDULED, NOW_MS)], why="")
    assert look.groups == {"f": 2}
    await shard.expire(0)
    assert look.groups == {"f": 1} and list(look.group_info) == ["f"]


@pytest.mark.parametrize("known", [0, 1, 2])
async def test_a_group_never_falls_below_nought(known: int, shard: Shard, look: Look) -> None:
    """A counter that was lost, or a stranger's letter that never entered: the group is forgotten, not negative."""
    ids = await leased(shard, 3)
    look.lose("groups")
    if known:
        look.client.hset(look.key("groups"), "f", known)
    await shard.settle("w", [Outcome(id, TOKEN, Verb.RESOLVE, fingerprint="f") for id in ids[:2]])
    assert look.groups == {}
    await shard.settle("w", [Outcome(ids[2], TOKEN, Verb.RESOLVE, fingerprint="f")])
    assert look.groups == {}


async def test_a_batch_counts_each_group_once(shard: Shard, look: Look) -> None:
    """Several fingerprints in one call, and letters without one."""
    names = ["f", "g", "f", "", "h"]
    ids = [str(id) for id in await shard.add([new(f"e{i}", fingerprint=name) for i, name in enumerate(names)])]
    assert look.groups == {"f": 2, "g": 1, "h": 1}
    await shard.take("w", 5)
    outcomes = [Outcome(id, TOKEN, Verb.RESOLVE, fingerprint=name) for id, name in zip(ids, names, strict=True)]
    await shard.settle("w", outcomes[:4])
    assert look.groups == {"h": 1} and list(look.group_info) == ["h"]


async def test_an_end_that_was_refused_leaves_the_group(shard: Shard, look: Look) -> None:
    """LOST and GONE count nothing down."""
    (id,) = await leased(shard, 1)
    await shard.settle("other", [Outcome(id, TOKEN, Verb.RESOLVE, fingerprint="f")])
    await shard.settle("w", [Outcome("0-1-1", TOKEN, Verb.RESOLVE, fingerprint="f")])
    assert look.groups == {"f": 1}


async def test_a_strangers_letter_leaves_no_group_behind(shard: Shard, look: Look) -> None:
    """It has a fingerprint and was never counted."""
    await shard.take("w", 1)
    id = look.foreign({"payload": "x", "fingerprint": "f"})
    assert await shard.discard([Seen(id, LetterState.WAITING, 0)], why="") == ["OK"]
    assert look.groups == {} and look.totals == {"captured": 1, "discarded": 1}


async def test_a_fingerprint_that_no_open_letter_has_is_counted_as_new(shard: Shard, look: Look) -> None:
    """Once, however many letters have it; again, when it comes back after the last of them has ended."""
    ids = await leased(shard, 3)
    await leased(shard, 1, fingerprint="g")
    assert look.new_error_groups == 2
    await shard.settle("w", [Outcome(id, TOKEN, Verb.RESOLVE, fingerprint="f") for id in ids[:2]])
    await shard.add([new("more", fingerprint="f")])
    assert look.new_error_groups == 2
    (more,) = (await shard.take("w", 1)).letters
    await shard.settle(
        "w", [Outcome(id, look.leases[id][1], Verb.RESOLVE, fingerprint="f") for id in (ids[2], more.id)]
    )
    assert look.groups == {"g": 1}
    await shard.add([new("again", fingerprint="f"), new("none")])
    assert look.new_error_groups == 3
