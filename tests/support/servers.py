"""Real servers for tests: started on a unix socket in a folder of their own, ended with the test process.

`Server` is a context manager for tests that stop, kill or restart one; all others share the fixtures of
`places.py`, which keep one server of each kind per test process.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import binaries

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "redis" / "redis.conf"
"""The file that we ship: every server of the tests starts with it; what follows on the command line overrules it."""

# No disk, and no bound of memory, but where a test asks for it.
SETTINGS = (
    "--port", "0", "--save", "", "--appendonly", "no", "--maxmemory", "0",
    "--unixsocket", "server.sock", "--unixsocketperm", "700", "--logfile", "server.log", "--daemonize", "no",
)  # fmt: skip

START_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Have the kernel end the server when the test process dies, however it dies."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One running server; `name` is one of `binaries.SERVERS`, `options` are further flags of its command line."""

    def __init__(self, name: str, *options: str) -> None:
        self._binary = binaries.binary(name)  # fails or skips the test before anything is made
        self.name = name
        self.options = options
        self.version = tuple(map(int, name.partition("-")[2].split(".")))
        # Not pytest's tmp_path: the path of a socket may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="uno-test-"))
        self.socket_path = self.folder / "server.sock"
        self.url = f"unix://{self.socket_path}"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def address(self) -> str:
        """Where it is, as errors name it."""
        return str(self.socket_path)

    def url_of(self, user: str, password: str) -> str:
        """The URL of a user of its own."""
        return self.url.replace("://", f"://{user}:{password}@")

    def users_client(self, **options: Any) -> redis.asyncio.Redis:
        """A client as users of the engine build theirs."""
        return redis.asyncio.Redis(unix_socket_path=str(self.socket_path), **options)

    def __repr__(self) -> str:
        return f"Server({self.name}, pid {self.pid if self._process else None})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def client(self) -> Any:
        """A blocking client, for a test's own looks and strokes: never retries, answers bytes."""
        if self._client is None:
            self._client = redis.Redis(
                unix_socket_path=str(self.socket_path), socket_timeout=10, retry=Retry(NoBackoff(), 0)
            )
        return self._client

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [str(self._binary), str(CONFIGURATION), *SETTINGS, *self.options]
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one C call, in a process without threads as yet
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} does not start:\n{self.log()}") from None
                time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server: SIGSTOP and SIGCONT make it hang and go on."""
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal; it can be started again on the same folder."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
                if number is not signal.SIGKILL:
                    self._process.send_signal(signal.SIGCONT)
            self._process.wait(START_SECONDS)
            self._process = None

    def clients(self) -> list[Any]:
        """A client of each node, for what is of no key: here of the one."""
        return [self.client]

    def keys(self, pattern: str = "*") -> list[bytes]:
        """The keys that there are."""
        keys: list[bytes] = self.client.keys(pattern)
        return keys

    def connections(self) -> list[dict[str, str]]:
        """What the server says of each connection."""
        rows: list[dict[str, str]] = self.client.client_list()
        return rows

    def log(self) -> str:
        """What the server has said."""
        path = self.folder / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else "(no log)"

    def flush(self) -> None:
        """Remove all keys."""
        self.client.flushall()

    def clean(self) -> None:
        """Make it as new: no keys, the settings that tests change as they were, nobody paused."""
        pipe = self.client.pipeline(transaction=False)
        for setting in ("maxmemory 0", "maxmemory-policy noeviction"):
            pipe.execute_command("CONFIG", "SET", *setting.split())
        pipe.execute_command("CLIENT", "UNPAUSE")
        pipe.flushall()
        pipe.execute()
