"""What a probe is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Condition"]


@dataclass(frozen=True, slots=True)
class Condition:
    """How a process, or its work, is."""

    ok: bool
    why: str = ""
    """One line, when it is not ok."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What else is known, for people and programs."""
