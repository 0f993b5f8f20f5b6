"""Who asks, and what they may do: four roles, of which each of the last two includes the one before."""

from typing import Final, NamedTuple

__all__ = ["ADMIN", "ANYONE", "ANY_ROLE", "CAPTURE", "NOBODY", "OPERATE", "READ", "ROLES", "Caller"]

CAPTURE: Final = "capture"
"""Send events in, and ask whether they came in."""

READ: Final = "read"
"""Look: letters with their payloads, counts, workers, the audit stream."""

OPERATE: Final = "operate"
"""Retry, park and discard; includes `READ`."""

ADMIN: Final = "admin"
"""Change the queue itself; includes every role."""

ANY_ROLE: Final = "any"
"""No role, but what each of them includes: to know which queue it is. Every client asks that first."""

ROLES: Final = (CAPTURE, READ, OPERATE, ADMIN)

_INCLUDED: Final = {CAPTURE: {CAPTURE}, READ: {READ}, OPERATE: {OPERATE, READ}, ADMIN: set(ROLES)}


class Caller(NamedTuple):
    """Who sent a request; an empty name: nobody that the service knows."""

    name: str
    roles: frozenset[str]

    def may(self, role: str) -> bool:
        """Whether one of the caller's roles is this one, or includes it."""
        return any(role == ANY_ROLE or role in _INCLUDED[own] for own in self.roles)


ANYONE: Final = Caller("anyone", frozenset(ROLES))
"""Of a service without tokens."""

NOBODY: Final = Caller("", frozenset())
"""Of a request without a token, where tokens are asked for."""
