"""The spool's sender: each spooled letter comes into Redis once, and none holds up others that can be sent."""

import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.spools import all_sent, letters_of, numbers
from tests.support.waiting import SOON_S, eventually, patiently
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, LayoutMismatch, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter

pytestmark = pytest.mark.timed(0.2)
"""Queues have half a second here for a server that answers, because each outage takes as long."""


@pytest.mark.parametrize("keyed", ["event_id", "dedupe_key"])
@pytest.mark.parametrize(("window_s", "away_s"), [(600.0, 0.6), (0.7, 2.0)], ids=["within", "past"])
async def test_a_letter_whose_first_reply_was_lost_is_captured_once(
    spooling: Queues, stoppable: Server, keyed: str, window_s: float, away_s: float
) -> None:
    """Within the window its key tells; past it, it is found in the stream. Others behind it are not taken for it."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, dedupe_window=window_s, shards=1)
        await queue.add_many([{"n": n} for n in range(700)], delay=60)
        key: dict[str, Any] = {keyed: "e"}
        lost = asyncio.ensure_future(queue.add({"n": 700}, **key, subscription_id="a", delay=60))
        proxy.lose_replies("add", 1, then_refuse=True)
        await eventually(lambda: proxy.refusing)
        assert (await lost).startswith("spooled:")
        other: dict[str, Any] = {keyed: "e2" if keyed == "dedupe_key" else "e"}
        await queue.add({"n": 701}, **other, subscription_id="b", delay=60)
        await anyio.sleep(away_s)
        proxy.heal()
        await all_sent(queue)
        assert await numbers(queue) == list(range(702))
        await queue.aclose()


async def test_a_letter_whose_sending_lost_its_reply_is_captured_once(spooling: Queues, stoppable: Server) -> None:
    """Past the window, and by another owner: that a try began is on disk."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, dedupe_window=0.7, shards=1)
        await queue.add({"n": -1}, delay=60)  # the server knows the script
        proxy.refusing = True
        proxy.reset_all()
        await queue.add({"n": -2}, event_id="first", delay=60)
        # Behind it: these were certainly never tried.
        await queue.add_many([{"n": n} for n in range(5)], event_ids=[f"e{n}" for n in range(5)], delay=60)
        proxy.lose_replies("add", 1, then_refuse=True)
        proxy.refusing = False
        await eventually(lambda: proxy.refusing)
        await eventually(lambda: sum(stoppable.client.xlen(key) for key in stoppable.client.keys("*:letters")) == 7)
        await queue.aclose()
        await anyio.sleep(2)
        proxy.heal()
        await patiently(queue.open)
        await all_sent(queue)
        assert await numbers(queue) == list(range(-2, 5))
        await queue.aclose()


async def test_an_old_letter_that_was_tried_and_never_captured_is_captured(spooling: Queues, stoppable: Server) -> None:
    """The look into the stream finds nothing: it is sent."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, dedupe_window=0.2)
        await patiently(queue.open)
        proxy.silence("add")  # sent, and never arrives
        assert (await queue.add({"n": 1}, event_id="e", delay=60)) == "spooled:e"
        await anyio.sleep(1)
        proxy.heal()
        await all_sent(queue)
        assert await numbers(queue) == [1]
        await queue.aclose()


async def test_without_a_memory_an_unknown_outcome_is_the_callers(spooling: Queues, stoppable: Server) -> None:
    """With ``dedupe_window=0`` a repeat could be a second letter; what certainly was not captured is spooled."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, dedupe_window=0)
        await queue.add_many([{"n": n} for n in range(-10, 1)], delay=60)
        proxy.lose_replies("add", 1)
        with pytest.raises(StoreUnavailable) as failed:
            await queue.add({"n": 1}, delay=60)
        assert not failed.value.certain
        await queue.aclose()
        proxy.refusing = True
        assert (await queue.add({"n": 2}, delay=60)).startswith("spooled:")
        proxy.heal()
        await all_sent(queue)
        assert await numbers(queue) == list(range(-10, 3))
        await queue.aclose()


async def test_closing_while_a_batch_is_on_its_way_sends_it_once(spooling: Queues, stoppable: Server) -> None:
    """Its outcome is unknown: the next use repeats it by its keys."""
    queue = spooling(operation_timeout=5)
    with Proxy(stoppable.url) as proxy:
        first = spooling(proxy.url, operation_timeout=0.3)
        await first.add_many([{"n": n} for n in range(-10, 0)], delay=60)
        proxy.refusing = True
        proxy.reset_all()
        await first.add_many([{"n": n} for n in range(50)], delay=60)
        proxy.lose_replies("add", 1)
        proxy.refusing = False
        await eventually(lambda: proxy.replies_to_lose == 0)
        with anyio.fail_after(SOON_S):
            await first.aclose()
    await patiently(queue.open)
    await all_sent(queue)
    assert await numbers(queue) == list(range(-10, 50))


