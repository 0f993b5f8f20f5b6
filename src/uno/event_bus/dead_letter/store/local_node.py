"""One node of a local cluster: a server process of ours on a loopback port, with a folder of its own.

**No orphans.** Beside each server waits a shell that reads from a pipe whose only other end is ours. Whatever ends
this process, SIGKILL included, closes the pipe, and the shell kills the server, also one that is stopped; a forked
child holds the pipe, too, until it ends. (The kernel's PR_SET_PDEATHSIG would do without a shell, on Linux alone, but
fires as soon as the *thread* that started the server ends: a node that a thread pool started would die with an idle
thread.)
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.store.embedded_guard import SERVER_LOG, log_tail

__all__ = ["HOST", "LocalNode", "View", "free_port", "is_free"]

HOST: Final = "127.0.0.1"
BUS_OFFSET: Final = 10_000
PORTS: Final = range(12_768, 22_768)
"""Neither a port nor its bus port lies in Linux's ephemeral range (from 32768), and no port is another's bus port."""

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0
"""From SIGTERM to SIGKILL; usually 0.1 s, as servers look for signals ten times a second."""
COMMAND_SECONDS: Final = 10.0
VIEW_SECONDS: Final = 2.0
FIRST_WORD_SECONDS: Final = 0.5
"""For one try to reach a starting server: what listens there may be another's, and silent."""

_GUARD: Final = 'trap "" INT TERM HUP; read -r _ || kill -KILL "$1"'


@dataclass(frozen=True, slots=True)
class View:
    """What one node believes of the cluster; nodes agree a moment after each change, not at once."""

    epoch: int
    """The cluster's current epoch: of two views, the one with the later epoch is newer."""
    is_ok: bool
    """cluster_state is ok, and this node's own link to its primary, if it is a replica, is up."""
    flags: dict[str, frozenset[str]]
    """Flags of each node by id: ``master``, ``slave``, ``fail``, ``handshake`` …"""
    owners: dict[str, tuple[range, ...]]
    """Slots by the id of the node that serves them."""
    primaries: dict[str, str]
    """Id of each replica → id of its primary."""

    @classmethod
    def of(cls, nodes: dict[str, dict[str, Any]], info: dict[str, str], replication: dict[str, Any]) -> Self:
        """Read the replies of CLUSTER NODES, CLUSTER INFO and INFO replication, as redis-py parses them."""
        rows = {row["node_id"]: row for row in nodes.values()}
        return cls(
            epoch=int(info["cluster_current_epoch"]),
            is_ok=info["cluster_state"] == "ok" and replication.get("master_link_status", "up") == "up",
            flags={id: frozenset(row["flags"].split(",")) for id, row in rows.items()},
            owners={
                id: tuple(range(int(slots[0]), int(slots[-1]) + 1) for slots in row["slots"])
                for id, row in rows.items()
                if row["slots"]
            },
            primaries={id: row["master_id"] for id, row in rows.items() if row["master_id"] != "-"},
        )


