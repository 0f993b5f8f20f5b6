"""How many connections there are, and which of them gives way."""

from typing import Protocol

__all__ = ["Connection", "Connections"]


class Connection(Protocol):
    """What is needed of one."""

    def abort(self) -> None:
        """End it at once, and have it forgotten."""


class Connections:
    """The connections of a server, and the bounds that they share."""

    def __init__(self, most: int, timeout_s: float, linger_bytes: int) -> None:
        self.most, self.timeout_s, self.linger_bytes = most, timeout_s, linger_bytes
        self.all: set[Connection] = set()
        self.idle: dict[Connection, None] = {}
        """Those without a request under way, the one that has been so for longest first."""

    def admit(self, connection: Connection) -> bool:
        """Take one in, in place of the longest idle one where there are too many; answer whether there is room."""
        if len(self.all) >= self.most:
            if not self.idle:
                return False
            next(iter(self.idle)).abort()
        self.all.add(connection)
        self.idle[connection] = None
        return True

    def forget(self, connection: Connection) -> None:
        """Note the end of one."""
        self.all.discard(connection)
        self.idle.pop(connection, None)
