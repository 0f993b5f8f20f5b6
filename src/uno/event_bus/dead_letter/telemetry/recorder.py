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

    def store_failed(self, queue: str) -> None:
        """Tell that a call to Redis failed after its repeats."""


NO_RECORDER: Final = Recorder()