async def test_a_repeated_capture_is_one_letter_on_either_way(spooling: Queues, stoppable: Server) -> None:
    """In Redis and in the spool, twice in the spool, in the spool and in Redis."""
    queue = spooling()
    first = await queue.add({"n": 1}, event_id="a", delay=60)
    stoppable.stop()
    for _ in range(2):
        assert await queue.add({"n": 1}, event_id="a", delay=60) == "spooled:a"
        assert await queue.add({"n": 2}, event_id="b", delay=60) == "spooled:b"
    stoppable.start()
    await all_sent(queue)
    assert await queue.add({"n": 1}, event_id="a", delay=60) == first
    assert await queue.add({"n": 2}, event_id="b", delay=60) in [letter.id for letter in await letters_of(queue)]
    assert await numbers(queue) == [1, 2]


async def test_a_repeat_that_waits_past_the_window_is_one_letter(spooling: Queues, stoppable: Server) -> None:
    """It came within the window of the first capture, and is sent when the key is forgotten: it is looked for."""
    queue = spooling(dedupe_window=0.7, shards=1)
    await queue.add_many([{"n": n} for n in range(600)], event_ids=[f"e{n}" for n in range(600)], delay=60)
    stoppable.stop()
    await queue.add({"n": 600}, delay=60)
    for n in (0, 599):
        assert await queue.add({"n": n}, event_id=f"e{n}", delay=60) == f"spooled:e{n}"
    await queue.add({"n": 601}, event_id="e601", delay=60)
    await anyio.sleep(2)
    stoppable.start()
    await all_sent(queue)
    assert await numbers(queue) == list(range(602))


async def test_without_a_memory_repeats_are_letters_of_their_own(spooling: Queues, stoppable: Server) -> None:
    """With ``dedupe_window=0``, as without a spool."""
    queue = spooling(dedupe_window=0, shards=1)
    await queue.add({"n": 1}, event_id="e", delay=60)
    stoppable.stop()
    await eventually(lambda: _is_away(queue))
    for _ in range(2):
        assert await queue.add({"n": 1}, event_id="e", delay=60) == "spooled:e"
    stoppable.start()
    await all_sent(queue)
    assert await numbers(queue) == [0, 1, 1, 1]


async def _is_away(queue: DeadLetterQueue) -> bool:
    """Capture a letter; answer whether that went to the spool."""
    try:
        return (await queue.add({"n": 0}, delay=60)).startswith("spooled:")
    except StoreUnavailable:  # the first one may have been executed, as far as anybody knows
        return False


async def test_a_queue_that_grows_meanwhile_gets_each_letter_once(spooling: Queues, stoppable: Server) -> None:
    """Also one whose first reply was lost, before the growth moved its home; ordered letters stay in their order."""
    with Proxy(stoppable.url) as proxy:
        queue, grower = spooling(proxy.url), spooling()
        await queue.add_many([{"n": n} for n in range(-40, 0)], event_ids=[f"e{n}" for n in range(-40, 0)], delay=60)
        proxy.lose_replies("add", 2, then_refuse=True)
        ids = [f"e{n}" for n in range(50)]
        assert await queue.add_many([{"n": n} for n in range(50)], event_ids=ids, delay=60) == [
            f"spooled:{id}" for id in ids
        ]
        await queue.add_many([{"n": n} for n in range(50, 100)], ordering_key="k", delay=60)
        assert await grower.reshard(8) == 8
        proxy.heal()
        await all_sent(queue)
        assert await numbers(grower) == list(range(-40, 100))
        ordered = [json.loads(letter.payload)["n"] for letter in await letters_of(queue) if letter.ordering_key]
        assert ordered == list(range(50, 100))
        await queue.aclose()


# -- what cannot be sent ----------------------------------------------------------------------------------


async def test_a_full_shard_holds_up_no_other(spooling: Queues, stoppable: Server, caplog: Any) -> None:
    """Its letters wait, and those behind them; captures for others need no disk. With room they come, in order."""
    queue = spooling(max_queue_size=10)
    await patiently(queue.open)
    full, free = await keys_of_two_homes(queue)
    stoppable.stop()
    await queue.add_many([{"n": n} for n in range(9)], ordering_key=full, delay=60)
    await queue.add({"n": 100}, ordering_key=free, delay=60)
    stoppable.start()

    async def straight() -> bool:
        id = await queue.add({"n": 200}, ordering_key=free, event_id="free", delay=60)
        return not id.startswith("spooled:")

    await eventually(straight)
    assert await queue.add({"n": 9}, ordering_key=full, event_id="e9", delay=60) == "spooled:e9"
    more = await queue.add_many([{"n": 10}, {"n": 11}], event_ids=["e10", "e11"], ordering_key=full, delay=60)
    assert more == ["spooled:e10", "spooled:e11"]
    await all_sent(queue, but=3 + 3)
    await eventually(lambda: "QueueFull: queue 'default' is full (the letter's shard" in caplog.text)
    seen: list[int] = []

    async def emptied() -> bool:
        for letter in await letters_of(queue):
            if letter.ordering_key == full:
                seen.append(json.loads(letter.payload)["n"])
            await queue.discard(letter.id, "to make room")
        waiting = await queue.spool_stats()
        return waiting is not None and not waiting.letters and not await letters_of(queue)

    await eventually(emptied)
    assert seen == list(range(12))


