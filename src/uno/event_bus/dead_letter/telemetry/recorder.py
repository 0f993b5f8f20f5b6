"""Hooks that the engine calls as it works; the default does nothing."""

from typing import Final

__all__ = ["NO_RECORDER", "Recorder"]


class Recorder:
    """What may be recorded. Subclass it and override what is of interest; calls come from the hot path."""

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
