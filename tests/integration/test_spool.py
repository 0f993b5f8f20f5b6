"""The spool: captures while Redis is away are on disk, and come into Redis once, in order, whoever dies meanwhile."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import anyio.from_thread
import pytest

from tests.integration.conftest import Queues
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import SOON_S, eventually
from uno.event_bus.dead_letter import (
    DeadLetterConfig,
    DeadLetterQueue,
    PartialCapture,
    SpoolFull,
    StoreUnavailable,
)
from uno.event_bus.dead_letter import blocking as twin
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.spool import spool as spool_module
from uno.event_bus.dead_letter.spool.folder import Folder

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def stoppable(server: Server) -> Iterator[Server]:
    """A server that may be stopped and started; it keeps what it has acknowledged."""
    with Server(server.name, "--appendonly", "yes", "--appendfsync", "always") as made:
        yield made


@pytest.fixture
async def spooling(stoppable: Server, tmp_path: Path) -> AsyncIterator[Queues]:
    """Queues on it that share one spool; at the end that is empty, and the letters are clean."""
    made = Queues(stoppable)
    defaults = {"spool_dir": str(tmp_path / "spool"), "operation_timeout": 0.5}
    make, made_with = made.__class__.__call__, defaults

    class Spooling(Queues):
        def __call__(self, redis: Any = None, *, recorder: Any = None, **settings: Any) -> DeadLetterQueue:
            return make(self, redis, recorder=recorder, **(made_with | settings))

    made.__class__ = Spooling
    yield made
    await made.close()
    heir = Folder(str(tmp_path / "spool"), "default", 10_000)  # a process that was killed leaves its lock file
    assert heir.adopt() == 0
    heir.close()
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".spool", ".lock", ".damaged")]


async def all_sent(queue: DeadLetterQueue) -> None:
    async def empty() -> bool:
        stats = await queue.spool_stats()
        return stats is not None and stats.letters == 0

    await eventually(empty)


async def letters_of(queue: DeadLetterQueue) -> list[Letter]:
    return [letter async for letter in queue.letters()]


async def numbers(queue: DeadLetterQueue) -> list[int]:
    return sorted(json.loads(letter.payload)["n"] for letter in await letters_of(queue))


async def test_captures_while_redis_is_away_come_once_and_in_order(spooling: Queues, stoppable: Server) -> None:
    """Singles and batches, before and in and after the outage; letters of one ordering key stay in their order."""
    queue = spooling()
    await queue.add({"n": 0}, ordering_key="k", delay=60)
    stoppable.stop()
    assert await queue.add({"n": 1}, event_id="e1", ordering_key="k", delay=60) == "spooled:e1"
    began = time.monotonic()
    ids = await queue.add_many(
        [{"n": n} for n in range(2, 250)], event_ids=[f"e{n}" for n in range(2, 250)], ordering_key="k", delay=60
    )
    assert time.monotonic() - began < 0.4, "behind others nobody waits for Redis"
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
    assert (await queue.stats()).totals["captured"] == 301


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
    await queue.open()
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
    assert two.not_before_ms == two.captured_at_ms
    assert three.failed_at_ms == 1_700_000_000_000


async def test_stats_show_what_waits(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """Bytes, letters, age of the oldest; also while Redis is away, from any process."""
    queue, other = spooling(), spooling()
    await queue.add({"n": 0}, delay=60)
    found = (await queue.stats()).spool
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
    await queue.open()
    stoppable.stop()
    with pytest.raises(StoreUnavailable):
        await queue.add({"n": 1})
    assert await queue.spool_stats() is None
    stoppable.start()


async def test_captures_that_never_pause_need_no_disk_once_redis_is_back(spooling: Queues, stoppable: Server) -> None:
    """Under steady load there is always one more behind the last: the last stretch is waited for."""
    queue = spooling()
    await queue.open()
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
        await eventually(lambda: len(ids) > 500)
        stoppable.start()
        await eventually(lambda: len(ids) > 1000 and not any(id.startswith("spooled:") for id in ids[-200:]))
        end.set()
    await all_sent(queue)
    assert len(await numbers(queue)) == len(ids) == len(set(await numbers(queue)))


async def test_a_full_queue_keeps_the_rest_waiting_until_there_is_room(spooling: Queues, stoppable: Server) -> None:
    """Nothing is trimmed, and a full shard holds up no other."""
    queue = spooling(max_queue_size=20, operation_timeout=0.3)
    await queue.open()
    shards = (await queue._store()).shards
    stoppable.stop()
    await queue.add_many([{"n": n} for n in range(60)], delay=0)
    stoppable.start()

    async def both_full() -> bool:
        return (await queue.stats()).open == 22

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


# -- once -------------------------------------------------------------------------------------------------


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
        proxy.lose_replies("add", 1)
        await eventually(lambda: proxy.replies_to_lose == 0)
        proxy.refusing = True
        assert (await lost).startswith("spooled:")
        other: dict[str, Any] = {keyed: "e2" if keyed == "dedupe_key" else "e"}
        await queue.add({"n": 701}, **other, subscription_id="b", delay=60)
        await anyio.sleep(away_s)
        proxy.heal()
        await all_sent(queue)
        assert await numbers(queue) == list(range(702))
        await queue.aclose()


async def test_an_old_letter_that_was_tried_and_never_captured_is_captured(spooling: Queues, stoppable: Server) -> None:
    """The look into the stream finds nothing: it is sent."""
    with Proxy(stoppable.url) as proxy:
        queue = spooling(proxy.url, dedupe_window=0.2)
        await queue.open()
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
        proxy.heal()
        proxy.lose_replies("add", 1)
        await eventually(lambda: proxy.replies_to_lose == 0)
        with anyio.fail_after(3):
            await first.aclose()
    await queue.open()
    await all_sent(queue)
    assert await numbers(queue) == list(range(-10, 50))


# -- processes --------------------------------------------------------------------------------------------

PROCESS = """
    import asyncio, os, sys
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

    async def main(url, folder, first, count):
        config = DeadLetterConfig(shards=2, operation_timeout=0.3, spool_dir=folder)
        queue = DeadLetterQueue(url, config)
        if not count:
            await queue.open()
        for n in range(first, first + count):
            key = f"k{first}"
            id = await queue.add({"n": n}, event_id=f"e{n}", ordering_key=key, delay=60)
            os.write(1, f"{n} {id}\\n".encode())
        while (await queue.spool_stats()).letters:
            await asyncio.sleep(0.001)
        os.write(1, b"sent\\n")
        await asyncio.sleep(60)

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


