"""docs/troubleshooting.md shows what happens: each trouble is made on a real server, and its commands are run."""

import logging
import re
import shlex
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio
import anyio.to_thread
import pytest

from tests.support.cli import Cli, wait_for_line
from tests.support.guide import block
from tests.support.servers import Server
from tests.support.shown import Step, Terminal, blocks_of, missing_from
from tests.support.waiting import SOON_S, eventually, patiently, running, running_in_a_thread
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterError, DeadLetterQueue
from uno.event_bus.dead_letter.store.layout import shard_key

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"
BLOCKS = blocks_of(PAGE)

LEASE_S = 0.5

LOOKS = {"health", "list", "show", "stats", "verify", "workers"}
"""Commands that change nothing."""


class Scene:
    """A server, a queue of two shards on it, and whatever says a text."""

    def __init__(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        self.server, self.caplog = server, caplog
        self.cli = Cli(server.url)
        self.terminal = Terminal(self.cli, server)
        self.said: dict[str, str] = {}
        """Name of a source, or command → what it said; other sources are logs."""

    def queue(self, **settings: Any) -> DeadLetterQueue:
        """A queue object of its own, as of another process."""
        chosen: dict[str, Any] = {"shards": 2, "lease_seconds": LEASE_S, "max_crashes": 10}
        return DeadLetterQueue(self.server.url, DeadLetterConfig(**chosen | settings))

    async def capture(self, count: int, **settings: Any) -> list[str]:
        """Capture some letters, due now."""
        async with self.queue(**settings) as queue:
            events = [{"order": n, "note": "x" * 250} for n in range(count)]
            return await queue.add_many(events, type="order.created", error=ConnectionError("away"), delay=0)

    async def raises(self, source: str, queue: DeadLetterQueue) -> None:
        """Keep what a capture raises."""
        with pytest.raises(DeadLetterError) as raised:
            await queue.add({"order": 7}, type="order.created")
        self.said[source] = f"{type(raised.value).__name__}: {raised.value}"

    def log(self) -> str:
        """All that was logged."""
        return "\n".join(f"{r.levelname} {r.name}: {r.getMessage()}" for r in self.caplog.records)

    async def run(self, command: str) -> str:
        """Run a command; what it says now is what the page shows, whatever comes later."""
        self.said[command] = await anyio.to_thread.run_sync(self.terminal.run, command)
        return self.said[command]

    async def check(self, step: Step) -> None:
        """Wait until what the page shows is so; a command that only looks may be run again for that."""
        assert step.shown, f"{step.words}: the page shows nothing of it"
        deadline = monotonic() + SOON_S
        while True:
            said = self.said.get(step.words)
            if said is None:
                said = self.log() if step.prompt == "#" else await self.run(step.words)
            missing = missing_from(said, step.shown, self.server.address)
            if missing is None:
                return
            assert monotonic() < deadline, f"{step.words}: {missing!r} is not in\n{said}"
            if step.words.split(" ")[2] in LOOKS:
                del self.said[step.words]
            await anyio.sleep(0.02)


type Trouble = Callable[[Scene], AsyncGenerator[None]]
TROUBLES: dict[str, Trouble] = {}


def trouble(name: str) -> Callable[[Trouble], Trouble]:
    """Have this make the trouble of that name; it lasts until the generator goes on."""

    def register(make: Trouble) -> Trouble:
        TROUBLES[name] = make
        return make

    return register


@pytest.mark.parametrize("name", BLOCKS)
async def test_what_the_page_shows_is_so(name: str, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Every line of every block, in this order."""
    caplog.set_level(logging.DEBUG, "uno")
    scene = Scene(server, caplog)
    async with asynccontextmanager(TROUBLES[name])(scene):
        for step in BLOCKS[name]:
            await scene.check(step)


def test_every_trouble_is_on_the_page() -> None:
    """And nothing is made for nobody."""
    assert set(TROUBLES) == set(BLOCKS)


# -- memory ------------------------------------------------------------------------------------------


@trouble("letters that stay")
async def letters_that_stay(scene: Scene) -> AsyncGenerator[None]:
    """One in twenty is parked, the rest is gone, on a server whose nodes are its default."""
    scene.server.client.config_set("stream-node-max-bytes", 4096)
    try:
        ids = await scene.capture(2000)
        async with scene.queue() as queue:
            await queue.discard_many([id for n, id in enumerate(ids) if n % 20], "an example")
            for letter_id in ids[::20]:
                await queue.park(letter_id, "an example")
            yield
    finally:
        scene.server.client.config_set("stream-node-max-bytes", 1024)


@trouble("a full server")
async def a_full_server(scene: Scene) -> AsyncGenerator[None]:
    """Less memory than is used: opened by commands that come then."""
    await scene.capture(100)
    full = int(scene.server.client.info("memory")["used_memory"] / 1.02)
    scene.server.client.config_set("maxmemory", full)
    async with scene.queue() as queue:
        await scene.raises("what add raises", queue)
    async with scene.queue(max_queue_size=20) as queue:
        scene.server.client.config_set("maxmemory", 0)
        await scene.raises("what add raises, where max_queue_size is 20", queue)
        scene.server.client.config_set("maxmemory", full)
    yield
    async with scene.queue() as queue:
        assert await _is_empty(queue)


@trouble("a server that evicts")
async def a_server_that_evicts(scene: Scene) -> AsyncGenerator[None]:
    """What an eviction does is done here by UNLINK, to the key that the server would choose."""
    async with scene.queue() as queue:
        await queue.add_many([{"order": n} for n in range(20)], type="order.created")
        queue.add_handler(print, "none")
        await queue.process()
    scene.server.client.config_set("maxmemory-policy", "allkeys-lru")
    scene.server.client.unlink(shard_key("default", 0, "letters"))
    await scene.run("uno dead-letter verify")
    async with scene.queue() as queue:
        queue.add_handler(print, "none")
        async with running(queue):
            yield
        report = await queue.verify()
        assert report.clean
        assert report.lost_externally


# -- slowness ----------------------------------------------------------------------------------------


@trouble("no worker")
async def no_worker(scene: Scene) -> AsyncGenerator[None]:
    """Letters that are due, and nobody."""
    await scene.capture(20)
    yield


@trouble("handlers at their limit")
async def handlers_at_their_limit(scene: Scene) -> AsyncGenerator[None]:
    """Two handlers that wait for something, and eighteen letters behind them."""
    done = anyio.Event()
    async with scene.queue(concurrency=2) as queue:
        queue.add_handler(_waits(done), "order.created")
        async with running(queue):
            await scene.capture(20)
            yield
            done.set()
            await eventually(lambda: _is_empty(queue))


@trouble("a handler that blocks")
async def a_handler_that_blocks(scene: Scene) -> AsyncGenerator[None]:
    """An async function that does not let the loop go on."""
    async with scene.queue() as queue:
        queue.add_handler(_blocks(lambda: time.sleep(2 * LEASE_S)), "order.created")
        async with running(queue):
            await queue.add({}, type="order.created", delay=0)
            yield
            await eventually(lambda: _is_empty(queue))


def _blocks(block: Callable[[], object]) -> Callable[[Any], Any]:
    async def handler(event: Any) -> None:
        block()

    return handler


def _waits(done: anyio.Event) -> Callable[[Any], Any]:
    async def handler(event: Any) -> None:
        await done.wait()

    return handler


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


# -- connections -------------------------------------------------------------------------------------


@trouble("Redis is away")
async def redis_is_away(scene: Scene) -> AsyncGenerator[None]:
    """Killed under a producer and a worker, and started again; another producer never had a connection."""
    with Server(scene.server.name) as scene.server:
        scene.cli.settings["DLQ_REDIS_URL"] = scene.server.url
        scene.cli.settings["DLQ_OPERATION_TIMEOUT"] = "2"
        queue, producer = scene.queue(operation_timeout=0.5), scene.queue(operation_timeout=2)
        await patiently(queue.open)
        async with queue, producer:
            queue.add_handler(print, "none")
            async with running(queue):
                await patiently(partial(producer.add, {}, type="none", delay=60))
                scene.server.stop()
                await scene.raises("what add raises, on a connection that breaks", producer)
                await eventually(lambda: "Connection refused" in scene.log())
                await scene.run("uno dead-letter health")
                scene.server.start()
                yield


# -- letters that do not move ------------------------------------------------------------------------


@trouble("no handler")
async def no_handler(scene: Scene) -> AsyncGenerator[None]:
    """A worker that handles other types; an hour is a second here."""
    async with scene.queue(unhandled_after=1) as queue:
        queue.add_handler(print, "order.created")
        await queue.add({}, type="order.renamed", error=ConnectionError("away"), delay=0)
        async with running(queue):
            yield


@trouble("workers that die")
async def workers_that_die(scene: Scene) -> AsyncGenerator[None]:
    """One that took letters, and is never heard of again; what comes after finds them."""
    done = anyio.Event()
    async with scene.queue() as queue:
        queue.add_handler(_waits(done), "order.created")
        # As after a step back of two hours that the shard has noticed.
        ahead_us = 7_200_000_000
        clock = {"clock": time.time_ns() // 1000 + ahead_us, "lead": ahead_us}
        scene.server.client.hset(shard_key("default", 0, "meta"), mapping=clock)
        await queue.add_many([{"order": n} for n in range(3)], type="order.created", delay=0)
        for shard in (await queue._store()).shards:
            await shard.take("host-7-0123abcd", 3)
        async with running(queue):
            yield
            done.set()
            await eventually(lambda: _is_empty(queue))


# -- letters that come twice -------------------------------------------------------------------------


@trouble("a lease that ran out")
async def a_lease_that_ran_out(scene: Scene) -> AsyncGenerator[None]:
    """Its worker was stopped for longer than the lease; another has it, and the first one's outcome comes late."""
    begun, goes_on, done = threading.Event(), threading.Event(), anyio.Event()

    def stop() -> None:
        begun.set()
        goes_on.wait(SOON_S)

    def stopped() -> DeadLetterQueue:
        queue = scene.queue()
        queue.add_handler(_blocks(stop), "order.created")
        return queue

    async with scene.queue() as queue:
        queue.add_handler(_waits(done), "order.created")
        with running_in_a_thread(stopped):
            await queue.add({"order": 7}, type="order.created", error=ConnectionError("away"), delay=0)
            await eventually(begun.is_set)
            async with running(queue):
                await eventually(lambda: "ran out" in scene.log())
                goes_on.set()
                yield
                done.set()
                await eventually(lambda: _is_empty(queue))


# -- the rest ----------------------------------------------------------------------------------------


@trouble("the service")
async def the_service(scene: Scene) -> AsyncGenerator[None]:
    """A process of it, which lets five requests a second in; each request of the page is sent to it."""
    with Server(scene.server.name) as scene.server, tempfile.TemporaryDirectory() as folder:
        tokens = {role: _token(scene, role, f"{folder}/tokens") for role in ("capture", "read")}
        process = scene.cli.spawn(
            "service",
            DLQ_REDIS_URL=scene.server.url,
            DLQ_SERVICE_PORT="0",
            DLQ_SERVICE_TOKENS_FILE=f"{folder}/tokens",
            DLQ_SERVICE_RATE="5",
            DLQ_SERVICE_MAX_BODY_BYTES="2000",
            DLQ_OPERATION_TIMEOUT="0.2",
        )
        try:
            line = await anyio.to_thread.run_sync(wait_for_line, process, "service at ")
            found = re.search(r"http://[\d.]+:\d+", line)
            assert found is not None
            for step in BLOCKS["the service"]:
                if "Redis is away" in step.words:
                    scene.server.stop()
                words = step.words.replace("$CAPTURE", tokens["capture"]).replace("$READ", tokens["read"])
                request = partial(_curl, shlex.split(words, comments=True), found[0])
                repeats = 40 if "faster" in step.words else 1
                answers = [await anyio.to_thread.run_sync(request) for _ in range(repeats)]
                scene.said[step.words] = next((a for a in answers if '"status":429' in a), answers[-1])
            yield
        finally:
            process.terminate()
            await anyio.to_thread.run_sync(process.communicate)


def _token(scene: Scene, role: str, file: str) -> str:
    made = scene.cli("token", f"a-{role}", "--role", role, "--append", file)
    assert made.status == 0, made.err
    return made.out.strip()


def _curl(words: list[str], service: str) -> str:
    """Do what curl does with these words, and return the body of the answer."""
    headers, body = {"content-type": "application/json"}, None
    for option, value in pairwise(words):
        if option == "-H":
            name, _, said = value.partition(": ")
            headers[name] = said
        if option == "-d":
            body = b"x" * 5000  # whatever is in that file
    request = Request(words[-1].replace("http://dlq-service:8000", service), body, headers)
    try:
        with urlopen(request, timeout=SOON_S) as answer:
            return str(answer.read().decode())
    except HTTPError as refused:
        return str(refused.read().decode())


@trouble("debugging commands")
async def debugging_commands(scene: Scene) -> AsyncGenerator[None]:
    """Some letters, of which one has been taken."""
    await scene.capture(20)
    async with scene.queue() as queue:
        for shard in (await queue._store()).shards:
            await shard.take("host-7-0123abcd", 1)
        yield


async def test_the_snippet_for_logs_shows_the_engine(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The page's, with `uno`; the guide's, with `redis`, runs and has nothing to say of it."""
    [snippet] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    logger, redis = logging.getLogger("uno"), logging.getLogger("redis")
    levels = logger.level, redis.level
    try:
        exec(snippet, {})
        exec(block("getLogger('redis')"), {})
        assert redis.level == logging.DEBUG
        async with DeadLetterQueue(redis_url, DeadLetterConfig(shards=2)) as queue:
            queue.add_handler(print, "none")
            await queue.add({}, type="order.created")
            async with running(queue):
                await queue.add({}, type="order.created")
    finally:
        logger.setLevel(levels[0])
        redis.setLevel(levels[1])
    names = {record.name.partition(".")[0] for record in caplog.records}
    assert names == {"uno"}
