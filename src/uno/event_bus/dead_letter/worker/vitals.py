"""The vitals of a worker process: does its event loop run, do its letters get on? Probes ask, from another thread.

The loop beats: five times a second it notes the time, and how its worker is. A beat that is missing for a lease means
that the process makes no progress and has lost its letters to others (not live). Not ready is more: Redis is away, a
shard does not answer, threads hang, or the worker stops. That mends itself, or is no reason to end the process.
"""

import os
from time import monotonic
from typing import Final

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.worker.taker import Taker
from uno.event_bus.dead_letter.worker.worker import Worker

__all__ = ["Vitals"]

BEAT_S: Final = 0.2

SHORTEST_BLOCK_S: Final = 1.0
"""A loop that has not beaten for less is live, however short the leases are."""

SILENT_AFTER_S: Final = 1.0
"""A shard that has left its taker without an answer for this long is out of touch: an idle one asks each second."""


class Vitals:
    """Of one process. `run` has to run in its event loop; `DeadLetterQueue.run` tells it of the worker."""

    def __init__(self, config: DeadLetterConfig) -> None:
        self._config = config
        self._worker: Worker | None = None
        self._waits_for = "the queue is not open yet"
        self._beaten_at = monotonic()
        self._condition = self._look()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await anyio.sleep(BEAT_S)

    def beat(self) -> None:
        """Note that the loop runs, and how the worker is."""
        self._condition = self._look()
        self._beaten_at = monotonic()

    def waits(self, why: str) -> None:
        """Note why there is no worker as yet."""
        self._waits_for = why
        self.beat()

    def watch(self, worker: Worker) -> None:
        """Look after this worker from now on."""
        self._worker = worker
        self.beat()

    # -- asked from any thread -----------------------------------------------------------------------

    def live(self) -> Condition:
        """Tell whether the process makes progress; when not, only its end helps."""
        silent_s = monotonic() - self._beaten_at
        facts = {"queue": self._config.queue, "pid": os.getpid(), "last_beat_s": round(silent_s, 3)}
        return Condition(silent_s < max(SHORTEST_BLOCK_S, self._lease_s), _blocked(silent_s), facts)

    def ready(self) -> Condition:
        """Tell whether the worker serves: its part of the shards is known, and each of them answers."""
        silent_s = monotonic() - self._beaten_at
        found = self._condition
        if silent_s < max(SHORTEST_BLOCK_S, self._lease_s / 3):
            return found
        return Condition(False, _blocked(silent_s), found.facts)

    @property
    def _lease_s(self) -> float:
        return self._config.lease_seconds if self._worker is None else self._worker.session.lease_s

    # -- in the worker's loop ------------------------------------------------------------------------

    def _look(self) -> Condition:
        facts: dict[str, object] = {"queue": self._config.queue, "pid": os.getpid()}
        worker = self._worker
        if worker is None:
            return Condition(False, self._waits_for, facts)
        now, session = monotonic(), worker.session
        served = [taker for taker in worker.takers if taker.shard.index in session.served]
        facts |= {
            "worker": session.consumer,
            "shards": len(worker.takers),
            "served": [taker.shard.index for taker in served],
            "last_reply_s": round(max((now - taker.replied_at for taker in served), default=0.0), 3),
            "held": len(session.holdings),
        }
        why = self._trouble(worker, served, now)
        return Condition(not why, why, facts)

    def _trouble(self, worker: Worker, served: list[Taker], now: float) -> str:
        """Return in one line why the worker is not ready; an empty text when it is."""
        if worker.is_stopping:
            return "the worker stops"
        if worker.session.is_stuck:
            return "every thread is taken by a call that does not end"
        silent = [str(taker.shard.index) for taker in served if self._is_silent(worker, taker, now)]
        if silent:
            return f"no answer from shard {', '.join(silent)}"
        return "" if worker.ready.is_set() else "its shards have not answered yet"

    def _is_silent(self, worker: Worker, taker: Taker, now: float) -> bool:
        """Whether a shard is out of touch: for its taker, or, as a worker without room does not ask, for heartbeats."""
        since = None if taker.waits_for_room else taker.unanswered_since
        return (since is not None and now - since > SILENT_AFTER_S) or not worker.session.can_keep_leases(
            taker.shard.index
        )


def _blocked(silent_s: float) -> str:
    return f"the event loop has been blocked for {silent_s:.1f} s"
