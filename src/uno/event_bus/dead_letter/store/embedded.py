"""The embedded server: `embedded:` or `embedded:///path` in place of a Redis URL.

Every process that starts an `EmbeddedServer` on a directory shares one Valkey (or Redis) server over a unix
socket. The first one starts it, later ones join it; it lives as long as anybody uses it, survives the process
that started it, and ends cleanly after the last user, whatever ended that: `stop()`, exit, SIGTERM, SIGKILL.
A second small process sees to that: `embedded_guard.py`.

``embedded:`` alone means ``$XDG_DATA_HOME/uno/dead-letter``, else ``~/.local/share/uno/dead-letter``: the data
are there again after a restart and from any working directory, and *all* programs of this account that say
``embedded:`` share them. Services that have nothing to do with each other take a path of their own, or at least
a ``DLQ_QUEUE`` of their own.

What is in the directory: ``appendonlydir`` (the data, fsynced every second: a crash of the *machine* may cost the
last second, a crash of processes nothing that has reached the kernel), ``server.log``, two lock files that stay,
and while the server runs ``server.sock`` and ``guard.sock``. The file ``sockets`` names their directory when
the data directory's path is too long for a socket.

A forked child holds the connection that it inherited: it counts as a user until it exits or calls `stop()`.
"""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable
from uno.event_bus.dead_letter.store import embedded_guard as guard
from uno.event_bus.dead_letter.store.embedded_binary import server_command

__all__ = ["EmbeddedServer"]

JOIN_SECONDS = 60.0  # for a running guard to answer: it may be restarting a server with much data
STOP_SECONDS = 15.0  # for the end of server and guard; usually 10 ms
LOG_BYTES = 1 << 20  # a longer log becomes server.log.1 at the next start


