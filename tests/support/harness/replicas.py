"""Replicas of the service: processes as users start them, behind one address, which goes to whichever answers."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self, override

from tests.support.harness.actors import Process
from tests.support.harness.run import Run
from tests.support.harness.wires import Wire
from tests.support.probes import get_until
from tests.support.running_service import tokens
from uno.event_bus.dead_letter.service.access import line_of, new_token
from uno.event_bus.dead_letter.store.local_node import HOST, free_port

__all__ = ["EXPIRED", "Relay", "Replica", "Replicas"]

CALLERS: Final = {
    "clients": ("capture",),
    "reader": ("read",),
    "operator": ("operate",),
    "admin": ("admin",),
}
"""Name → roles, of the tokens that replicas know."""

EXPIRED: Final = "leaver"
"""Name of a token that was good for all, until 1970; there from the start: the file is looked at once a second only."""

ALL_LINES: Final = (
    "from uno.event_bus.dead_letter.telemetry import ration; ration.MOST_LINES = 10**9; "
    "from uno.cli.main import main; main()"
)
"""The command line, with no line held back that repeats itself: any of them might tell what it must not."""


class Replica(Process):
    """``uno dead-letter service``, as its command runs it, and all that it would ever log."""

    def __init__(self, run: Run, name: str, port: int, tokens_file: Path, settings: dict[str, Any]) -> None:
        self.port = port
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DLQ_")}
        config = {"redis_url": run.url, "log_level": "debug", **run.config, **settings}
        environ |= {f"DLQ_{field.upper()}": str(value) for field, value in config.items()}
        environ |= {"DLQ_SERVICE_PORT": str(port), "DLQ_SERVICE_TOKENS_FILE": str(tokens_file)}
        super().__init__(name, ("-c", ALL_LINES, "dead-letter", "service"), run.folder, run.tree, environ)
        self._has_begun = False

    @property
    @override
    def has_begun(self) -> bool:
        """Whether it takes connections."""
        self._has_begun = self._has_begun or "service at " in self.log()
        return self._has_begun

    @property
    def peak_kib(self) -> int:
        """Most memory that it had resident so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Relay(Wire):
    """A wire whose connections go to one port after the other, past those where nobody listens: as a proxy's do."""

    def __init__(self, ports: Sequence[int], *, seed: int) -> None:
        super().__init__(f"http://{HOST}:{ports[0]}", seed=seed)
        self.marks_of = lambda path: (path.encode(),)  # type: ignore[assignment]  # a request is known by its path
        self._ports = ports
        self._turn = itertools.count()

    @property
    def address(self) -> str:
        """The one that clients are given."""
        [(host, port)] = self.fronts.values()
        return f"http://{host}:{port}"

    @override
    async def _dial(self, client: asyncio.StreamWriter) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        first = next(self._turn)
        for n in range(len(self._ports)):
            try:
                return await asyncio.open_connection(HOST, self._ports[(first + n) % len(self._ports)])
            except OSError:
                continue
        raise ConnectionRefusedError


class Replicas:
    """A context manager: `count` replicas of a run's service, and the relay before them; ends all of them.

    `settings` are those of their processes: ``service_rate=0`` is DLQ_SERVICE_RATE.
    """

    def __init__(self, run: Run, count: int, **settings: Any) -> None:
        self._run = run
        self._settings: dict[str, Any] = {"service_rate": 0} | settings
        self._tokens_file = run.folder / "tokens"
        self.tokens = tokens(self._tokens_file, known=None, **CALLERS)
        with self._tokens_file.open("a") as file:
            file.write(line_of(EXPIRED, frozenset({"admin"}), token := new_token(), until=1) + "\n")
        self.tokens[EXPIRED] = token
        self._ports = [free_port() for _ in range(count)]
        self._numbers = itertools.count()
        self._stack = ExitStack()
        self.all: list[Replica] = []
        """Those that run now, by port."""
        self.ends_s: list[float] = []
        """How long each took to its end after SIGTERM."""
        self._names: set[str] = set()
        """Of all, also those that have ended."""
        self.relay = Relay(self._ports, seed=run.seed)

    def __enter__(self) -> Self:
        self._stack.callback(self._end)
        self.all = [self._start(port) for port in self._ports]
        self.wait_ready()
        self._stack.enter_context(self.relay)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """The one address of them all."""
        return self.relay.address

    def clients(self, count: int, **how: Any) -> None:
        """Start producers that know this address alone, and wait until they have begun."""
        config = {"service_token": self.tokens["clients"], **how.pop("config", {})}
        self._run.produce(count, url=self.address, config=config, **how)

    def _start(self, port: int) -> Replica:
        self._names.add(name := f"s{next(self._numbers)}")
        return Replica(self._run, name, port, self._tokens_file, self._settings)

    def _end(self) -> None:
        for replica in self.all:
            replica.send(signal.SIGCONT)
            replica.kill()

    # -- strokes -------------------------------------------------------------------------------------

    def kill(self, *replicas: Replica) -> None:
        """SIGKILL, and others at their ports."""
        for replica in replicas:
            replica.send(signal.SIGKILL)
        for replica in replicas:
            replica.wait()
            self._replace(replica)

    def stop(self, *replicas: Replica, within_s: float) -> None:
        """SIGTERM, and others at their ports: their end has to be in order, and in time."""
        for replica in replicas:
            replica.wait_ready()  # before that, SIGTERM ends it as it ends any process
        began = time.monotonic()
        for replica in replicas:
            replica.send(signal.SIGTERM)
        for replica in replicas:
            code = replica.wait(within_s + 10)
            self.ends_s.append(time.monotonic() - began)
            if code or self.ends_s[-1] > within_s:
                self._run.failures.append(
                    f"{replica} ended with {code} after {self.ends_s[-1]:.1f} s: {replica.said()}"
                )
        for replica in replicas:
            self._replace(replica)

    def hang(self, replica: Replica, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later: what waits in its sockets is served then."""
        replica.send(signal.SIGSTOP)
        time.sleep(seconds)
        replica.send(signal.SIGCONT)

    def _replace(self, replica: Replica) -> None:
        self.all[self.all.index(replica)] = self._start(replica.port)

    def wait_ready(self) -> None:
        """Wait until all of them serve the queue."""
        for replica in self.all:
            replica.wait_ready()
            get_until(f"http://{HOST}:{replica.port}", "/readyz", 200)

    # -- what they said ------------------------------------------------------------------------------

    def check_logs(self, *secrets: str) -> None:
        """Note a failure for each secret or token that a process of the run has logged, a traceback of a replica."""
        for path in sorted(self._run.folder.glob("*.log")):
            log = path.read_text("utf-8", "replace")
            told = [secret for secret in (*secrets, *self.tokens.values()) if secret in log]
            told += ["Traceback"] if "Traceback" in log and path.stem in self._names else []
            self._run.failures += [
                f"{path.stem} has logged {log[max(0, log.index(text) - 200) : log.index(text) + 800]!r}"
                for text in told
            ]