class LocalNode:
    """One server; `command` is all of its command line but the port. All methods block."""

    def __init__(self, command: Sequence[str], folder: Path, port: int) -> None:
        self.port = port
        self._command = [*command, "--port", str(port)]
        self._folder = folder
        self._id = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._client: Redis | None = None

    def __repr__(self) -> str:
        return f"LocalNode(port {self.port}, {f'pid {self.pid}' if self.is_running else 'not running'})"

    @property
    def is_running(self) -> bool:
        """Whether there is a process, also one that is paused."""
        return self._state() in {None, os.CLD_STOPPED}

    @property
    def is_paused(self) -> bool:
        """Whether SIGSTOP holds the process."""
        return self._state() == os.CLD_STOPPED

    def _state(self) -> int | None:
        """Say what has become of the process: ended or stopped, None while it goes on."""
        if self._process is None:
            return os.CLD_EXITED
        # Looks without reaping: as long as the guard knows the number, it must be no other process's.
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        return found.si_code if found else None

    @property
    def pid(self) -> int:
        """The process; raises `RuntimeError` if it has not been started, or has been killed."""
        if self._process is None:
            raise RuntimeError(f"the node on port {self.port} is not running")
        return self._process.pid

    @property
    def id(self) -> str:
        """The node's name in the cluster, 40 hex digits; the same after a restart."""
        if not self._id:
            self._id = self.client.execute_command("CLUSTER MYID").decode()
        return self._id

    @property
    def client(self) -> Any:
        """A `redis.Redis` of this node alone: blocks, answers bytes, follows no redirect, never retries."""
        if self._client is None:
            self._client = self._connect(COMMAND_SECONDS)
        return self._client

    def is_primary(self) -> bool:
        """Ask the node itself: whether it is a primary, with or without slots."""
        return bool(self.client.execute_command("ROLE")[0] == b"master")

    def view(self) -> View | None:
        """Ask the node what it believes; None if it is away, paused, or does not answer for 2 s."""
        if not self.is_running or self.is_paused:
            return None
        with suppress(RedisError, OSError), self._connect(VIEW_SECONDS) as client:
            pipe: Any = client.pipeline(transaction=False)
            pipe.execute_command("CLUSTER NODES")
            pipe.execute_command("CLUSTER INFO")
            pipe.info("replication")
            return View.of(*pipe.execute())
        return None

    # -- the process ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, with what is in its folder, and return when it has loaded that; nothing to do while it runs.

        Raises `StoreUnavailable`, with the last lines of its log, if it ends or does not answer within 20 s.
        """
        if self.is_running:
            return
        self._close()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / SERVER_LOG).open("ab") as log:
            log_start = log.tell()
            # A session of its own: Ctrl-C in a terminal is for its owner, who then ends the nodes in order.
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self.pid)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            deadline = time.monotonic() + START_SECONDS
            while not self._answers():
                if not self.is_running or time.monotonic() > deadline:
                    why = f"{self._command[0]} does not start on port {self.port}"
                    tail = log_tail(os.fspath(self._folder), log_start)
                    raise StoreUnavailable(f"{why}: {tail}", certain=True)
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP makes it hang with all its connections open, SIGCONT lets it go on."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would; `start` brings it back."""
        if self._process is not None:
            self._process.kill()
        self._close()

    def stop(self) -> None:
        """End it by SIGTERM, which writes its AOF out, if it has one; by SIGKILL after 5 s."""
        self.ask_to_end()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def ask_to_end(self) -> None:
        """Send SIGTERM, also to a stopped one, and do not wait."""
        if self.is_running:
            self.send(signal.SIGTERM)
            self.send(signal.SIGCONT)

    def _answers(self) -> bool:
        """Say whether it serves commands, and is the server that was started: another may have taken the port."""
        with suppress(RedisError, OSError), self._connect(FIRST_WORD_SECONDS) as client:
            info = client.info()
            return bool(info["process_id"] == self.pid and not info["loading"])
        return False

    def _connect(self, timeout_s: float) -> Redis:
        return Redis(host=HOST, port=self.port, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))

    def _close(self) -> None:
        """Reap an ended server and let its guard go."""
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._guard is not None:
            self._guard.communicate(b"\n")
            self._guard = None
        if self._client is not None:
            self._client.close()
            self._client = None


def free_port() -> int:
    """Choose a port that is free now, as its bus port is; it may be taken a moment later."""
    chance = random.SystemRandom()  # the others start test processes with equal seeds
    for port in chance.sample(PORTS, len(PORTS)):
        if is_free(port):
            return port
    raise StoreUnavailable(f"no port from {PORTS.start} to {PORTS.stop - 1} is free", certain=True)


def is_free(port: int) -> bool:
    """Say whether nobody listens on the port, nor on its bus port."""
    for number in (port, port + BUS_OFFSET):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections do not matter
            try:
                probe.bind((HOST, number))
            except OSError:
                return False
    return True