class EmbeddedServer:
    """This process's use of the server of one directory; a context manager.

    ``directory`` holds the data and is made (0700) if it does not exist; None means the default directory. All
    methods block (a start takes some 90 ms and the time to load the data, joining less than 1 ms), may be called
    from any thread, and more than once. ``options`` are further flags of a server that this use starts; they
    overrule its own.
    """

    def __init__(self, directory: Path | str | None = None, *, options: Sequence[str] = ()) -> None:
        path = default_directory() if directory is None else Path(directory)
        if not str(path).isprintable():
            raise ConfigError(f"{str(path)!r}: the path of an embedded server may not have control characters")
        self._directory = path.resolve()  # one directory, one path, whichever link leads to it
        self._options = options
        self._socket_path: Path | None = None
        self._connection: socket.socket | None = None  # while it is open, the server lives
        self._mutex = threading.Lock()

    @classmethod
    def from_url(cls, url: str, *, options: Sequence[str] = ()) -> Self:
        """Read ``embedded:`` or ``embedded:///path`` (percent-encoded); all else raises `ConfigError`."""
        if url == "embedded:":
            return cls(options=options)
        path = unquote(url.removeprefix("embedded://"))
        if not url.startswith("embedded:///") or "?" in url or "#" in url or not path.strip("/."):
            shown = repr(url) if "@" not in url else "this URL"  # there may be a password in it
            raise ConfigError(f"{shown} is not an embedded server: use embedded: or embedded:///absolute/path")
        return cls(path, options=options)

    @property
    def directory(self) -> Path:
        """Where the data are."""
        return self._directory

    @property
    def socket_path(self) -> Path:
        """Where the server listens; known after `start()`."""
        if self._socket_path is None:
            raise RuntimeError("the embedded server has not been started: call start() first")
        return self._socket_path

    @property
    def url(self) -> str:
        """The server's address for redis-py, ``unix:///…/server.sock``; known after `start()`."""
        return f"unix://{quote(os.fspath(self.socket_path))}"

    def start(self) -> str:
        """Join the directory's server, or start it, and give its `url` once it answers and has its data.

        Calling it again costs microseconds, and brings the server back if its guard was killed meanwhile.
        Raises `ConfigError` if there is no server to start or the directory cannot be used, and
        `StoreUnavailable`, with the last lines of the server's log, if it does not come up.
        """
        with self._mutex:
            if self._connection is not None and not _is_open(self._connection):
                self._connection.close()
                self._connection = None
            if self._connection is None:
                try:
                    self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    self._connection = self._join() or self._join_or_start()
                except OSError as error:
                    why = f"the embedded server cannot use {self._directory}: {error.strerror or error}"
                    raise ConfigError(why) from None
            return self.url

    def stop(self) -> None:
        """Use the server no longer; if nobody else does, wait for its clean end (10 ms, at most 15 s).

        A process that just exits leaves it in the same way, without waiting. Do wait where this is the first
        process of a container: its end kills all others at once.
        """
        with self._mutex:
            if self._connection is None:
                return
            farewell = None
            with suppress(StoreUnavailable, OSError):
                farewell = self._join()
            self._connection.close()
            self._connection = None
            if farewell is not None:
                with farewell, suppress(OSError):
                    farewell.settimeout(STOP_SECONDS)
                    farewell.sendall(b"bye\0")
                    farewell.recv(64)  # "in use" by others, or end of file: server and guard are gone

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EmbeddedServer({os.fspath(self._directory)!r})"

    # ------------------------------------------------------------------------------------- joining, starting

    def _join_or_start(self) -> socket.socket:
        """Start the server, unless another process was quicker; one process at a time gets past the lock."""
        with _locked(self._directory / "start.lock"):
            return self._join() or self._start()

    def _join(self) -> socket.socket | None:
        """Connect to the guard; None if there is none, or it is just leaving."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(JOIN_SECONDS)
            connection.connect(os.fspath(self._socket_directory() / guard.GUARD_SOCKET))
            joined = self._read_answer(connection)
        except TimeoutError:
            connection.close()
            why = f"the embedded server of {self._directory} has not answered for {JOIN_SECONDS:.0f} s"
            raise StoreUnavailable(why, certain=True) from None
        except OSError:
            joined = False
        except BaseException:
            connection.close()
            raise
        if joined:
            return connection
        connection.close()
        return None

    def _socket_directory(self) -> Path:
        """Where to look for the guard; raises `OSError` if that cannot be known, or is not ours."""
        if guard.fits(os.fspath(self._directory)):
            return self._directory
        place = Path(os.fsdecode((self._directory / guard.SOCKET_RECORD).read_bytes()))
        # After a reboot, anybody may have made a directory of that name in /tmp.
        if os.lstat(place).st_uid not in {os.geteuid(), self._directory.stat().st_uid}:
            raise PermissionError(13, "not ours", os.fspath(place))
        return place

    def _start(self) -> socket.socket:
        """Start guard and server, as their first user."""
        command = [*server_command(self._directory), *self._options]
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                _spawn_guard(self._directory, command, theirs)
            if not self._read_answer(ours):
                tail = guard.log_tail(os.fspath(self._directory))
                raise StoreUnavailable(f"the embedded server's guard has ended: {tail}", certain=True)
        except BaseException:
            ours.close()
            raise
        return ours

    def _read_answer(self, connection: socket.socket) -> bool:
        """Read ``ready <path>``; False if the guard ends without a word."""
        answer = b""
        while not answer.endswith(b"\0"):
            if not (some := connection.recv(4096)):
                return False
            answer += some
        word, _, rest = os.fsdecode(answer[:-1]).partition(" ")
        if word != "ready":
            raise StoreUnavailable(f"the embedded server: {rest}", certain=True)
        self._socket_path = Path(rest)
        connection.setblocking(False)
        return True


def default_directory() -> Path:
    """``uno/dead-letter`` in $XDG_DATA_HOME, if that is absolute as its standard asks, or in ~/.local/share."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError:
        raise ConfigError("embedded: needs HOME or XDG_DATA_HOME; or use embedded:///absolute/path") from None
    return base / "uno" / "dead-letter"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if a child was forked meanwhile
        os.close(file)


def _is_open(connection: socket.socket) -> bool:
    """Say whether the guard is there: it never speaks first, so there is end of file or nothing to read."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _spawn_guard(directory: Path, command: list[str], connection: socket.socket) -> None:
    log = directory / guard.SERVER_LOG
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    log.touch(mode=0o600)
    # An application server that embeds Python (uWSGI, mod_wsgi) has itself as sys.executable.
    python = Path(sys.executable or "-")
    python = python if python.name.startswith("py") else Path(sys.exec_prefix, "bin", "python3")
    script = [os.fspath(python), "-I", "-S", guard.__file__, os.fspath(directory)]
    with log.open("ab") as output:
        # The script forks and its first half ends at once, so the guard is nobody's child to reap.
        subprocess.run(
            [*script, *command],
            stdin=connection.fileno(),
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            check=False,
        )
