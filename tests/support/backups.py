"""The scripts of `deploy/backup`, run as an operator runs them; and a drill: work that goes on while they do theirs."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, override

import anyio
import anyio.to_thread
import pytest

from tests.support import binaries
from tests.support.load import Load
from tests.support.waiting import SOON_S, eventually
from uno.event_bus.dead_letter import DeadLetterQueue

FOLDER = Path(__file__).parents[2] / "deploy" / "backup"
HELD = ("held 0", "held 1", "held 2")
"""Ids of letters whose handler does not end: they are leased for as long as the drill's worker lives."""

LEASE_S = 2.0
"""Of a drill's queue: short enough to wait for its end, longer than a busy machine keeps a heartbeat waiting."""

type Variables = Mapping[str, str | int | Path]
NONE: Variables = {}


class Scripts:
    """Runs the scripts against servers of one kind; `folder` is for what they need beside them."""

    def __init__(self, server: str, folder: Path) -> None:
        if shutil.which("redis-cli") is None:
            missing = "redis-cli is not on this machine (Debian's package redis-tools)"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        # A checker knows the files of its own version; it is the server, under another name.
        for checker in ("redis-check-rdb", "redis-check-aof"):
            (folder / checker).symlink_to(binaries.binary(server))
        self.env = {f"REDIS_CHECK_{x}": str(folder / f"redis-check-{x.lower()}") for x in ("RDB", "AOF")}

    def run(self, name: str, *arguments: str | Path, env: Variables = NONE) -> subprocess.CompletedProcess[str]:
        """Run a script to its end, whatever that is."""
        whole = os.environ | self.env | {key: str(value) for key, value in env.items()}
        return subprocess.run(
            [FOLDER / name, *arguments], env=whole, capture_output=True, text=True, timeout=50, check=False
        )

    def done(self, name: str, *arguments: str | Path, env: Variables = NONE) -> str:
        """Run a script that must do what it is for; return the last line that it says."""
        ended = self.run(name, *arguments, env=env)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended.stdout.splitlines()[-1]

    async def backup(self, name: str, *arguments: str | Path, env: Variables = NONE) -> Path:
        """Make a backup while the test goes on; return its folder."""
        return Path(await anyio.to_thread.run_sync(lambda: self.done(name, *arguments, env=env)))

    def refused(self, name: str, *arguments: str | Path, env: Variables = NONE, status: int = 1) -> str:
        """Run a script that must refuse; return the one line that says why."""
        ended = self.run(name, *arguments, env=env)
        assert ended.returncode == status, ended
        [line] = ended.stderr.splitlines()
        return line


class Drill(Load):
    """A load of which some letters are in a handler all the time; what has ended is noted by event id."""

    def __init__(self, worker: DeadLetterQueue, producer: DeadLetterQueue) -> None:
        super().__init__(worker, producer)
        self.started: Counter[str] = Counter()
        self.ended: set[str] = set()

    @override
    async def _handle(self, event: Any) -> None:
        self.ran[event] += 1
        self.started[str(event)] += 1
        await (anyio.sleep_forever() if event in HELD else anyio.sleep(0.001))
        self.ended.add(str(event))

    @property
    def known(self) -> set[str]:
        """Event ids of all letters whose capture was acknowledged."""
        return {str(number) for number in self.acknowledged} | set(HELD)


@asynccontextmanager
async def drilling(queues: Callable[..., DeadLetterQueue]) -> AsyncIterator[Drill]:
    """A drill at work. After the block its worker and producer are gone, in the middle of what they did."""
    settings = {"lease_seconds": LEASE_S, "operation_timeout": 1.0, "concurrency": 20}
    drill = Drill(queues(**settings), queues(**(settings | {"operation_timeout": 20.0})))
    ready = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: drill.worker.run(ready=ready))
        with anyio.fail_after(SOON_S):
            await ready.wait()
        for held in HELD:
            await drill.producer.add(held, event_id=held, delay=0)
        group.start_soon(drill.produce)
        await eventually(lambda: len(drill.ended) > 50 and drill.started.keys() >= set(HELD))
        yield drill
        group.cancel_scope.cancel()


async def drain(queue: DeadLetterQueue) -> Counter[str]:
    """Have a worker run all letters to their end; return how often each was run, by event id."""
    runs: Counter[str] = Counter()

    async def handle(event: Any) -> None:
        runs[str(event)] += 1

    queue.add_handler(handle)
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: queue.run(stop=stop))

        async def is_empty() -> bool:
            return (await queue.stats()).open == 0

        await eventually(is_empty)
        stop.set()
    return runs