async def keys_of_two_homes(queue: DeadLetterQueue) -> tuple[str, str]:
    """Return an ordering key of each shard of two."""
    store = await queue._store()
    keys = {store.home_of(NewLetter("e", "t", b"", ordering_key=key)): key for key in "abcdefgh"}
    return keys[0], keys[1]


async def test_a_letter_that_is_refused_for_good_holds_up_no_other(
    spooling: Queues, stoppable: Server, caplog: Any
) -> None:
    """Not its neighbours, not those of its ordering key, no captures; it stays, is told, and comes when it may."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, shards=1)
        await patiently(queue.open)
        proxy.refusing = True
        proxy.reset_all()
        payloads = [{"n": n, "bad": "poison" if n in (3, 40, 41) else ""} for n in range(150)]
        await queue.add_many(payloads, ordering_key="k", delay=60)
        proxy.heal()
        proxy.refuse("add", b"poison")
        good = [n for n in range(150) if n not in (3, 40, 41)]

        async def others_sent() -> bool:
            return await numbers(queue) == good

        await eventually(others_sent)
        await all_sent(queue, but=3)
        tries = proxy.refused
        await eventually(lambda: proxy.refused > tries + 10)  # walks that find nothing but them
        assert not (await queue.add({"n": 150}, ordering_key="k", delay=60)).startswith("spooled:")
        assert [json.loads(letter.payload)["n"] for letter in await letters_of(queue)] == [*good, 150]
        assert "3 letters wait" in caplog.text
        assert "StoreError: Redis refused a command (value is refused" in caplog.text
        proxy.heal()
        await all_sent(queue)
        assert await numbers(queue) == list(range(151))
        await queue.aclose()


async def test_a_shard_that_refuses_everything_keeps_its_letters_and_holds_up_no_other(
    spooling: Queues, stoppable: Server
) -> None:
    """A key of it has another type: mended, its letters come."""
    queue = spooling()
    await patiently(queue.open)
    broken = (await queue._store()).shards[0].key("dedupe_a")
    stoppable.client.set(broken, "no hash")
    full, free = await keys_of_two_homes(queue)
    stoppable.stop()
    for n in range(0, 300, 3):
        await queue.add_many([{"n": n}, {"n": n + 1}], ordering_key=full, delay=60)
        await queue.add({"n": n + 2}, ordering_key=free, delay=60)
    stoppable.start()
    await all_sent(queue, but=200)
    stoppable.client.delete(broken)
    await all_sent(queue)
    assert await numbers(queue) == list(range(300))


async def test_letters_of_a_process_that_does_not_fit_wait_for_one_that_does(
    spooling: Queues, stoppable: Server, tmp_path: Path, caplog: Any
) -> None:
    """It knows other shards than the queue has: it spools, and says why nothing is sent."""
    right = spooling()
    await patiently(right.open)
    stoppable.stop()
    spool_dir = str(tmp_path / "spool")
    wrong = DeadLetterQueue(stoppable.url, DeadLetterConfig(shards=8, operation_timeout=0.5, spool_dir=spool_dir))
    assert await wrong.add({"n": 1}, event_id="e", delay=60) == "spooled:e"
    stoppable.start()
    await eventually(lambda: "1 letters wait" in caplog.text and "LayoutMismatch" in caplog.text)
    assert await wrong.add({"n": 2}, event_id="f", delay=60) == "spooled:f"
    await wrong.aclose()
    with pytest.raises(LayoutMismatch):
        await wrong.open()
    await wrong.aclose()
    await right.aclose()
    await patiently(right.open)
    await all_sent(right)
    assert await numbers(right) == [1, 2]


async def test_letters_that_no_replica_confirms_wait_and_come_once(spooling: Queues, stoppable: Server) -> None:
    """Each try leaves the outcome open; the capture key makes them one. The caller of a capture hears it himself."""
    queue = spooling(durability="replicated", operation_timeout=0.2)
    await patiently(queue.open)
    stoppable.stop()
    await queue.add_many([{"n": n} for n in range(10)], delay=60)
    stoppable.start()

    async def tried() -> bool:
        return len(await letters_of(queue)) == 10

    await eventually(tried)
    stats = await queue.spool_stats()
    assert stats is not None
    assert stats.letters == 10
    await queue.aclose()
    other = spooling()
    await patiently(other.open)
    await all_sent(other)
    assert await numbers(other) == list(range(10))
