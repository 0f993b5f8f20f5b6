"""Events that cannot be written: what would be lost of one without a word, and which part of it no encoder takes."""

import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any, Final
from uuid import UUID

from uno.event_bus.dead_letter.errors import InvalidEvent
from uno.event_bus.dead_letter.parts import Path, private_attributes, reader, shown_path, walk

__all__ = ["may_have_lost_something", "refuse_loss", "why_unwritable"]

type Encode = Callable[[Any], bytes]

_MASK: Final = b"**********"
"""What pydantic writes in place of a secret."""

_NEVER_LOST: Final[frozenset[type]] = frozenset(
    {str, int, bool, type(None), bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal}
)
"""Classes of values that are written whole, or refused by the encoder itself."""


def may_have_lost_something(payload: bytes) -> bool:
    """Answer whether the event is worth a walk, which costs about as much as encoding it.

    NaN and infinity become ``null`` (or, if a pydantic model says so, their names); attributes are lost only
    where attrs is loaded, secrets only where pydantic is.
    """
    if b"null" in payload or "attr" in sys.modules:
        return True
    return "pydantic" in sys.modules and any(mark in payload for mark in (_MASK, b"NaN", b"Infinity"))


def refuse_loss(event: object, name: str) -> None:
    """Raise `InvalidEvent` for the first part of an event that was not written as it is."""
    for path, value in walk(event, _NEVER_LOST):
        kind: Any = type(value)
        if why := _loss(kind):
            raise InvalidEvent(name, why, field=shown_path(path))
        if isinstance(value, float) and not isfinite(value):
            raise InvalidEvent(name, "NaN and infinity cannot be written as JSON", field=shown_path(path))


@lru_cache(4096)
def _loss(kind: Any) -> str:
    """Return what is lost of any value of this class when it is written; empty when nothing is."""
    if hasattr(kind, "get_secret_value"):
        return "a secret is written as asterisks: give it a serializer"
    if private := private_attributes(kind):
        return f"private attributes of attrs classes are not written ({', '.join(private)})"
    return ""


def why_unwritable(event: object, name: str, error: Exception, encode: Encode) -> InvalidEvent:
    """Return, of an event that could not be encoded, the error that names the first field which cannot be."""
    if isinstance(error, RecursionError):
        return InvalidEvent(name, "it is nested too deeply, or holds itself")
    try:
        fault = _first_fault(event, encode)
    except Exception:  # the event's own code again
        fault = None
    if fault is None:
        return InvalidEvent(name, f"it cannot be written as JSON ({type(error).__name__})")
    why, path = fault
    return InvalidEvent(name, why, field=shown_path(path))


def _first_fault(event: object, encode: Encode) -> tuple[str, Path] | None:
    """Return why the event cannot be written, and where."""
    for path, value in walk(event, frozenset()):
        kind: Any = type(value)
        if isinstance(value, Mapping):
            for key in value:
                if why := _refusal({key: 0}, encode):
                    return f"as a key, {why}", (*path, key)
        elif reader(kind) is None and (why := _refusal(value, encode)):
            return why, path
    return None


def _refusal(value: object, encode: Encode) -> str:
    """Return why this value alone cannot be written; empty when it can."""
    try:
        encode(value)
    except UnicodeEncodeError:
        return "a text with lone surrogates cannot be written as UTF-8"
    except ValueError:
        return "an integer of more than 4300 digits cannot be written"
    except Exception:  # TypeError from msgspec, anything from a class of the application's
        kind = type(next(iter(value)) if isinstance(value, Mapping) and value else value)
        return f"{kind.__module__}.{kind.__qualname__} cannot be written as JSON"
    return ""
