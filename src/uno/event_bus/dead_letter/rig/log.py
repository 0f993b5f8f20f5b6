"""The engine's log, told among a command's own lines instead of across its bars."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import override

__all__ = ["log_to"]


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[str], None], level: int) -> None:
        super().__init__(level)
        self._say = say

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def log_to(say: Callable[[str], None], level: int = logging.WARNING) -> Generator[None]:
    """Pass the engine's lines, from this level on, to ``say`` and to nobody else, while the body runs."""
    logger = logging.getLogger("uno")
    teller, before = _Teller(say, level), logger.propagate
    logger.addHandler(teller)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(teller)
        logger.propagate = before
