"""How a benchmark fails that cannot be carried out."""

from uno.event_bus.dead_letter.errors import DeadLetterError

__all__ = ["BenchFailed", "QueueTaken", "first_of_ours"]


class BenchFailed(DeadLetterError):
    """Raised when the benchmark could not be carried out; `code` is that of the error behind it, if there is one."""

    def __init__(self, message: str, code: str = "failure") -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # what a process has told is an error like its own


class QueueTaken(DeadLetterError):
    """Raised when the queue that was named is somebody's: the benchmark would run its letters, and erase it."""

    code = "queue_taken"

    def __init__(self, queue: str, letters: int) -> None:
        self.queue = queue
        self.letters = letters
        super().__init__(
            f"queue {queue!r} exists and holds {letters:,} letter{'' if letters == 1 else 's'}: a benchmark erases its "
            "queue, so it takes only a new one; leave --queue out"
        )


def first_of_ours(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that tells most: of tasks or processes that fail alike, one is enough."""
    ours, _ = group.split(DeadLetterError)
    found: BaseException = ours or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
