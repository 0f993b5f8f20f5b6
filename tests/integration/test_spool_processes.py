"""The spool and its processes: killed, forked, several on one directory, with other event loops, on a full disk."""

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import anyio
import anyio.from_thread
import pytest

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.spools import all_sent, letters_of, numbers
from tests.support.waiting import SOON_S, eventually, patiently
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, StoreUnavailable
from uno.event_bus.dead_letter import blocking as twin
from uno.event_bus.dead_letter.spool import spool as spool_module
from uno.event_bus.dead_letter.spool.folder import Folder

pytestmark = pytest.mark.timed(0.2)
"""Queues have half a second here for a server that answers, because each outage takes as long."""

CHECKOUT = Path(__file__).parents[2]

PROCESS = """
    import asyncio, os, sys
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

    async def main(url, folder, first, count):
        # What is to be spooled is so after the timeout; to have letters sent, Redis is asked for as long as it takes.
        config = DeadLetterConfig(shards=2, operation_timeout=0.3 if count else 20, spool_dir=folder)
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
            return subprocess.call(command, stdout=stdout, stderr=stderr, env=environ, timeout=50)

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
    await patiently(spooling().open)
    stoppable.stop()
    for turn in range(3):
        producer = producers(turn * 1_000_000)
        lines = producer.read(choose.randint(1, 80))
        known += said(lines + producer.kill())
    stoppable.start()
    queue = spooling()
    await patiently(queue.open)
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
    await patiently(first.open)
    stoppable.stop()
    await first.add_many([{"n": n} for n in range(3000)], event_ids=[f"e{n}" for n in range(3000)], delay=60)
    await first.aclose()
    stoppable.start()
    for turn in range(3):
        producer = producers(10_000 + turn, 0)
        before = await open_letters(stoppable)
        deadline = time.monotonic() + SOON_S
        while await open_letters(stoppable) < min(before + choose.randint(1, 700), 3000):
            assert time.monotonic() < deadline
            await anyio.sleep(0.001)  # it sends as long as it has a core
        producer.kill()
    await patiently(first.open)
    await all_sent(first)
    assert await numbers(first) == list(range(3000))


async def open_letters(server: Server) -> int:
    return sum(server.client.xlen(key) for key in server.client.keys("*:letters"))


async def test_two_processes_share_a_directory(
    spooling: Queues, stoppable: Server, producers: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sends its own; when one is killed, the other, which runs on, adopts what it left."""
    monkeypatch.setattr(spool_module, "ADOPT_EVERY_S", 0.1)
    queue = spooling()
    await patiently(queue.open)
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
    wait = lambda: [time.sleep(0.01) for _ in range(5000) if not os.path.exists(sys.argv[2] + "/../release")]
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
    await patiently(spooling().open)
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
    await patiently(queue.open)

    async def there() -> bool:
        return await numbers(queue) == [1, 2, 3]

    # The child of a killed parent lives on, and sends what is its own.
    await eventually(there)
    assert lives(child) == (how == "killed")
    (tmp_path / "release").touch()
    await eventually(lambda: not lives(child))


def _open(queue: twin.DeadLetterQueue) -> int:
    """Letters that Redis has; none while it does not say."""
    try:
        return queue.stats().open
    except StoreUnavailable:
        return 0


async def test_the_blocking_twin_spools_and_sends(spooling: Queues, stoppable: Server, tmp_path: Path) -> None:
    """On its background loop; closing does not wait for the sender."""
    config = DeadLetterConfig(shards=2, operation_timeout=0.5, spool_dir=str(tmp_path / "spool"))

    def use() -> None:
        with twin.DeadLetterQueue(stoppable.url, config) as queue:
            queue.add({"n": 0}, delay=60)
            began = time.monotonic()
            queue.close()
            assert time.monotonic() - began < 5
            anyio.from_thread.run_sync(stoppable.stop)
            assert queue.add({"n": 1}, event_id="e", delay=60) == "spooled:e"
            began = time.monotonic()
            queue.close()
            assert time.monotonic() - began < 5
            assert queue.add({"n": 2}, event_id="f", delay=60) == "spooled:f"
            anyio.from_thread.run_sync(stoppable.start)  # it ends with the thread that starts it
            deadline = time.monotonic() + SOON_S
            while _open(queue) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    await anyio.to_thread.run_sync(use)
    assert await numbers(spooling()) == [0, 1, 2]


