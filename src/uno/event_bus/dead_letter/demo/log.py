"""Warnings of the engine, shown among the demo's own lines instead of across its bars."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import override

__all__ = ["warnings_to"]


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def warnings_to(say: Callable[[str], None]) -> Iterator[None]:
    """Pass the engine's warnings to ``say`` and to nobody else, for a while."""
    logger = logging.getLogger("uno")
    teller, before = _Teller(say), logger.propagate
    logger.addHandler(teller)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(teller)
        logger.propagate = before
