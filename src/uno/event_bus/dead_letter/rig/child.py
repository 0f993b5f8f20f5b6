"""A child process that converses in lines: it reads them from standard input, and writes them to standard output.

It is asked to end by the end of its input, which also comes when this process is killed: a child that heeds it never
outlives its parent.
"""

import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import IO, Final

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["Child", "child_process"]

LONGEST_LINE: Final = 64 << 20
"""Bytes of a line that a child may write."""


class Child:
    """A running child, seen by its parent."""

    def __init__(self, process: Process, errors: IO[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._errors = errors

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yield what it writes, without the ends of the lines, until it closes its output."""
        assert self._process.stdout is not None
        written = BufferedByteReceiveStream(self._process.stdout)
        while True:
            try:
                line = await written.receive_until(b"\n", LONGEST_LINE)
            except (anyio.IncompleteRead, anyio.EndOfStream):
                return
            yield line

    async def tell(self, line: bytes) -> None:
        """Write a line to it; one that has ended does not hear it, and its status tells."""
        assert self._process.stdin is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._process.stdin.send(line)

    async def end_input(self) -> None:
        """Ask it to end in order."""
        assert self._process.stdin is not None
        with suppress(anyio.BrokenResourceError):
            await self._process.stdin.aclose()

    async def wait(self) -> int:
        """Return its status when it has ended; below 0 the signal that has ended it."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def last_words(self) -> str:
        """Say why it has ended: by which signal, or the last line that it wrote to standard error."""
        status = self._process.returncode
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        return lines[-1] if lines else f"status {status}, and no reason given"


@asynccontextmanager
async def child_process(module: str, *words: str) -> AsyncGenerator[Child]:
    """Run ``python -m module`` while the body runs.

    It is killed when the body is interrupted or fails; a body that ends waits for it, and should have ended its input.
    """
    command = [sys.executable, "-m", module, *words]
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its children in order.
        async with await anyio.open_process(
            command, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True
        ) as process:
            child = Child(process, errors)
            try:
                yield child
            except BaseException:
                child.kill()
                with anyio.CancelScope(shield=True):
                    await child.wait()
                raise
