"""Reading events from a file of JSON lines, plain or gzipped."""

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, NamedTuple, Self

import msgspec

from uno.cli.failures import Failure, Status

__all__ = ["BadLine", "Event", "Source"]

GZIP: Final = b"\x1f\x8b"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
LONGEST_LINE: Final = 1 << 30
"""Bytes of a line, before it is taken for a file of another kind."""


class Event(msgspec.Struct, kw_only=True):
    """One line: an event to capture. Fields of other names are passed over."""

    type: Annotated[str, msgspec.Meta(min_length=1)]
    payload: msgspec.Raw
    """A slice of the line: the very bytes of the file."""
    event_id: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    subscription: str | None = None
    line: int = 0


class BadLine(NamedTuple):
    """A line that is no event."""

    line: int
    why: str


_decode = msgspec.json.Decoder(Event).decode


class Source:
    """A file of events, or stdin; a context manager."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._raw: BinaryIO = _stdin() if self._name == "-" else path.open("rb")
        self.size = os.fstat(self._raw.fileno()).st_size if self._name != "-" else None
        """Bytes of the file as it is on disk; None when that is not known."""
        self._line = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    @property
    def position(self) -> int:
        """Bytes read of the file as it is on disk."""
        return self._raw.tell()

    def events(self, largest: int) -> Iterator[Event | BadLine]:
        """Yield, for each line that is not empty, its event or what is wrong with it.

        A payload over `largest` bytes is wrong. Raises `Failure` where gzip data is damaged or ends early.
        """
        buffered = io.BufferedReader(self._raw) if isinstance(self._raw, io.RawIOBase) else self._raw
        head = buffered.peek(2)[:2] if isinstance(buffered, io.BufferedReader) else b""
        text = gzip.GzipFile(fileobj=buffered) if head == GZIP else buffered
        try:
            while line := text.readline(LONGEST_LINE):
                self._line += 1
                if self._line == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    yield self._event(line, largest)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Failure(f"{self._name}: damaged after line {self._line}: {error}", Status.FAILURE) from error

    def _event(self, line: bytes, largest: int) -> Event | BadLine:
        try:
            line.decode()  # msgspec passes over the payload without looking at its texts
            event = _decode(line)
        except UnicodeDecodeError as error:
            return BadLine(self._line, f"not UTF-8 at byte {error.start}")
        except (msgspec.MsgspecError, RecursionError) as error:
            return BadLine(self._line, str(error))
        size = len(bytes(event.payload))
        if size > largest:
            return BadLine(self._line, f"payload is {size} bytes, DLQ_MAX_PAYLOAD_BYTES is {largest}")
        event.line = self._line
        return event


def _stdin() -> BinaryIO:
    """Return stdin through a reader of our own: a thread that is left reading must not hold that of `sys`."""
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):  # a test's
        return io.BufferedReader(io.BytesIO(sys.stdin.buffer.read()))
