"""Versions: a shard that knows a later protocol or layout refuses the caller before anything is written."""

from collections.abc import Awaitable, Callable

import pytest

from tests.support.look import Look, several
from uno.event_bus.dead_letter.errors import LayoutMismatch
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.layout import queue_key
from uno.event_bus.dead_letter.store.route import Refused
from uno.event_bus.dead_letter.store.scripts import lua_folder, script
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000

CALLS: dict[str, Callable[[Shard, list[str]], Awaitable[object]]] = {
    "add": lambda shard, ids: shard.add(several(2, "new", fingerprint="g")),
    "recall": lambda shard, ids: shard.recall(["k"], window_ms=60_000),
    "take": lambda shard, ids: shard.take("w2", 5, alone=True),
    "take by id": lambda shard, ids: shard.take("w2", 5, ids=ids),
    "settle": lambda shard, ids: shard.settle("w", [Outcome(ids[0], TOKEN, Verb.RESOLVE)]),
    "extend": lambda shard, ids: shard.extend("w", [(ids[0], TOKEN)]),
    "reclaim": lambda shard, ids: shard.reclaim(lease_ms=1, max_crashes=1),
    "repair": lambda shard, ids: shard.repair(idle_ms=-1),
    "expire": lambda shard, ids: shard.expire(0),
    "reschedule": lambda shard, ids: shard.reschedule([Seen(ids[1], LetterState.PARKED, NOW_MS)]),
    "park": lambda shard, ids: shard.park([Seen(ids[2], LetterState.WAITING, 0)], reason="r"),
    "hold": lambda shard, ids: shard.hold([Seen(ids[2], LetterState.WAITING, 0)]),
    "discard": lambda shard, ids: shard.discard([Seen(ids[0], LetterState.LEASED, 0)], why=""),
    "scan": lambda shard, ids: browse.scan(shard),
    "stats": lambda shard, ids: browse.stats(shard),
    "verify": lambda shard, ids: browse.verify(shard),
}


@pytest.fixture
async def ids(shard: Shard, look: Look) -> list[str]:
    """A leased letter that is overdue, a parked one, a waiting one."""
    ids = [str(id) for id in await shard.add(several(2))]
    await shard.take("w", 2)
    await shard.settle("w", [Outcome(ids[1], TOKEN, Verb.PARK)])
    look.age(60_000)
    return ids + [str(id) for id in await shard.add(several(1, "waiting"))]


@pytest.mark.unclean("the shard belongs to a later version at the end")
@pytest.mark.parametrize(("field", "what"), [("protocol", "script protocol"), ("epoch", "layout epoch")])
@pytest.mark.parametrize("name", CALLS)
async def test_a_shard_of_a_later_version_is_not_touched(
    name: str, field: str, what: str, shard: Shard, look: Look, ids: list[str]
) -> None:
    """Every key is the same before and after, byte for byte; the error names both versions."""
    look.client.hset(look.key("meta"), field, 2)
    before = look.snapshot()
    with pytest.raises(LayoutMismatch, match=f"{what} 2, this process 1"):
        await CALLS[name](shard, ids)
    assert look.snapshot() == before


@pytest.mark.unclean("what some verbs are made for")
@pytest.mark.parametrize("name", CALLS)
async def test_a_shard_of_this_or_an_earlier_version_is_served(
    name: str, shard: Shard, look: Look, ids: list[str]
) -> None:
    """Both sides of a rolling upgrade work: the newer one on the older shard."""
    look.client.hset(look.key("meta"), mapping={"protocol": 0, "epoch": 0})
    await CALLS[name](shard, ids)
    look.client.hdel(look.key("meta"), "protocol", "epoch")
    await CALLS["stats"](shard, ids)


async def test_every_script_is_asked(look: Look) -> None:
    """The list above is all that change a shard; those on the queue's own keys have tests of their own."""
    verbs = {name.partition(" ")[0] for name in CALLS}
    assert verbs == {path.stem for path in lua_folder().glob("*.lua")} - {
        "layout",
        "grow",
        "adopt",
        "enlist",
        "resign",
        "roster",
        "audit",
        "audited",
    }
    assert look.letters == []


async def test_a_new_shard_has_the_versions_of_its_maker(shard: Shard, look: Look) -> None:
    """Written once, by the first capture; a later take does not change them."""
    shard.layout.epoch = 7
    await shard.add(several(1))
    await shard.take("w", 1)
    assert (look.meta["protocol"], look.meta["epoch"], look.meta["format"]) == ("1", "7", "1")


async def layout(
    shard: Shard, *, protocol: int = 1, shards: str | int = 4, lease_ms: str | int = 30_000
) -> dict[str, str]:
    key = queue_key(shard.queue, "layout")
    reply = await shard.route.call(script("layout"), [key], [protocol, 1, shard.now_us or "", shards, lease_ms])
    told = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
    assert int(told.pop("now", 1)) > 0
    return told


async def test_the_first_process_makes_the_layout_and_all_follow_it(shard: Shard) -> None:
    """Shards, lease length and epoch are the queue's, not the process's."""
    made = await layout(shard)
    assert made == {
        "format": "1",
        "protocol": "1",
        "shards": "4",
        "home_shards": "4",
        "lease_ms": "30000",
        "epoch": "1",
        "created": str(NOW_MS),
    }
    assert await layout(shard, shards=16, lease_ms=5_000) == made


@pytest.mark.parametrize("made", [False, True])
async def test_a_layout_of_a_later_protocol_is_refused(made: bool, shard: Shard, look: Look) -> None:
    """Before it is read, and nothing is written."""
    if made:
        await layout(shard)
    look.client.hset(queue_key(shard.queue, "layout"), "protocol", 2)
    before = look.snapshot()
    with pytest.raises(Refused, match="UPGRADE 2"):
        await layout(shard)
    assert look.snapshot() == before


@pytest.mark.parametrize(("shards", "lease_ms"), [("", 1), ("x", 1), (0, 1), (4, ""), (4, "soon"), (-4, 1), (4, 0)])
async def test_a_malformed_layout_is_not_made(shards: str | int, lease_ms: str | int, shard: Shard, look: Look) -> None:
    """It would be every process's from then on."""
    with pytest.raises(Exception, match="layout: "):
        await layout(shard, shards=shards, lease_ms=lease_ms)
    assert look.snapshot() == {}


async def test_a_reader_makes_no_layout(shard: Shard, look: Look) -> None:
    """It is told that there is none."""
    assert await layout(shard, shards="", lease_ms="") == {}
    assert look.snapshot() == {}
    made = await layout(shard)
    assert await layout(shard, shards="", lease_ms="") == made
