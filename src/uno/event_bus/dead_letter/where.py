"""Which letters an operator means: a filter over fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.letter import LetterState

__all__ = ["Where"]

type Values = str | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Letters whose fields have one of the given values; different fields must all match, None matches any.

    Raises `ConfigError` when `state` has a value that is no `LetterState`, and for a field without any value.
    """

    state: Values = None
    type: Values = None
    subscription: Values = None
    reason: Values = None
    error_type: Values = None
    fingerprint: Values = None
    event_id: Values = None

    def __post_init__(self) -> None:
        known = [state.value for state in LetterState]
        for name, values in self.conditions().items():
            if not values:
                raise ConfigError(f"where: {name} has no value; leave it out to match any")
        for state in self.conditions().get("state", ()):
            if state not in known:
                raise ConfigError(f"where: state is {state!r}; allowed are {', '.join(known)}")

    @classmethod
    def of(cls, value: "Where | Mapping[str, Any] | None") -> "Where":
        """Return the filter of a mapping; none of it matches every letter.

        Raises `ConfigError` naming a key that is not a field, with the one that was meant.
        """
        if isinstance(value, Where):
            return value
        wanted = dict(value or {})
        names = [known.name for known in fields(cls)]
        for name in wanted:
            if name not in names:
                meant = get_close_matches(str(name), names, 1)
                hint = f"; did you mean {meant[0]!r}?" if meant else f"; allowed are {', '.join(names)}"
                raise ConfigError(f"where: {name!r} is not a field to filter by{hint}")
        return cls(**wanted)

    def conditions(self) -> dict[str, tuple[str, ...]]:
        """Return the fields that are limited, each with the values that match."""
        found: dict[str, tuple[str, ...]] = {}
        for limited in fields(self):
            value = getattr(self, limited.name)
            if value is not None:
                found[limited.name] = (str(value),) if isinstance(value, str) else tuple(map(str, value))
        return found
