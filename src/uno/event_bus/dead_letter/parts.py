"""The parts of an event: what a value consists of, how to walk over all of it, and how a place in it is shown.

Neither pydantic nor attrs is imported: their classes are known by their marks.
"""

from collections import UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import Any, Final

import msgspec

__all__ = ["LIST_LIKE", "Path", "attributes", "is_model", "private_attributes", "reader", "shown_path", "walk"]

type Path = tuple[Any, ...]
"""Keys, indexes and attributes, from the event down."""

LIST_LIKE: Final[tuple[type[Any], ...]] = (list, tuple, Set, deque, UserList)
"""Classes of values that are written as lists."""


@lru_cache(4096)
def is_model(kind: Any) -> bool:
    """Answer whether this is a class of pydantic models, without importing pydantic."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


@lru_cache(4096)
def private_attributes(kind: Any) -> tuple[str, ...]:
    """Return the attributes that msgspec leaves out of this class: an attrs class's private ones."""
    if not hasattr(kind, "__attrs_attrs__"):
        return ()
    return tuple(name for name in attributes(kind) if name.startswith("_"))


def walk(event: object, skipped: frozenset[type]) -> Iterator[tuple[Path, Any]]:
    """Yield the parts of an event with their paths, the event first, the outer before the inner.

    Parts of the skipped classes are left out, and finite floats if any class is. An event may hold itself.
    """
    waiting: deque[tuple[Path, Any]] = deque([((), event)])
    seen: set[int] = set()
    while waiting:
        path, value = waiting.popleft()
        yield path, value
        kind: Any = type(value)
        read = reader(kind)
        if read is None or id(value) in seen:
            continue
        seen.add(id(value))
        for step, part in read(value):
            if type(part) not in skipped and not (type(part) is float and skipped and isfinite(part)):
                waiting.append(((*path, step), part))


@lru_cache(4096)
def reader(kind: Any) -> Callable[[Any], Iterable[tuple[Any, Any]]] | None:
    """Return what lists the parts of a value of this class, each with its key, index or attribute; None: no parts."""
    if issubclass(kind, Mapping):
        return lambda value: value.items()
    if issubclass(kind, LIST_LIKE):
        return enumerate
    if issubclass(kind, Enum):
        return lambda value: (("value", value.value),)
    names = attributes(kind)
    if names:
        return lambda value: [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    if is_model(kind):
        return lambda value: {**vars(value), **(value.__pydantic_extra__ or {})}.items()
    return None


@lru_cache(4096)
def attributes(kind: Any) -> tuple[str, ...]:
    """Return the attributes in which instances of this class keep their data; empty for other classes."""
    if issubclass(kind, msgspec.Struct):
        return tuple(kind.__struct_fields__)
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(each.name for each in kind.__attrs_attrs__)
    return tuple(kind.__dataclass_fields__) if is_dataclass(kind) else ()


def shown_path(path: Path) -> str | None:
    """Return a path as people write it, ``order.items[2].price``; None for the event itself."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif isinstance(step, str):
            text += f".{step}" if step.isidentifier() else f"[{step[:40]!r}]"
        else:
            text += f"[<{type(step).__name__}>]"
    return text.removeprefix(".")[:200] or None
