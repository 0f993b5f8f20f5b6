"""Which letters an operator means: a filter over fields."""

from collections.abc import Collection, Mapping, Sequence
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

    Raises `ConfigError` when `state` has a value that is no `LetterState`, and for a field without any value or with
    one that is no text.
    """

    state: Values = None
    type: Values = None
    subscription: Values = None
    reason: Values = None
    error_type: Values = None
    fingerprint: Values = None
    event_id: Values = None

    def __post_init__(self) -> None:
        for limited in fields(self):
            _check(limited.name, getattr(self, limited.name))
        known = [state.value for state in LetterState]
        for name, values in self.conditions().items():
            if not values:
                raise ConfigError(f"where: {name} has no value; leave it out to match any")
        for state in self.conditions().get("state", ()):
            if state not in known:
                raise ConfigError(f"where: state is {state!r}; allowed are {', '.join(known)}")

    def __str__(self) -> str:
        named = [f"{name} {' or '.join(map(repr, values))}" for name, values in self.conditions().items()]
        return f"letters with {' and '.join(named)}" if named else "every letter"

    @classmethod
    def of(cls, value: "Where | Mapping[str, Any] | None") -> "Where":
        """Return the filter of a mapping; none of it matches every letter.

        Raises `ConfigError` naming a key that is not a field, with the one that was meant.
        """
        if isinstance(value, Where):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"where is {value!r}; allowed are a mapping of fields, and Where")
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


def _check(name: str, values: Any) -> None:
    """Refuse what is neither a text nor a collection of texts; one that can be read only once would match any."""
    if values is None:
        return
    texts = (values,) if isinstance(values, str) else values
    if not isinstance(texts, Collection) or isinstance(texts, bytes) or not all(isinstance(v, str) for v in texts):
        raise ConfigError(f"where: {name} is {values!r}; allowed are a text, and a list of texts")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"where: {name} is {values!r}; no letter has it: UTF-8 cannot say it") from None
