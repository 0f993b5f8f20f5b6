"""Hooks that the engine calls as it works; the default does nothing."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from uno.event_bus.dead_letter.letter import Letter, NewLetter, Verb

__all__ = ["NO_RECORDER", "Recorder", "Settled", "guarded", "together"]

logger = logging.getLogger(__name__)


class Settled(NamedTuple):
    """How a lease ended."""

    letter: Letter
    verb: Verb
    reason: str
    """A `DeadLetterReason`, or empty."""


class Recorder:
    """What may be recorded. Subclass it and override what is of interest; calls come from the hot path.

    What a hook raises is logged the first time, and goes no further: letters do not suffer from what records them.
    """

    def captured(self, queue: str, letters: Sequence[NewLetter]) -> None:
        """Tell that captures were acknowledged, by Redis or by the spool; one may repeat another."""

    def started(self, queue: str, letter: Letter, lag_s: float | None) -> None:
        """Tell that a handler is about to get a letter, `lag_s` after it was due; None: it was taken by its id."""

    def attempted(self, queue: str, letter: Letter, duration_s: float, cause: str) -> None:
        """Tell that an attempt ended; `cause` is empty, ``handler``, ``timeout`` or ``invalid``."""

    def refused(self, queue: str, letter: Letter) -> None:
        """Tell that a letter is parked as invalid, without an attempt: it has no payload."""

    def settled(self, queue: str, ended: Sequence[Settled]) -> None:
        """Tell how leases ended, after the store took that."""

    def reclaimed(self, queue: str, letters: int) -> None:
        """Tell that letters were taken back from leases that had run out."""

    def crew_began(self, queue: str, consumer: str, running: Callable[[], int], limit: int) -> None:
        """Tell that a worker or a replay begins.

        `running` tells from any thread how many of its `limit` places for handlers are taken, until `crew_ended`.
        """

    def crew_ended(self, queue: str, consumer: str) -> None:
        """Tell that no handler of a worker or a replay runs any more."""

    def lease_lost(self, queue: str, letters: int) -> None:
        """Tell that leases were lost while this worker held them."""

    def stale_settles(self, queue: str, letters: int) -> None:
        """Tell that outcomes were refused, because the lease was another's or the letter was gone."""

    def unknown_settles(self, queue: str, letters: int) -> None:
        """Tell that the reply to outcomes was lost and their leases are over: they were settled by that, or lost."""

    def threads_left(self, queue: str, threads: int) -> None:
        """Tell how many calls of plain functions run on in their threads past timeout, lease or worker.

        Called when it changes. Each keeps its place: when there are ``concurrency`` of them, the worker runs no
        more plain functions until one ends.
        """

    def evicting_servers(self, queue: str, servers: int) -> None:
        """Tell how many servers may evict letters: ``maxmemory-policy`` is not ``noeviction``. Called every 10 s."""

    def store_failed(self, queue: str) -> None:
        """Tell that a call to Redis failed after its repeats."""


NO_RECORDER: Final = Recorder()


def _hooks() -> list[str]:
    return [name for name in vars(Recorder) if not name.startswith("_")]


class _Guarded(Recorder):
    """Calls the hooks of another recorder."""

    def __init__(self, recorder: Recorder) -> None:
        for name in _hooks():
            setattr(self, name, _harmless(name, getattr(recorder, name)))


class _Together(Recorder):
    """Calls the hooks of two recorders."""

    def __init__(self, first: Recorder, second: Recorder) -> None:
        for name in _hooks():
            setattr(self, name, _both(getattr(first, name), getattr(second, name)))


def _both(first: Callable[..., None], second: Callable[..., None]) -> Callable[..., None]:
    def call(*told: Any) -> None:
        first(*told)
        second(*told)

    return call


def _harmless(name: str, hook: Callable[..., None]) -> Callable[..., None]:
    failed = False

    def call(*told: Any) -> None:
        nonlocal failed
        try:
            hook(*told)
        except Exception:
            if not failed:
                logger.exception("recorder: %s failed; it is called again, but what it raises is not logged", name)
            failed = True

    return call


def guarded(recorder: Recorder) -> Recorder:
    """Return a recorder that calls this one's hooks and raises nothing."""
    return recorder if recorder is NO_RECORDER else _Guarded(recorder)


def together(first: Recorder, second: Recorder) -> Recorder:
    """Return a recorder that calls the hooks of both; they must raise nothing."""
    if first is NO_RECORDER or second is NO_RECORDER:
        return second if first is NO_RECORDER else first
    return _Together(first, second)
