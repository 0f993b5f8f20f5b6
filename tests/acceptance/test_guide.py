"""What the deployment guide says works as it says: its snippets are run word for word, from the copy of it."""

import ast
import inspect
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.cli import Cli
from tests.support.guide import COPY, block
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, LetterState, Where

ORIGINAL = Path(__file__).parents[3] / "shared/seed/deployment-guide.md"

VARIABLES = block("DLQ_MAX_RETRIES=5")
CONSTRUCTION = block("DeadLetterQueue(redis=redis, config=config)")
BATCHES = block("batch_size=100")
CONCURRENCY = block("max_concurrent=8")
POLICY = block("Exponential backoff starts at 60s")
TLS = block("ssl_cert_reqs")
AUTHENTICATION = block("redis://:password@").strip()
REDIS_CONF = "".join(block(words) for words in ("maxmemory-samples", "save 900 1", "appendonly yes"))


async def executed(snippet: str, **names: Any) -> dict[str, Any]:
    """Run a snippet that may await, and return its names."""
    code = compile(snippet, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names


@pytest.mark.skipif(not ORIGINAL.exists(), reason=f"the guide is not here: {ORIGINAL}")
def test_the_copy_is_the_guide() -> None:
    """Word for word."""
    assert COPY.read_text("utf-8") == ORIGINAL.read_text("utf-8")


def test_the_variables_mean_their_fields() -> None:
    """The guide's block of variables gives the guide's defaults, which are ours."""
    words = shlex.split(VARIABLES, comments=True)
    config = DeadLetterConfig.from_env(dict(word.split("=", 1) for word in words))
    assert config == DeadLetterConfig(redis_url="redis://localhost:6379/0")


def test_the_urls_of_engine_and_application_may_differ() -> None:
    """DLQ_REDIS_URL wins over REDIS_URL."""
    environ = {"REDIS_URL": "redis://app:6379/0", "DLQ_REDIS_URL": "redis://dlq-redis:6379/0", "DLQ_ENABLED": "true"}
    config = DeadLetterConfig.from_env(environ)
    assert config.redis_url == "redis://dlq-redis:6379/0" and config.enabled


def test_construction_needs_neither_loop_nor_server() -> None:
    """The recommended configuration runs at import time, where no server is."""
    names: dict[str, Any] = {}
    exec(CONSTRUCTION, names)
    assert names["dlq"].config.max_queue_size == 100_000
    assert names["dlq"].config.retry_delay == 60


def test_backoff_starts_at_retry_delay() -> None:
    """Exponential backoff starts at 60 s, jitter adds up to a tenth, and five attempts are made."""
    names: dict[str, Any] = {"DeadLetterConfig": DeadLetterConfig}
    exec(POLICY, names)
    policy = DeadLetterQueue("redis://localhost:1/0", names["config"]).get_retry_policy()
    waits = [policy.first_delay(), *(policy.delay(n) for n in range(1, 6))]
    assert all(w is not None and 60 * 2**n <= w <= 66 * 2**n for n, w in enumerate(waits[:5]))
    assert waits[5] is None


async def test_replay_takes_batch_size_and_max_concurrent(redis_url: str) -> None:
    """Both calls run what is waiting and scheduled, due or not; parked letters stay."""
    dlq = DeadLetterQueue(redis_url, DeadLetterConfig(queue="guide"))
    got: list[Any] = []
    dlq.add_handler(lambda event: got.append(event["n"]), type="order")
    async with dlq:
        for snippet in (BATCHES, CONCURRENCY):
            await dlq.add_many([{"n": n} for n in range(20)], type="order")
            await executed(snippet, dlq=dlq)
            assert sorted(got) == list(range(20))
            got.clear()
        kept = await dlq.add({"n": 99}, type="order")
        await dlq.park(kept, "for later")
        success, failed = await dlq.replay_events(batch_size=100, max_concurrent=8)
        assert (success, failed, got) == (0, 0, [])
        parked = [letter.id async for letter in dlq.letters(Where(state=LetterState.PARKED.value))]
        assert parked == [kept]
        assert (await dlq.verify()).clean


def test_tls_and_passwords_are_taken_as_users_write_them() -> None:
    """The client of the TLS snippet is accepted without I/O, and no repr shows the URL's password."""
    from redis.asyncio import Redis

    names: dict[str, Any] = {"Redis": Redis}
    exec(TLS, names)
    DeadLetterQueue(redis=names["redis"])
    dlq = DeadLetterQueue(AUTHENTICATION, DeadLetterConfig(redis_url=AUTHENTICATION))
    assert ":password@" not in repr(dlq) + repr(dlq.config)
    assert dlq.config.redis_url == AUTHENTICATION


def test_its_redis_conf_starts_a_server_that_is_said_to_be_unsafe(server: Server) -> None:
    """Each line is known to it; the eviction policy is what `health` and DLQ_STRICT refuse."""
    lines = [line.split(" ") for line in REDIS_CONF.splitlines() if line and not line.startswith("#")]
    words = [word for name, *values in lines for word in (f"--{name}", *values)]
    with Server(server.name, *words) as unsafe:
        assert unsafe.client.config_get("save") == {"save": "900 1 300 10 60 10000"}
        cli = Cli(unsafe.url)
        cli.seed(("order", {}))
        ran = cli("health")
        assert ran.status == 1
        assert [each["check"] for each in ran.record["checks"] if not each["ok"]] == ["eviction"]
        assert cli("health", DLQ_STRICT="true").status == 2
        unsafe.client.config_set("maxmemory-policy", "noeviction")
        assert cli("health", DLQ_STRICT="true").status == 0


def test_its_cluster_client_is_of_a_package_that_cannot_be_there() -> None:
    """It asks for redis < 4, the engine for 8: docs/guide-map.md has what works in its place."""
    with pytest.raises(ModuleNotFoundError, match="rediscluster"):
        exec(block("from rediscluster"), {})


APP = """\
import os
from uno.event_bus.dead_letter import DeadLetterQueue

queue = DeadLetterQueue.from_env()

@queue.handler("order")
async def handle(event):
    print("handled", event["n"], flush=True)
"""


async def handled(worker: Process) -> None:
    """Wait until the worker's handler has said that it ran."""
    assert worker.stdout is not None
    assert await BufferedByteReceiveStream(worker.stdout).receive_until(b"\n", 1000) == b"handled 7"


async def test_the_sidecars_command_works_letters_off(redis_url: str, tmp_path: Path) -> None:
    """``python -m uno.cli.main dead-letter worker`` with the guide's variables retries letters, and ends on SIGTERM."""
    (tmp_path / "shop.py").write_text(APP)
    async with DeadLetterQueue(redis_url, DeadLetterConfig(queue="default")) as dlq:
        await dlq.add({"n": 7}, type="order", delay=0)
        environ = {
            **os.environ,
            "DLQ_WORKER_MODE": "true",
            "DLQ_REDIS_URL": redis_url,
            "DLQ_APP": "shop:queue",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        }
        command = [sys.executable, "-m", "uno.cli.main", "dead-letter", "worker"]
        async with await anyio.open_process(command, env=environ, stderr=subprocess.DEVNULL) as worker:
            try:
                with anyio.fail_after(20):
                    await handled(worker)
                worker.send_signal(signal.SIGTERM)
                with anyio.fail_after(20):
                    assert await worker.wait() == 0
            except BaseException:
                worker.kill()
                raise
        assert (await dlq.stats()).open == 0
        assert (await dlq.verify()).clean