async def test_a_loop_that_ended_without_closing_leaves_its_letters_to_the_next(
    spooling: Queues, stoppable: Server
) -> None:
    """The same queue in another event loop adopts them."""
    queue = spooling()
    await patiently(queue.open)
    stoppable.stop()
    other = spooling()

    def use() -> None:
        assert asyncio.run(other.add({"n": 1}, event_id="e", delay=60)) == "spooled:e"

    await anyio.to_thread.run_sync(use)
    stoppable.start()
    await patiently(other.open)
    await all_sent(other)
    assert await numbers(queue) == [1]


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
    await patiently(spooling().open)
    stoppable.stop()
    status, told, errors = await script(dedent(FULL_DISK), stoppable.url, tmp_path)
    assert status == 0, errors
    assert "Traceback" not in errors
    stoppable.start()
    queue = spooling()
    await patiently(queue.open)
    await all_sent(queue)
    assert int(told) > 4
    assert await numbers(queue) == list(range(int(told)))


async def test_two_event_loops_of_one_queue_have_a_spool_each(spooling: Queues, stoppable: Server) -> None:
    """Both capture into the directory at once, and each sends its own."""
    queue = spooling()
    await patiently(queue.open)
    stoppable.stop()
    both_wait, back = threading.Barrier(2), threading.Event()

    async def elsewhere() -> None:
        await queue.add_many([{"n": n} for n in range(100, 150)], delay=60)
        await anyio.to_thread.run_sync(both_wait.wait)
        await anyio.to_thread.run_sync(back.wait)
        await all_sent(queue)
        await queue.aclose()

    other = asyncio.create_task(anyio.to_thread.run_sync(asyncio.run, elsewhere()))
    await queue.add_many([{"n": n} for n in range(50)], delay=60)
    await anyio.to_thread.run_sync(both_wait.wait)
    stats = await queue.spool_stats()
    assert stats is not None
    assert stats.letters == 100
    stoppable.start()
    back.set()
    await other
    await all_sent(queue)
    assert await numbers(queue) == [*range(50), *range(100, 150)]


async def test_a_queue_that_was_dropped_without_closing_leaves_its_letters(
    spooling: Queues, stoppable: Server, tmp_path: Path
) -> None:
    """With its last reference its lock is gone: nobody could use it any more."""
    queue = spooling()
    await patiently(queue.open)
    stoppable.stop()
    config = DeadLetterConfig(shards=2, operation_timeout=0.3, spool_dir=str(tmp_path / "spool"))

    async def capture() -> None:
        dropped = DeadLetterQueue(stoppable.url, config)
        assert await dropped.add({"n": 1}, event_id="e", delay=60) == "spooled:e"

    await anyio.to_thread.run_sync(lambda: asyncio.run(capture()))
    await queue.aclose()
    stoppable.start()

    async def adopted() -> bool:
        gc.collect()
        await queue.aclose()
        await patiently(queue.open)
        stats = await queue.spool_stats()
        return stats is not None and stats.letters == 0

    await eventually(adopted)
    assert await numbers(queue) == [1]


async def test_who_only_looks_adopts_nothing(
    spooling: Queues, stoppable: Server, producers: Callable[..., Producer], tmp_path: Path
) -> None:
    """An operator's command leaves what dead processes have spooled to those that stay."""
    await patiently(spooling().open)
    stoppable.stop()
    producer = producers(0, 5)
    producer.read(5)
    producer.kill()
    stoppable.start()
    looker = spooling()
    await looker.open(make=False)
    stats = (await looker.stats()).spool
    assert stats is not None
    assert stats.letters == 5
    heir = Folder(str(tmp_path / "spool"), "default", 1_000_000)
    assert heir.adopt() == 5, "they are nobody's"
    heir.close()
    assert await letters_of(looker) == []
    await looker.aclose()
    worker = spooling()
    await worker.process()
    await all_sent(worker)
    assert await numbers(worker) == list(range(5))
