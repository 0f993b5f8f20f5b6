"""Reading letters that are about to change: those that match a filter, page by page, or those of given ids."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from uno.event_bus.dead_letter.letter import Counters, Letter, LetterState
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.browse import Page
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.where import Where

__all__ = ["PAGE", "Walk", "find_many", "position"]

PAGE: Final = 500
"""Letters of a page at most; `scan` looks at no more in one call."""

UNTOUCHED: Final = Counters()

type Position = tuple[int, int]
"""The two parts of a stream id."""


def position(stream_id: str) -> Position:
    """Return where a stream id stands in its shard."""
    ms, _, seq = stream_id.partition("-")
    return int(ms), int(seq or 0)


class Walk:
    """The letters of a shard that match a filter, oldest capture first.

    Whoever takes letters by id, or does anything to waiting ones, runs the intake past them and up to 500 further,
    and so makes letters scheduled that nobody has named. A filter that wants waiting letters means those as well:
    what lay past the mark when the walk began, and nothing has happened to since, counts as waiting.
    """

    def __init__(self, shard: Shard, where: Where, *, most: int = PAGE) -> None:
        self._shard = shard
        self._most = min(most, PAGE)
        self._conditions = where.conditions()
        self._states = self._conditions.get("state", ())
        self._cursor: bytes | None = None
        """Where the next page begins; None: the walk has not begun, empty: it is at its end."""
        self._mark: Position | None = None
        """When the walk began; None where it is of no matter, or not known."""

    async def next(self) -> Page | None:
        """Return the next page, which may be empty; None after the last. Safe to repeat when it failed."""
        if self._cursor is None:
            self._cursor = await self._begin()
        if not self._cursor:
            return None
        page = await browse.scan(self._shard, self._cursor, most=self._most, whole=False, where=self._conditions)
        self._cursor = page.cursor
        return page._replace(letters=[letter for letter in page.letters if self.wants(letter)])

    def wants(self, letter: Letter) -> bool:
        """Whether a letter that this walk has found is, as it is now, in a state that the filter names."""
        if not self._states or letter.state in self._states:
            return True
        return (
            self._mark is not None
            and letter.state is LetterState.SCHEDULED
            and letter.counters == UNTOUCHED
            and position(self._shard.stream_id(letter.id)) > self._mark
        )

    async def _begin(self) -> bytes:
        """Return where the first page begins; note the mark if letters may go from waiting to scheduled."""
        if LetterState.WAITING not in self._states or LetterState.SCHEDULED in self._states:
            return b"-"
        mark = (await browse.stats(self._shard)).get("mark")
        if not isinstance(mark, str):  # an empty shard, or one that has lost its mark
            return b"-"
        self._mark = position(mark)
        self._conditions["state"] = (*self._states, LetterState.SCHEDULED)
        return mark.encode() if set(self._states) == {LetterState.WAITING} else b"-"


# --- by id -----------------------------------------------------------------------------------------------

LARGEST: Final = 2**64 - 1
"""Of each part of a stream id."""

WORTH_A_CALL: Final = 8
"""Letters that are read in about the time of one more round trip."""


async def find_many(shard: Shard, ids: Iterable[str]) -> list[Letter]:
    """Return the open letters of these ids, without payload and traceback, oldest capture first.

    Ids that lie close together are read by pages, which grow to 500 letters; those far apart one by one.
    """
    known = sorted((position(shard.stream_id(id)), id) for id in ids)
    wanted = [(at, id) for at, id in known if at > (0, 0) and max(at) <= LARGEST]  # no stream can hold others
    found: list[Letter] = []
    done, most = 0, 1
    while done < len(wanted):
        page = await browse.scan(shard, _before(wanted[done][0]), most=min(most, PAGE), whole=False)
        letters = {letter.id: letter for letter in page.letters}
        through = position(page.cursor.decode()) if page.cursor else (LARGEST, LARGEST)
        passed = bisect_right(wanted, through, lo=done, key=lambda row: row[0])
        hits = [letters[id] for _, id in wanted[done:passed] if id in letters]
        found += hits
        done = passed
        most = most * 2 if len(hits) * WORTH_A_CALL >= len(letters) else max(most // 2, 1)
    return found


def _before(at: Position) -> bytes:
    """Return the stream id before this one: the page after it begins with this one, if it is there."""
    ms, seq = at
    return (f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{LARGEST}").encode()
