"""Hooks that the engine calls as it works; the default does nothing."""

import logging
from collections.abc import Callable
from typing import Any, Final

__all__ = ["NO_RECORDER", "Recorder", "both", "guarded"]

logger = logging.getLogger(__name__)


class Recorder:
    """What may be recorded. Subclass it and override what is of interest; calls come from the hot path.

    What a hook raises is logged the first time, and goes no further: letters do not suffer from what records them.
    """

    def attempted(self, queue: str, attempt: int, duration_s: float, cause: str) -> None:
        """Tell that an attempt ended; `cause` is empty, ``handler``, ``timeout`` or ``invalid``."""

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


class _Guarded(Recorder):
    """Calls the hooks of another recorder."""

    def __init__(self, recorder: Recorder) -> None:
        for name in vars(Recorder):
            if not name.startswith("_"):
                setattr(self, name, _harmless(name, getattr(recorder, name)))


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


class _Both(Recorder):
    """Calls the hooks of one recorder, then those of another."""

    def __init__(self, first: Recorder, second: Recorder) -> None:
        for name in vars(Recorder):
            if not name.startswith("_"):
                setattr(self, name, _in_turn(getattr(first, name), getattr(second, name)))


def _in_turn(first: Callable[..., None], second: Callable[..., None]) -> Callable[..., None]:
    def call(*told: Any) -> None:
        first(*told)
        second(*told)

    return call


def both(first: Recorder, second: Recorder) -> Recorder:
    """Return a recorder that calls the hooks of both."""
    if NO_RECORDER in (first, second):
        return second if first is NO_RECORDER else first
    return _Both(first, second)


def guarded(recorder: Recorder) -> Recorder:
    """Return a recorder that calls this one's hooks and raises nothing."""
    return recorder if recorder is NO_RECORDER else _Guarded(recorder)
