"""Who asks, and what they may do: four roles, of which each of the last two includes the one before."""

from typing import Final, NamedTuple

__all__ = ["ADMIN", "ANY", "ANYONE", "CAPTURE", "NOBODY", "OPERATE", "READ", "ROLES", "Caller"]

ANY: Final = "any"
"""What every role includes, and no token is given by itself: what a client has to know before it does anything."""

CAPTURE: Final = "capture"
"""Send events in, and ask whether they came in."""

READ: Final = "read"
"""Look: letters with their payloads, counts, workers, the audit stream."""

OPERATE: Final = "operate"
"""Retry, park and discard; includes `READ`."""

ADMIN: Final = "admin"
"""Change the queue itself; includes every role."""

ROLES: Final = (CAPTURE, READ, OPERATE, ADMIN)

_INCLUDED: Final = {
    CAPTURE: {ANY, CAPTURE},
    READ: {ANY, READ},
    OPERATE: {ANY, OPERATE, READ},
    ADMIN: {ANY, *ROLES},
}


class Caller(NamedTuple):
    """Who sent a request; an empty name: nobody that the service knows."""

    name: str
    roles: frozenset[str]

    def may(self, role: str) -> bool:
        """Whether one of the caller's roles is this one, or includes it."""
        return any(role in _INCLUDED[own] for own in self.roles)


ANYONE: Final = Caller("anyone", frozenset(ROLES))
"""Of a service without tokens."""

NOBODY: Final = Caller("", frozenset())
"""Of a request without a token, where tokens are asked for."""