async def script(code: str, url: str, folder: Path) -> tuple[int, str, str]:
    """Run a script to its end, whatever its children do; return its status and what it said."""
    out, err = folder / "out", folder / "err"

    def run() -> int:
        with out.open("w") as stdout, err.open("w") as stderr:
            command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, url, str(folder / "spool")]
            environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT / "src")}
            return subprocess.call(command, stdout=stdout, stderr=stderr, env=environ, timeout=30)

    status = await anyio.to_thread.run_sync(run)
    return status, out.read_text("utf-8"), err.read_text("utf-8")


class Producer:
    """A process that captures, and says which captures were acknowledged."""

    def __init__(self, url: str, folder: Path, first: int, count: int) -> None:
        command = [sys.executable, "-c", dedent(PROCESS), url, str(folder), str(first), str(count)]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT / "src")}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ)

    def read(self, count: int) -> list[str]:
        """Return the next lines that it says."""
        assert self._process.stdout is not None
        return [self._process.stdout.readline().decode().strip() for _ in range(count)]

    def kill(self) -> list[str]:
        """SIGKILL it; return the lines that it has said meanwhile, without one that is torn."""
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return []
        self._process.kill()
        rest = self._process.stdout.read().decode()
        self._process.stdout.close()
        self._process.wait(10)
        return rest.split("\n")[:-1]


@pytest.fixture
def producers(stoppable: Server, tmp_path: Path) -> Iterator[Callable[..., Producer]]:
    """Make producers: ``producers(first, count)``."""
    made: list[Producer] = []

    def produce(first: int, count: int = 1_000_000) -> Producer:
        made.append(Producer(stoppable.url, tmp_path / "spool", first, count))
        return made[-1]

    yield produce
    for each in made:
        each.kill()


def said(lines: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in lines if line and line != "sent"]


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_killed_process_has_spooled_is_sent_by_the_next(
    spooling: Queues, stoppable: Server, producers: Callable[..., Producer], seed: int
) -> None:
    """Killed while it writes, several times; all that was acknowledged comes once, in its order."""
    choose, known = random.Random(seed), list[int]()
    await spooling().open()
    stoppable.stop()
    for turn in range(3):
        producer = producers(turn * 1_000_000)
        lines = producer.read(choose.randint(1, 200))
        known += said(lines + producer.kill())
    stoppable.start()
    queue = spooling()
    await queue.open()
    await all_sent(queue)
    found = await numbers(queue)
    assert len(found) == len(set(found))
    assert set(found) >= set(known)
    assert len(found) <= len(known) + 3, "one of each was written and not yet acknowledged"
    for turn in range(3):
        ours = [json.loads(x.payload)["n"] for x in await letters_of(queue) if x.ordering_key == f"k{turn * 1_000_000}"]
        assert ours == sorted(ours)


