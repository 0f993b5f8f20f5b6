"""The spool: captures while Redis is away are on disk, bounded, and come into Redis in order when it is back."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.spools import all_sent, letters_of, numbers, spool_files
from tests.support.waiting import eventually, patiently
from uno.event_bus.dead_letter import (
    PartialCapture,
    SpoolFull,
    StoreUnavailable,
)
from uno.event_bus.dead_letter.spool import spool as spool_module

pytestmark = pytest.mark.timed(0.1)
"""Queues have half a second here for a server that answers, because each outage takes as long."""


async def test_captures_while_redis_is_away_come_once_and_in_order(
    spooling: Queues, stoppable: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singles and batches, before and in and after the outage; letters of one ordering key stay in their order."""
    queue = spooling()
    await queue.add({"n": 0}, ordering_key="k", delay=60)
    stoppable.stop()
    assert await queue.add({"n": 1}, event_id="e1", ordering_key="k", delay=60) == "spooled:e1"
    with monkeypatch.context() as alone:
        alone.setattr(spool_module.Spool, "_captured", _never)  # behind others nobody waits for Redis
        ids = await queue.add_many(
            [{"n": n} for n in range(2, 250)], event_ids=[f"e{n}" for n in range(2, 250)], ordering_key="k", delay=60
        )
    assert ids == [f"spooled:e{n}" for n in range(2, 250)]
    for n in range(250, 300):
        assert (await queue.add({"n": n}, delay=60)).startswith("spooled:")
    stoppable.start()
    await all_sent(queue)
    assert not (await queue.add({"n": 300}, ordering_key="k", delay=60)).startswith("spooled:")
    found = await letters_of(queue)
    ordered = [json.loads(letter.payload)["n"] for letter in found if letter.ordering_key]
    assert ordered == [*range(250), 300]
    assert await numbers(queue) == list(range(301))
    assert (await patiently(queue.stats)).totals["captured"] == 301


async def _never(*args: Any) -> Any:
    raise AssertionError("never called")


async def test_a_queue_opens_without_redis(spooling: Queues, stoppable: Server) -> None:
    """With a spool a service can start and capture in an outage; `open` itself says what is."""
    stoppable.stop()
    queue = spooling()
    with pytest.raises(StoreUnavailable):
        await queue.open()
    async with queue:
        assert await queue.add({"n": 1}, event_id="e", delay=60) == "spooled:e"
        stoppable.start()
        await all_sent(queue)
        assert await numbers(queue) == [1]


async def test_delay_and_time_of_failure_are_those_of_the_capture(spooling: Queues, stoppable: Server) -> None:
    """What has passed of the delay in the spool is not waited for again."""
    queue = spooling()
    await patiently(queue.open)
    stoppable.stop()
    before = time.time()
    await queue.add({"n": 1}, delay=10)
    await queue.add({"n": 2}, delay=0.1)
    await queue.add({"n": 3}, delay=10, failed_at=1_700_000_000)
    after = time.time()
    await anyio.sleep(1)
    stoppable.start()
    await all_sent(queue)
    one, two, three = sorted(await letters_of(queue), key=lambda letter: letter.payload)
    assert one.captured_at_ms > after * 1000 + 900
    for letter, delay_s in ((one, 10), (three, 10)):
        # What is left is counted when a try begins: later by what that has waited for Redis.
        assert before * 1000 - 50 <= letter.not_before_ms - delay_s * 1000 <= after * 1000 + 550
    assert before * 1000 - 50 <= one.failed_at_ms <= after * 1000 + 50
    # Due at once. An id's time may be a millisecond later than the script's: Redis 6.2 reads the clock again for it.
    assert before * 1000 - 50 <= two.not_before_ms <= two.captured_at_ms
    assert three.failed_at_ms == 1_700_000_000_000


