"""Processes of a run: started, signalled, killed, waited for."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, override

__all__ = ["ROOT", "Actor", "Process"]

ROOT = Path(__file__).parents[3]
START_S = 40.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One process, `words` for the interpreter, that runs the engine of the checkout `tree`; its log is in `folder`."""

    def __init__(
        self, name: str, words: Sequence[str], folder: Path, tree: Path = ROOT, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        path = os.pathsep.join((str(tree / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env={**(os.environ if environ is None else environ), **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one C call
            )

    def __repr__(self) -> str:
        return f"{self.name} (pid {self.process.pid})"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text("utf-8", "replace")

    def said(self) -> str:
        """The last lines of its log."""
        return self.log()[-2000:]

    @property
    def has_begun(self) -> bool:
        """Whether it works, and obeys signals."""
        return True

    def wait_ready(self) -> None:
        """Wait until it has begun."""
        deadline = time.monotonic() + START_S
        while not self.has_begun:
            if not self.is_alive or time.monotonic() > deadline:
                raise AssertionError(f"{self} does not start: {self.said()}")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, timeout_s: float = 40.0) -> int:
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        if self.is_alive:
            self.send(signal.SIGKILL)
        self.wait()


class Actor(Process):
    """A process of the harness's own; `kind` is the module, for example ``producer`` or ``worker``."""

    def __init__(self, kind: str, settings: dict[str, Any], tree: Path = ROOT) -> None:
        self.kind = kind
        self._folder = Path(settings["folder"])
        self._has_begun = False
        words = ("-m", f"tests.support.harness.{kind}", json.dumps(settings))
        super().__init__(settings["name"], words, self._folder, tree)

    @property
    @override
    def has_begun(self) -> bool:
        """Whether it has said its first word: from then on it works, and obeys signals."""
        if not self._has_begun:
            journal = self._folder / f"{self.name}.jsonl"
            self._has_begun = journal.exists() and b'["ready"' in journal.read_bytes()
        return self._has_begun
