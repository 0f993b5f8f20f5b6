"""audit, audited: entries stay in order, once each, up to a length; strangers' rows and full servers stop nobody."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support.servers import Server
from uno.event_bus.dead_letter.errors import ConfigError, LayoutMismatch, StoreError
from uno.event_bus.dead_letter.store.audit import Audit, AuditEntry
from uno.event_bus.dead_letter.store.layout import queue_key
from uno.event_bus.dead_letter.store.topology import Topology

KEY = queue_key("orders", "audit")


@pytest.fixture
def audit(topology: Topology) -> Audit:
    return Audit(topology, "orders")


def entry(call: str, phase: str = "intent", **fields: Any) -> AuditEntry:
    return AuditEntry(call=call, phase=phase, who="ops", request_id="r", verb="retry", **fields)


async def test_an_entry_is_read_as_it_was_written(audit: Audit, server: Server) -> None:
    """Every field has its place, also an empty one; the id is the server's time."""
    outcome = entry("a", "outcome", which='{"ids":[]}', count=0, why="ö", outcome="done", done=3, changed=2, leased=1)
    before = server.client.time()[0] * 1000
    id = await audit.audit(outcome)
    page = await audit.audited()
    assert page.entries == [msgspec.structs.replace(outcome, id=id)]
    assert before <= page.entries[0].at_ms <= server.client.time()[0] * 1000 + 1000
    [(_, fields)] = server.client.xrange(KEY)
    assert [name.decode() for name in fields][:3] == ["call", "phase", "v"] and len(fields) == 15


async def test_entries_are_read_newest_first_page_by_page(audit: Audit) -> None:
    """The last page names no further one, also when it is full; what comes meanwhile is in none."""
    ids = [await audit.audit(entry(str(n))) for n in range(10)]
    seen, cursor = [], ""
    while page := await audit.audited(cursor, most=4):
        seen += [each.id for each in page.entries]
        cursor = page.cursor
        if not cursor:
            break
        await audit.audit(entry(f"late {cursor}"))
    assert seen == ids[::-1]
    assert await audit.audited(ids[0]) == ("", [])


async def test_a_repeat_of_a_call_is_one_entry(audit: Audit, server: Server) -> None:
    """As after a lost reply; an outcome is not its intent, and neither is another call's."""
    first = await audit.audit(entry("a"))
    other = await audit.audit(entry("b"))
    assert await audit.audit(entry("a")) == first
    assert await audit.audit(entry("a", "outcome")) not in (first, other)
    assert server.client.xlen(KEY) == 3


async def test_the_oldest_go_beyond_the_length(topology: Topology, server: Server) -> None:
    """By whole nodes of the stream, so a few more may stay; with 0 all of them do."""
    for length, at_least, at_most in ((50, 50, 50 + 100), (0, 400, 400)):
        audit = Audit(topology, "orders", length)
        server.client.delete(KEY)
        ids = [await audit.audit(entry(str(n))) for n in range(400)]
        kept = [id.decode() for id, _ in server.client.xrange(KEY)]
        assert at_least <= len(kept) <= at_most and kept == ids[-len(kept) :]


@pytest.fixture
def full(server: Server) -> Iterator[None]:
    server.client.config_set("maxmemory", "100kb")
    yield
    server.client.config_set("maxmemory", 0)


@pytest.mark.parametrize("length", [100_000, 0])
async def test_a_full_server_takes_entries(topology: Topology, server: Server, full: None, length: int) -> None:
    """Or nobody could clear it; Redis 6.2, too, which lets a script go on whose first write needs no memory."""
    audit = Audit(topology, "orders", length)
    await audit.audit(entry("a"))
    await audit.audit(entry("a", "outcome"))
    assert server.client.xlen(KEY) == 2 == len((await audit.audited()).entries)


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {b"\xff": b"\xff", "who": b"\xff", "count": "many", "done": "-1"},
        {"v": "9" * 5000, "id": "7", "leased": ""},
    ],
)
async def test_a_strangers_entry_is_shown_as_far_as_it_can_be(audit: Audit, server: Server, fields: Any) -> None:
    """And hides no other."""
    await audit.audit(entry("a"))
    id = server.client.xadd(KEY, fields).decode()
    stranger, ours = (await audit.audited()).entries
    assert (stranger.id, stranger.count, stranger.done, stranger.v) == (id, None, 0, 1)
    assert ours.call == "a"
    await audit.audit(entry("a", "outcome"))


async def test_a_later_protocol_is_left_alone(audit: Audit, server: Server) -> None:
    """Both verbs refuse before they write."""
    server.client.hset(queue_key("orders", "layout"), "protocol", 2)
    for call in (audit.audit(entry("a")), audit.audited()):
        with pytest.raises(LayoutMismatch):
            await call
    assert server.client.exists(KEY) == 0


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1", "1-1-1", "0-0", f"{2**64}-0", "9" * 21 + "-0", "²-0", "(1-0"])
async def test_what_is_no_cursor_is_refused(audit: Audit, cursor: str) -> None:
    """In one line, before any call."""
    with pytest.raises(ConfigError, match="allowed is what an earlier page gave"):
        await audit.audited(cursor)
    assert await audit.audited(f"{2**64 - 1}-{2**64 - 1}") == ("", [])


async def test_arguments_that_cannot_be_are_refused(audit: Audit, server: Server) -> None:
    """A length that is none, and a field without a value."""
    wrong: list[list[Any]] = [["-1", "a", "intent", "v", 1], ["", "a", "intent", "v", 1], [1, "a", "intent", "v"]]
    for args in wrong:
        with pytest.raises(StoreError, match="audit: a length of"):
            await audit._call("audit", args)
    assert server.client.exists(KEY) == 0