async def test_stats_show_what_waits(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """Bytes, letters, age of the oldest; also while Redis is away, from any process."""
    queue, other = spooling(), spooling()
    await queue.add({"n": 0}, delay=60)
    found = (await patiently(queue.stats)).spool
    assert found is not None
    assert (found.letters, found.bytes, found.oldest_age_s) == (0, 0, None)
    stoppable.stop()
    await queue.add_many([{"n": 1}, {"n": 2}], delay=60)
    for asked in (queue, other):
        stats = await asked.spool_stats()
        assert stats is not None
        assert (stats.letters, stats.directory) == (2, str(tmp_path / "spool" / "default"))
        assert stats.bytes > 300
        assert 0 <= (stats.oldest_age_s or -1) < 10
    stoppable.start()
    await all_sent(queue)


async def test_without_a_spool_the_caller_hears(spooling: Queues, stoppable: Server) -> None:
    """As ever."""
    queue = spooling(spool_dir=None)
    await patiently(queue.open)
    stoppable.stop()
    with pytest.raises(StoreUnavailable):
        await queue.add({"n": 1})
    assert await queue.spool_stats() is None
    stoppable.start()


async def test_captures_that_never_pause_need_no_disk_once_redis_is_back(spooling: Queues, stoppable: Server) -> None:
    """Under steady load there is always one more behind the last: the last stretch is waited for."""
    queue = spooling()
    await patiently(queue.open)
    ids: list[str] = []
    end = anyio.Event()

    async def capture(at: int) -> None:
        n = at
        while not end.is_set():
            ids.append(await queue.add({"n": n}, event_id=f"e{n}", delay=60))
            n += 20

    async with anyio.create_task_group() as group:
        stoppable.stop()
        for at in range(20):
            group.start_soon(capture, at)
        await eventually(lambda: len(ids) > 200)
        stoppable.start()
        await eventually(lambda: len(ids) > 500 and not any(id.startswith("spooled:") for id in ids[-200:]))
        end.set()
    await all_sent(queue)
    assert len(await numbers(queue)) == len(ids) == len(set(await numbers(queue)))


async def test_a_full_queue_keeps_the_rest_waiting_until_there_is_room(spooling: Queues, stoppable: Server) -> None:
    """Nothing is trimmed, and a full shard holds up no other."""
    queue = spooling(max_queue_size=20, operation_timeout=0.3)
    await patiently(queue.open)
    shards = (await queue._store()).shards
    stoppable.stop()
    await queue.add_many([{"n": n} for n in range(60)], delay=0)
    stoppable.start()

    async def both_full() -> bool:
        return (await patiently(queue.stats)).open == 22

    await eventually(both_full)
    assert len(shards) == 2
    done: list[Any] = []
    queue.add_handler(done.append)

    async def all_done() -> bool:
        await queue.process()
        return len(done) == 60

    await eventually(all_done)
    await all_sent(queue)
    assert [each["n"] for each in sorted(done, key=lambda each: each["n"])] == list(range(60))


# -- limits -----------------------------------------------------------------------------------------------


async def test_over_the_bound_a_capture_is_refused(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """The error names bound and directory; what is there stays, and there is room again when it is sent."""
    queue = spooling(spool_max_bytes=20_000)
    await patiently(queue.open)
    stoppable.stop()
    kept = 0

    async def fill() -> None:
        nonlocal kept
        while True:
            await queue.add({"n": kept, "pad": "x" * 500}, delay=60)
            kept += 1

    with pytest.raises(SpoolFull, match=r"spool_max_bytes is 20000") as full:
        await fill()
    assert full.value.certain
    assert str(tmp_path / "spool") in str(full.value)
    assert str(full.value).endswith("nothing was written")
    assert "\n" not in str(full.value)
    assert sum(path.stat().st_size for path in spool_files(tmp_path)) <= 20_000
    with pytest.raises(PartialCapture) as partial:
        await queue.add_many([{"pad": "x" * 500}] * 3)
    assert {type(error) for error in partial.value.errors.values()} == {SpoolFull}
    stoppable.start()
    await all_sent(queue)
    assert kept > 15
    assert await numbers(queue) == list(range(kept))
    stoppable.stop()
    assert (await queue.add({"n": kept}, delay=60)).startswith("spooled:")
    stoppable.start()
    await all_sent(queue)


async def test_a_directory_that_cannot_be_is_told_with_the_outage(
    spooling: Queues, stoppable: Server, tmp_path: Path
) -> None:
    """`StoreUnavailable`, with both reasons in one line; while Redis is there, nobody notices."""
    (tmp_path / "file").touch()
    queue = spooling(spool_dir=str(tmp_path / "file" / "spool"))
    assert not (await queue.add({"n": 1}, delay=60)).startswith("spooled:")
    stoppable.stop()
    with pytest.raises(StoreUnavailable, match=r"spool .*/file/spool/default: .*Not a directory") as refused:
        await queue.add({"n": 2}, delay=60)
    assert "onnect" in str(refused.value)
    assert "\n" not in str(refused.value)
    stoppable.start()
    assert not (await queue.add({"n": 3}, delay=60)).startswith("spooled:")


async def test_closing_in_an_outage_is_quick_and_loses_nothing(spooling: Queues, stoppable: Server) -> None:
    """The letters stay on disk for the next use of the queue."""
    queue = spooling(operation_timeout=3)
    await patiently(queue.open)
    stoppable.send(signal.SIGSTOP)
    adding = asyncio.ensure_future(queue.add({"n": 1}, event_id="e", delay=60))
    assert await adding == "spooled:e"
    began = time.monotonic()
    await queue.aclose()
    assert time.monotonic() - began < 2.5
    stoppable.send(signal.SIGCONT)
    await patiently(queue.open)
    await all_sent(queue)
    assert await numbers(queue) == [1]