@pytest.mark.parametrize("seed", range(3))
async def test_a_process_killed_while_it_sends_costs_no_letter_and_doubles_none(
    spooling: Queues, stoppable: Server, producers: Callable[..., Producer], seed: int
) -> None:
    """Wherever it was; whoever comes next goes on."""
    choose = random.Random(seed)
    first = spooling()
    await first.open()
    stoppable.stop()
    await first.add_many([{"n": n} for n in range(5000)], event_ids=[f"e{n}" for n in range(5000)], delay=60)
    await first.aclose()
    stoppable.start()
    for turn in range(3):
        producer = producers(10_000 + turn, 0)
        before = await open_letters(stoppable)
        deadline = time.monotonic() + SOON_S
        while await open_letters(stoppable) < min(before + choose.randint(1, 1200), 5000):
            assert time.monotonic() < deadline
        producer.kill()
    await first.open()
    await all_sent(first)
    assert await numbers(first) == list(range(5000))


async def open_letters(server: Server) -> int:
    return sum(server.client.xlen(key) for key in server.client.keys("*:letters"))


async def test_two_processes_share_a_directory(
    spooling: Queues, stoppable: Server, producers: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sends its own; when one is killed, the other, which runs on, adopts what it left."""
    monkeypatch.setattr(spool_module, "ADOPT_EVERY_S", 0.1)
    queue = spooling()
    await queue.open()
    stoppable.stop()
    one, two = (producers(first, 100) for first in (0, 1000))
    known = said(one.read(100) + two.read(100))
    await queue.add({"n": 2000}, delay=60)
    known += said(one.kill())
    stoppable.start()
    assert await anyio.to_thread.run_sync(two.read, 1) == ["sent"]
    await all_sent(queue)
    assert await numbers(queue) == [*sorted(known), 2000]
    two.kill()
    # And with nothing in its own spool: it looks every now and then.
    stoppable.stop()
    three = producers(3000, 10)
    three.read(10)
    three.kill()
    stoppable.start()
    await all_sent(queue)
    assert len(await numbers(queue)) == 211


FORK = """
    import logging, os, sys, time
    logging.disable()
    from uno.event_bus.dead_letter import DeadLetterConfig
    from uno.event_bus.dead_letter.blocking import DeadLetterQueue

    queue = DeadLetterQueue(sys.argv[1], DeadLetterConfig(shards=2, operation_timeout=0.3, spool_dir=sys.argv[2]))
    assert queue.add({"n": 1}, event_id="e1", delay=60) == "spooled:e1"
    ready = os.pipe()
    wait = lambda: [time.sleep(0.01) for _ in range(2000) if not os.path.exists(sys.argv[2] + "/../release")]
    child = os.fork()
    if child == 0:
        assert queue.add({"n": 2}, event_id="e2", delay=60) == "spooled:e2"
        os.write(ready[1], b"x")
        wait()
        sys.exit(0)
    os.read(ready[0], 1)
    assert queue.add({"n": 3}, event_id="e3", delay=60) == "spooled:e3"
    files = sorted(name for name in os.listdir(f"{sys.argv[2]}/default") if name.endswith(".spool"))
    assert len(files) == 2, files
    assert {name.split("-")[1] for name in files} == {str(os.getpid()), str(child)}, files
    print(child, flush=True)
    HOW
"""


def lives(pid: int) -> bool:
    """Whether a process that is not our child still runs; a zombie does not."""
    asked = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return asked.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize("how", ["in order", "killed"])
async def test_a_forked_child_has_a_spool_of_its_own(
    spooling: Queues, stoppable: Server, tmp_path: Path, how: str
) -> None:
    """It writes nothing into the parent's, and its life keeps nobody from adopting what the parent left."""
    await spooling().open()
    stoppable.stop()
    ends = {
        "in order": "open(sys.argv[2] + '/../release', 'w').close(); assert os.waitpid(child, 0)[1] == 0; sys.exit(0)",
        "killed": "os.kill(os.getpid(), 9)",
    }
    code = dedent(FORK).replace("HOW", ends[how])
    status, told, errors = await script(code, stoppable.url, tmp_path)
    assert (status, errors) == ({"in order": 0, "killed": -9}[how], "")
    child = int(told)
    queue = spooling()
    stoppable.start()
    await queue.open()

    async def there() -> bool:
        return await numbers(queue) == [1, 2, 3]

    # The child of a killed parent lives on, and sends what is its own.
    await eventually(there)
    assert lives(child) == (how == "killed")
    (tmp_path / "release").touch()
    await eventually(lambda: not lives(child))


async def test_the_blocking_twin_spools_and_sends(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """On its background loop; closing does not wait for the sender."""
    config = DeadLetterConfig(shards=2, operation_timeout=0.5, spool_dir=str(tmp_path / "spool"))

    def use() -> None:
        with twin.DeadLetterQueue(stoppable.url, config) as queue:
            queue.add({"n": 0}, delay=60)
            began = time.monotonic()
            queue.close()
            assert time.monotonic() - began < 0.4
            anyio.from_thread.run_sync(stoppable.stop)
            assert queue.add({"n": 1}, event_id="e", delay=60) == "spooled:e"
            began = time.monotonic()
            queue.close()
            assert time.monotonic() - began < 3
            assert queue.add({"n": 2}, event_id="f", delay=60) == "spooled:f"
            anyio.from_thread.run_sync(stoppable.start)  # it ends with the thread that starts it
            deadline = time.monotonic() + SOON_S
            while (stats := queue.stats()).open < 3:
                assert time.monotonic() < deadline, stats
                time.sleep(0.01)

    await anyio.to_thread.run_sync(use)
    assert await numbers(spooling()) == [0, 1, 2]


async def test_a_loop_that_ended_without_closing_leaves_its_letters_to_the_next(
    spooling: Queues, stoppable: Server
) -> None:
    """The same queue in another event loop adopts them."""
    queue = spooling()
    await queue.open()
    stoppable.stop()
    other = spooling()

    def use() -> None:
        assert asyncio.run(other.add({"n": 1}, event_id="e", delay=60)) == "spooled:e"

    await anyio.to_thread.run_sync(use)
    stoppable.start()
    await other.open()
    await all_sent(other)
    assert await numbers(queue) == [1]


# -- limits -----------------------------------------------------------------------------------------------


async def test_over_the_bound_a_capture_is_refused(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """The error names bound and directory; what is there stays, and there is room again when it is sent."""
    queue = spooling(spool_max_bytes=20_000)
    await queue.open()
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
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 20_000
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


FULL_DISK = """
    import asyncio, resource, signal, sys
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, StoreUnavailable

    async def main(url, folder):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        queue = DeadLetterQueue(url, DeadLetterConfig(shards=2, operation_timeout=0.3, spool_dir=folder))
        n = 0
        try:
            while True:
                await queue.add_many([{"n": n}, {"n": n + 1}], event_ids=[f"e{n}", f"e{n+1}"], delay=60)
                n += 2
        except Exception as error:
            assert len(error.errors) == 2
            first = error.errors[0]
            assert isinstance(first, StoreUnavailable), first
            assert first.certain and "File too large" in str(first), first
        print(n)
        await queue.aclose()

    asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_a_disk_that_takes_no_more_refuses_and_keeps_what_it_has(
    spooling: Queues, stoppable: Server, tmp_path: Path
) -> None:
    """The kernel cuts a write in the middle: the call is refused whole, those before it are kept."""
    await spooling().open()
    stoppable.stop()
    status, told, errors = await script(dedent(FULL_DISK), stoppable.url, tmp_path)
    assert status == 0, errors
    assert "Traceback" not in errors
    stoppable.start()
    queue = spooling()
    await queue.open()
    await all_sent(queue)
    assert int(told) > 4
    assert await numbers(queue) == list(range(int(told)))


async def test_closing_in_an_outage_is_quick_and_loses_nothing(spooling: Queues, stoppable: Server) -> None:
    """The letters stay on disk for the next use of the queue."""
    queue = spooling(operation_timeout=3)
    await queue.open()
    stoppable.send(signal.SIGSTOP)
    adding = asyncio.ensure_future(queue.add({"n": 1}, event_id="e", delay=60))
    assert await adding == "spooled:e"
    began = time.monotonic()
    await queue.aclose()
    assert time.monotonic() - began < 2
    stoppable.send(signal.SIGCONT)
    await queue.open()
    await all_sent(queue)
    assert await numbers(queue) == [1]
