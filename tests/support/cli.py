"""Running `uno …` as its users do: in this process for speed, else in one of its own, or on a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from click.testing import CliRunner

from uno.cli.group import uno
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

COMMAND = (sys.executable, "-m", "uno.cli.main", "dead-letter")

APP = """
from uno.event_bus.dead_letter import DeadLetterQueue

queue = DeadLetterQueue.from_env()
seen = []

@queue.handler("good")
async def good(event):
    seen.append(event)

@queue.handler("bad")
async def bad(event):
    raise ValueError("still broken")

def make():
    return queue

bare = DeadLetterQueue.from_env()
"""


class Ran(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def record(self) -> Any:
        """The JSON that was printed."""
        return json.loads(self.out)

    @property
    def records(self) -> list[Any]:
        """The JSON lines that were printed."""
        return [json.loads(line) for line in self.out.splitlines()]


class Cli:
    """The command line, against one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings = {"DLQ_REDIS_URL": url, "DLQ_SHARDS": "2", "DLQ_OPERATION_TIMEOUT": "10"}

    def __call__(self, *words: str, input: bytes | str | None = None, **settings: str) -> Ran:  # noqa: A002
        """Run ``uno dead-letter`` with these words in this process."""
        result = CliRunner().invoke(uno, ["dead-letter", *words], input=input, env=self.settings | settings)
        return Ran(result.exit_code, result.stdout, result.stderr)

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of a process."""
        return os.environ | self.settings | settings

    def spawn(self, *words: str, cwd: Path | None = None, **settings: str) -> "subprocess.Popen[str]":
        """Start ``uno dead-letter`` in a process of its own."""
        return subprocess.Popen(
            [*COMMAND, *words],
            cwd=cwd,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(
        self, *words: str, typed: str = "", stdout_elsewhere: bool = False, **settings: str
    ) -> tuple[int, str, str]:
        """Run it on a terminal, typing this when it asks; return status, screen, and stdout if elsewhere."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, *words],
            env=self.environment(COLUMNS="100", TERM="xterm-256color", **settings),
            stdin=follower,
            stdout=subprocess.PIPE if stdout_elsewhere else follower,
            stderr=follower,
            start_new_session=True,
            text=True,
        )
        os.close(follower)
        with process:
            if typed:
                os.write(leader, typed.encode())
            screen = _read_all(leader, time.monotonic() + 40)
            os.close(leader)
            out = process.stdout.read() if process.stdout else ""
            return process.wait(20), screen, out

    def do[T](self, act: Callable[[DeadLetterQueue], Any]) -> Any:
        """Call an async function with the queue, and return what it returns."""
        return anyio.run(partial(_do, self.url, act))

    def seed(self, *events: tuple[str, Any], **how: Any) -> list[str]:
        """Capture events, each a type and a dict; return the letters' ids."""

        async def add(queue: DeadLetterQueue) -> list[str]:
            return [await queue.add(event, type=type, **how) for type, event in events]

        found: list[str] = self.do(add)
        return found


async def _do(url: str, act: Callable[[DeadLetterQueue], Any]) -> Any:
    async with DeadLetterQueue(url, DeadLetterConfig(shards=2)) as queue:
        return await act(queue)


def _read_all(descriptor: int, deadline: float) -> str:
    read = b""
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not part:
            break
        read += part
    return read.decode()


def wait_for_line(process: "subprocess.Popen[str]", word: str) -> str:
    """Return the first line of stderr with this word; fail when the process ends before."""
    assert process.stderr is not None
    seen = []
    while line := process.stderr.readline():
        seen.append(line)
        if word in line:
            return line
    raise AssertionError(f"{word!r} was never said:\n{''.join(seen)}")
