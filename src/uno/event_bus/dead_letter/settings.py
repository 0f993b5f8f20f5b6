"""Settings: documented fields, from arguments or from variables, checked when they are made, and never changed.

A field and its variable share one name (``max_retries`` is ``DLQ_MAX_RETRIES``), one rule and one shape of error: what
was set, to which value, what is allowed. No secret is ever part of an error or a ``repr``.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from difflib import get_close_matches
from functools import wraps
from typing import Any, ClassVar, Final, Self

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.rules import SHOWN_LENGTH, Rule, shown

__all__ = ["Settings", "refuses_unknown", "setting"]

SIMILARITY: Final = 0.75
"""How alike two names are (difflib's ratio) before one is taken for a typing error of the other."""


def setting(default: object, rule: Rule, *, also: str | None = None, redact: Callable[[str], str] | None = None) -> Any:
    """Return a dataclass field with this default and rule; `Any`, as `dataclasses.field` pretends too.

    Args:
        default: Its value when nothing sets it.
        rule: What it may be.
        also: Another variable that sets it, when its own does not.
        redact: What is shown of a text where people may read it; None: all of it.
    """
    return field(default=default, metadata={"rule": rule, "also": also, "redact": redact})


class Settings:
    """What classes of settings share; each is a frozen dataclass of `setting` fields, and `refuses_unknown`."""

    __slots__ = ()

    PREFIX: ClassVar[str] = "DLQ_"
    """What the names of its variables begin with."""

    def __post_init__(self) -> None:
        """Bring every value into its canonical type. Raises `ConfigError` for one that is not allowed."""
        for name, known in _known(type(self)).items():
            value = getattr(self, name)
            try:
                canonical = known["rule"].check(value)
            except (TypeError, ValueError, OverflowError):
                raise self._refused(name, self.variable(name), value) from None
            object.__setattr__(self, name, canonical)

    @classmethod
    def variable(cls, name: str) -> str:
        """Return the variable that sets a field."""
        return f"{cls.PREFIX}{name.upper()}"

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return field name → the variable that sets it."""
        return {name: cls.variable(name) for name in _known(cls)}

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Return the settings that the variables give; an override that is not None beats its variable.

        An empty variable counts as not set. ``environ`` defaults to the process's. Raises `ConfigError` on a
        bad value, and on an unknown name that looks like a typing error of a known one; any other unknown name is
        ignored.
        """
        environ = os.environ if environ is None else environ
        cls._refuse_misspelt(environ)
        values = {name: value for name, value in overrides.items() if value is not None}
        for name in _known(cls).keys() - values.keys():
            variable, text = cls._read(environ, name)
            if text:
                values[name] = cls._parse(name, variable, text)
        return cls(**values)

    @classmethod
    def _read(cls, environ: Mapping[str, str], name: str) -> tuple[str, str]:
        """Return the variable that sets this field, and its text; an empty text when nothing sets it."""
        variable, also = cls.variable(name), _known(cls)[name]["also"]
        text = environ.get(variable, "").strip()
        return (also, environ.get(also, "").strip()) if also and not text else (variable, text)

    @classmethod
    def _parse(cls, name: str, variable: str, text: str) -> object:
        rule = _known(cls)[name]["rule"]
        try:
            return rule.check(rule.parse(text))
        except (TypeError, ValueError, OverflowError):
            raise cls._refused(name, variable, text) from None

    @classmethod
    def _refused(cls, name: str, variable: str, value: object) -> ConfigError:
        known = _known(cls)[name]
        if known["redact"] is None:
            text = shown(value)
        else:  # whatever it looks like: a URL without "://" or "@" may be nothing but the password
            text = shown(known["redact"](value)) if isinstance(value, str) else f"of type {type(value).__name__}"
        return ConfigError(f"{variable} ({name}) is {text}: allowed is {known['rule'].allowed}")

    @classmethod
    def is_of_others(cls, variable: str) -> bool:
        """Answer whether a variable that looks like one of these belongs to somebody else."""
        return False

    @classmethod
    def _refuse_misspelt(cls, environ: Mapping[str, str]) -> None:
        """Raise on a name that is nearly a known one: passed over in silence, it would cost letters."""
        known = {variable.removeprefix(cls.PREFIX): variable for variable in cls.variables().values()}
        for name in sorted(environ):
            if not name.startswith(cls.PREFIX) or name in known.values() or cls.is_of_others(name):
                continue
            hint = did_you_mean(name.removeprefix(cls.PREFIX), known, cls.PREFIX)
            if hint:
                raise ConfigError(f"{name[:SHOWN_LENGTH]!r} is no variable of the dead-letter queue{hint}")

    def redacted(self) -> dict[str, object]:
        """Return field name → value, as logs and reports may show them: without secrets."""
        shown_values = {}
        for name, known in _known(type(self)).items():
            value, redact = getattr(self, name), known["redact"]
            shown_values[name] = redact(value) if redact is not None and isinstance(value, str) else value
        return shown_values

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.redacted().items())
        return f"{type(self).__name__}({inner})"


def _known(kind: type[Settings]) -> dict[str, Mapping[str, Any]]:
    """Return field name → what was said of it."""
    return {each.name: each.metadata for each in fields(kind)}  # type: ignore[arg-type]  # each is a dataclass


def refuses_unknown[T: type[Settings]](kind: T) -> T:
    """Have a dataclass's ``__init__`` raise `ConfigError` for a name that it does not know, with the one it looks like.

    Wrapped after the fact: the dataclass writes ``__init__`` itself, and type checkers keep its signature this way.
    """
    init: Callable[..., None] = kind.__init__

    @wraps(init)
    def checked(self: Settings, *args: Any, **values: Any) -> None:
        known = _known(kind)
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"{name[:SHOWN_LENGTH]!r} is no field of {kind.__name__}{hint}")
        init(self, *args, **values)

    kind.__init__ = checked  # type: ignore[assignment, method-assign]
    return kind


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question after the known name that this one looks like; empty when there is none."""
    close = get_close_matches(name, known, n=1, cutoff=SIMILARITY)
    return f": did you mean {prefix}{close[0]}?" if close else ""
