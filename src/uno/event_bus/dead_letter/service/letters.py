"""``/v1/letters``, as operators look at it: page by page, as a stream, one alone, and its payload."""

import re
from functools import partial
from typing import Any, Final

from msgspec import UNSET
from starlette.responses import Response

from uno.event_bus.dead_letter.remote.records import record_of
from uno.event_bus.dead_letter.remote.wire import Filter, LetterPage, LetterQuery, LetterRecord
from uno.event_bus.dead_letter.service.caller import READ
from uno.event_bus.dead_letter.service.lines import Lines, Tell, line
from uno.event_bus.dead_letter.service.operation import Call, op
from uno.event_bus.dead_letter.service.reply import GUARDS
from uno.event_bus.dead_letter.where import Where

__all__ = ["OPERATIONS", "where_of"]

STREAMED: Final = 500
"""Letters that are read at a time for a stream; whole ones, with at most 4 MiB."""

_MEDIA_TYPE: Final = re.compile(r"[\w.+*-]+/[\w.+*-]+(?: *; *[\w.+*-]+=(?:[\w.+*-]+|\"[\w .+*/:-]*\"))*", re.ASCII)

BYTES: Final = "application/octet-stream"


def where_of(wanted: Filter) -> Where:
    """Return the filter that a request says. Raises `ConfigError`."""
    names = Filter.__struct_fields__
    given: dict[str, Any] = {name: value for name in names if (value := getattr(wanted, name)) is not UNSET}
    return Where(**given)


@op("GET", "/v1/letters", role=READ, query=LetterQuery, out=LetterPage, lines=LetterRecord)
async def listed(call: Call) -> LetterPage | Response:
    """List open letters, shard by shard, oldest capture first.

    As a page with the cursor of the next one; a page may be empty and not the last. A client that accepts
    `application/x-ndjson` gets all that match from the cursor on as a stream, one letter a line, and `limit` does not
    count. Such a stream that cannot be brought to its end has a last line with the one field `problem`; empty lines
    keep its connection alive. Letters that change meanwhile may be missed, or shown as they were.
    """
    query: LetterQuery = call.query
    where = where_of(query)
    if call.wants_lines:
        await call.queue.page(where, cursor=query.cursor, most=1, whole=False)  # what is wrong is told by the status
        return Lines(call, partial(_stream, call, where, query))
    letters, cursor = await call.queue.page(where, cursor=query.cursor, most=query.limit, whole=query.whole)
    return LetterPage([record_of(letter, whole=query.whole) for letter in letters], cursor)


async def _stream(call: Call, where: Where, query: LetterQuery, tell: Tell) -> None:
    cursor = query.cursor
    while True:
        letters, cursor = await call.queue.page(where, cursor=cursor, most=STREAMED, whole=query.whole)
        if query.whole:
            for letter in letters:  # each may be large
                await tell(line(record_of(letter, whole=True)))
        elif letters:
            await tell(b"".join(line(record_of(letter, whole=False)) for letter in letters))
        if not cursor:
            return


@op("GET", "/v1/letters/{id}", role=READ, out=LetterRecord)
async def shown(call: Call) -> LetterRecord:
    """Show one letter, whole."""
    return record_of(await call.queue.get(call.id), whole=True)


@op("GET", "/v1/letters/{id}/payload", role=READ, out=bytes, media="*/*")
async def payload(call: Call) -> Response:
    """Give the payload of a letter, as it was captured.

    Its content type is the letter's; browsers save it, and neither show nor run it.
    """
    letter = await call.queue.get(call.id)
    headers = {
        **GUARDS,
        "content-disposition": f'attachment; filename="{letter.id}"',
        "content-security-policy": "sandbox; default-src 'none'",
        # As bytes, so that nothing is added to it.
        "content-type": letter.content_type if _MEDIA_TYPE.fullmatch(letter.content_type) else BYTES,
    }
    return Response(letter.payload, headers=headers)


OPERATIONS = (listed, shown, payload)
