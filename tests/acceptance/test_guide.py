"""What the deployment guide says works as it says: its snippets stand here word for word."""

import ast
import inspect
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, LetterState, Where

GUIDE = Path(__file__).parents[3] / "shared/seed/deployment-guide.md"

VARIABLES = """\
# Required
REDIS_URL=redis://localhost:6379/0

# Optional with defaults
DLQ_MAX_RETRIES=5
DLQ_RETRY_DELAY=60  # seconds
DLQ_MAX_QUEUE_SIZE=100000
DLQ_RETENTION_DAYS=7
DLQ_CONCURRENCY=10
DLQ_BATCH_SIZE=100
"""

CONSTRUCTION = """\
from uno.event_bus.dead_letter import DeadLetterQueue, DeadLetterConfig
from redis.asyncio import Redis

# Initialize with production settings
redis = Redis.from_url("redis://prod-redis:6379/0")

config = DeadLetterConfig(
    max_retries=5,
    retry_delay=60,  # seconds
    max_queue_size=100_000,
    retention_days=7,
)

dlq = DeadLetterQueue(redis=redis, config=config)
"""

BATCHES = """\
# Optimal batch size depends on your event size
# Start with 100 and adjust based on performance
await dlq.replay_events(batch_size=100)
"""

CONCURRENCY = """\
# Number of concurrent workers
# Start with CPU cores * 2
await dlq.replay_events(max_concurrent=8)
"""

POLICY = """\
config = DeadLetterConfig(
    max_retries=5,
    retry_delay=60,  # Exponential backoff starts at 60s
)
"""

TLS = """\
redis = Redis(
    host='redis.example.com',
    ssl=True,
    ssl_cert_reqs='required',
    ssl_ca_certs='/path/to/ca.pem'
)
"""

AUTHENTICATION = "redis://:password@localhost:6379/0"


async def executed(snippet: str, **names: Any) -> dict[str, Any]:
    """Run a snippet that may await, and return its names."""
    code = compile(snippet, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result
    return names


@pytest.mark.skipif(not GUIDE.exists(), reason=f"the guide is not here: {GUIDE}")
@pytest.mark.parametrize("snippet", [VARIABLES, CONSTRUCTION, BATCHES, CONCURRENCY, POLICY, TLS, AUTHENTICATION])
def test_the_snippets_are_the_guides(snippet: str) -> None:
    """Word for word, but for indentation."""
    guide = textwrap.dedent("\n".join(line.strip() for line in GUIDE.read_text().splitlines()))
    assert "\n".join(line.strip() for line in snippet.splitlines()) in guide


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
