"""The audit stream of a queue: what its operators were about to do, and what became of it.

Two entries a call: the intent before anything is changed, the outcome after. An intent that has no outcome is of a
call that is still running, or that was killed, or whose outcome Redis did not take.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from uno.event_bus.dead_letter.errors import ConfigError, LayoutMismatch
from uno.event_bus.dead_letter.store.layout import queue_key, slot_of
from uno.event_bus.dead_letter.store.node import Word
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["LARGEST_PAGE", "Audit", "AuditEntry", "AuditPage"]

VERSION: Final = 1
"""Of the entries' fields; a later one only has more of them."""

LARGEST_PAGE: Final = 1000
"""Entries of a page, at most, of up to 6 KiB each."""

LARGEST: Final = 2**64 - 1
"""Of each part of a stream id."""

type Phase = Literal["intent", "outcome"]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did, or was about to do. Fields are only added, each with a default; no payload is ever in one.

    Every entry has all of them, also those that are empty: entries of equal fields share the fields' names in memory.
    """

    id: str = ""
    """``<ms>-<seq>``, by the server's clock."""
    call: str = ""
    """Of one call of a verb: what its intent and its outcome share."""
    phase: str = ""
    """``intent``, before anything is done, or ``outcome``."""
    v: int = VERSION
    request_id: str = ""
    """As the caller named it; one request may make several calls."""
    who: str = ""
    verb: str = ""
    """``retry``, ``park``, ``discard`` or ``reshard``."""
    which: str = ""
    """JSON: ``{"ids": […]}``, ``{"where": {field: […]}}`` or ``{"shards": …}``, and ``"left_out"``: how many more."""
    count: int | None = None
    """Letters that were named by id; None when a filter names them."""
    why: str = ""
    """The operator's own words."""
    delay_ms: int = 0
    """Of a retry: due so much later."""
    outcome: str = ""
    """``done``, ``cancelled``, or the code of the error that ended it; empty for an intent."""
    done: int = 0
    changed: int = 0
    leased: int = 0
    not_found: int = 0

    @property
    def at_ms(self) -> int:
        """When it was written, Unix time by the server's clock."""
        return int(self.id.partition("-")[0])


FIELDS: Final = tuple(name for name in AuditEntry.__struct_fields__ if name not in ("id", "call", "phase"))
COUNTS: Final = frozenset({"v", "count", "delay_ms", "done", "changed", "leased", "not_found"})


class AuditPage(NamedTuple):
    """One page of `Audit.audited`, the newest first; the cursor is empty at the end."""

    cursor: str
    entries: list[AuditEntry]


class Audit:
    """Writes and reads the audit stream; its key lies in the queue's own slot.

    Methods raise `StoreUnavailable` when that slot's node does not answer, `LayoutMismatch` when the queue knows a
    later protocol.
    """

    def __init__(self, topology: Topology, queue: str, length: int = 100_000) -> None:
        self.queue = queue
        self._route = Route(topology, slot_of(queue), queue)
        self._length = length

    async def _call(self, name: str, args: Iterable[Word], *, replica: bool = False) -> Any:
        verb = script(name)
        keys = [queue_key(self.queue, key) for key in verb.keys]
        try:
            return await self._route.call(verb, keys, (PROTOCOL, 0, "", *args), replica=replica)
        except Refused as refused:
            raise LayoutMismatch(
                self.queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
            ) from None

    async def audit(self, entry: AuditEntry) -> str:
        """Append an entry; return its id. A repeat, as after a lost reply, finds it among the latest five."""
        told = [word for name in FIELDS for word in (name, _word(getattr(entry, name)))]
        written: bytes = await self._call("audit", [self._length, entry.call, entry.phase, *told])
        return written.decode()

    async def audited(self, cursor: str = "", *, most: int = 100, replica: bool = False) -> AuditPage:
        """Return the entries that are older than the cursor's, the newest first.

        With `replica` the answer may be behind. Raises `ConfigError` for what is no cursor of an earlier page.
        """
        if cursor:
            check_cursor(cursor)
        after, rows = await self._call("audited", [cursor, min(most, LARGEST_PAGE)], replica=replica)
        return AuditPage(after.decode(), [_entry(id, fields) for id, fields in rows])


def check_cursor(cursor: str) -> None:
    """Raise `ConfigError` unless this is the id of an entry."""
    parts = cursor.split("-")
    sound = len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) <= 20 for part in parts)
    if not sound or max(map(int, parts)) > LARGEST or not any(map(int, parts)):
        raise ConfigError(f"cursor is {cursor[:64]!r}; allowed is what an earlier page gave")


def _word(value: str | int | None) -> Word:
    return "" if value is None else value


def _entry(id: bytes, fields: Sequence[bytes]) -> AuditEntry:
    """Return an entry; a stranger's may have any fields, and of ours any values."""
    told: dict[str, Any] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        field = name.decode("utf-8", "replace")
        if field in COUNTS:
            if value.isdigit() and len(value) < 20:
                told[field] = int(value)
        elif field in AuditEntry.__struct_fields__ and field != "id":
            told[field] = value.decode("utf-8", "replace")
    return AuditEntry(id=id.decode(), **told)
