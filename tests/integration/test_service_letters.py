"""Letters over HTTP: pages, streams of lines, one alone, its payload."""

from typing import Any

import anyio
import msgspec
import pytest

from tests.integration.conftest import Queues
from tests.support.service import Streamed, app_of, client_of
from uno.event_bus.dead_letter import DeadLetterQueue, Letter, LetterState
from uno.event_bus.dead_letter.codec import Encoded
from uno.event_bus.dead_letter.history import Attempt, History
from uno.event_bus.dead_letter.letter import Counters
from uno.event_bus.dead_letter.remote.records import letter_of, record_of
from uno.event_bus.dead_letter.remote.wire import LetterPage, LetterRecord
from uno.event_bus.dead_letter.service import letters as letters_routes
from uno.event_bus.dead_letter.service import lines

LINES = {"accept": "application/x-ndjson"}


async def filled(queue: DeadLetterQueue, letters: int = 30) -> list[str]:
    """The ids of letters of two types, in the order of the list: by shard, then by age."""
    ids = await queue.add_many([{"n": n} for n in range(letters)], type="even", delay=60)
    ids += await queue.add_many([{"n": n} for n in range(letters)], type="odd", delay=60, error=ValueError("no"))
    return [letter.id async for letter in queue.letters(whole=False)]


async def test_pages_hold_every_letter_once_in_order(queues: Queues) -> None:
    """Whatever their limit; the last cursor is empty."""
    queue = queues()
    ids = await filled(queue)
    async with client_of(app_of(queue)) as client:
        for limit in (1, 7, 1000):
            seen: list[str] = []
            cursor = ""
            while True:
                query = {"limit": limit, "cursor": cursor}
                page = msgspec.json.decode((await client.get("/v1/letters", params=query)).content, type=LetterPage)
                assert len(page.letters) <= limit
                seen += [letter.id for letter in page.letters]
                cursor = page.cursor
                if not cursor:
                    break
            assert seen == ids


async def test_filters_match_as_everywhere(queues: Queues) -> None:
    """Fields must all match, each by any of its values."""
    queue = queues()
    await filled(queue)
    async with client_of(app_of(queue)) as client:

        async def count(query: str) -> int:
            return len((await client.get(f"/v1/letters?limit=1000&{query}")).json()["letters"])

        assert await count("type=odd") == 30
        assert await count("type=odd&type=even") == 60
        assert await count("type=odd&type=even&error_type=ValueError") == 30
        assert await count("state=waiting&state=scheduled&reason=unknown") == 30
        assert await count("state=parked") == 0
        assert await count("subscription=x") == 0


async def test_a_page_shows_little_unless_it_is_asked_for_whole(queues: Queues) -> None:
    """Payload, headers and traceback come with ``whole``, and of one letter alone."""
    queue = queues()
    id = await queue.add({"n": 1}, headers={"a": "b"}, error=ValueError("no"), delay=60)
    async with client_of(app_of(queue)) as client:
        short = (await client.get("/v1/letters")).json()["letters"]
        assert not {"payload", "headers", "traceback"} & short[0].keys()
        whole = (await client.get("/v1/letters?whole=true")).json()["letters"]
        assert (whole[0]["payload"], whole[0]["headers"]) == ({"n": 1}, {"a": "b"})
        assert (await client.get(f"/v1/letters/{id}")).json() == whole[0]


async def test_a_stream_has_a_line_for_each_letter_that_matches(queues: Queues) -> None:
    """From the cursor on; the limit does not count."""
    queue = queues()
    ids = await filled(queue)
    async with client_of(app_of(queue)) as client:
        for query in ("", "whole=true"):
            answer = await client.get(f"/v1/letters?limit=1&{query}", headers=LINES)
            assert answer.headers["content-type"] == "application/x-ndjson"
            records = [msgspec.json.decode(line, type=LetterRecord) for line in answer.content.splitlines()]
            assert [record.id for record in records] == ids
        cursor = (await client.get("/v1/letters?limit=5")).json()["cursor"]
        rest = await client.get(f"/v1/letters?cursor={cursor}", headers=LINES)
        assert len(rest.content.splitlines()) == 55
        wrong = await client.get("/v1/letters?cursor=x", headers=LINES)
        assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/problem+json")


async def test_a_stream_reads_no_further_than_its_client(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read keeps it from loading the queue; one that leaves ends it."""
    monkeypatch.setattr(letters_routes, "STREAMED", 1)
    queue = queues()
    await filled(queue)
    asked = 0
    page = queue.page

    async def counted(*args: Any, **how: Any) -> Any:
        nonlocal asked
        asked += 1
        return await page(*args, **how)

    monkeypatch.setattr(queue, "page", counted)
    stream = Streamed(app_of(queue), "GET", "/v1/letters")
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        assert await stream.piece()
        await anyio.wait_all_tasks_blocked()
        await queue.stats()  # what is on its way to Redis has been answered
        await anyio.wait_all_tasks_blocked()
        assert asked < 8
        stream.leave()
    assert not stream.complete
    stream.close()


async def test_there_are_only_so_many_streams_at_a_time(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may hold large letters for a client that reads nothing; a page, and a later stream, are answered."""
    monkeypatch.setattr(lines, "MOST_STREAMS", 1)
    monkeypatch.setattr(letters_routes, "STREAMED", 1)
    queue = queues()
    await filled(queue, 5)
    app = app_of(queue)
    stream = Streamed(app, "GET", "/v1/letters")
    async with client_of(app) as client, anyio.create_task_group() as group:
        group.start_soon(stream.run)
        assert await stream.piece()
        refused = await client.get("/v1/letters", headers=LINES)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/v1/letters")).status_code == 200
        await stream.rest()
        assert (await client.get("/v1/letters", headers=LINES)).status_code == 200
    stream.close()


async def test_a_stream_ends_with_the_service_after_a_whole_line(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line says so, so that nobody takes it for all there is."""
    monkeypatch.setattr(letters_routes, "STREAMED", 1)
    queue, stop = queues(), anyio.Event()
    await filled(queue)
    stream = Streamed(app_of(queue, stop), "GET", "/v1/letters")
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        first = await stream.piece()
        stop.set()
        rest = await stream.rest()
    lines = [msgspec.json.decode(line) for line in ((first or b"") + rest).splitlines()]
    assert 1 < len(lines) < 60 and stream.complete
    assert all("id" in line for line in lines[:-1])
    assert lines[-1]["problem"]["code"] == "store_unavailable"
    assert lines[-1]["problem"]["detail"].startswith("the service stops")
    stream.close()


async def test_a_stream_that_fails_says_so_in_its_last_line(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status was sent long before."""
    monkeypatch.setattr(letters_routes, "STREAMED", 1)
    queue = queues()
    await filled(queue)
    page, calls = queue.page, 0

    async def failing(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("a secret")
        return await page(*args, **how)

    monkeypatch.setattr(queue, "page", failing)
    async with client_of(app_of(queue)) as client:
        answer = await client.get("/v1/letters", headers=LINES)
    *letters, last = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert letters and last["problem"]["code"] == "internal_error"
    assert "secret" not in answer.text


# -- one letter -----------------------------------------------------------------------------------------------


async def test_a_letter_that_is_not_there_is_404(queues: Queues) -> None:
    """Whatever its id looks like."""
    async with client_of(app_of(queues())) as client:
        for id in ("0-1-1", "9-1-1", "x", "0-1", "%00", "0-99999999999999999999-0", "a" * 500, "%F0%9F%92%A9"):
            for path in (f"/v1/letters/{id}", f"/v1/letters/{id}/payload"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (404, "letter_not_found"), path


@pytest.mark.parametrize(
    ("content_type", "payload", "shown"),
    [
        ("text/html", b"<script>alert(1)</script>", "text/html"),
        ("application/json", b'"</script><script>alert(1)</script>"', "application/json"),
        ("text/plain; charset=utf-8", b"x", "text/plain; charset=utf-8"),
        ("text/html\r\nset-cookie: a=b", b"x", "application/octet-stream"),
        ("", b"x", "application/octet-stream"),
        ("ünïcode/x", b"x", "application/octet-stream"),
    ],
)
async def test_a_payload_is_given_as_a_file_and_never_shown(
    queues: Queues, content_type: str, payload: bytes, shown: str
) -> None:
    """Its bytes and content type are the letter's; hostile ones stay harmless."""
    queue = queues()
    id = await queue.add(Encoded("t", content_type, payload), delay=60)
    async with client_of(app_of(queue)) as client:
        answer = await client.get(f"/v1/letters/{id}/payload")
        assert (answer.content, answer.headers["content-type"]) == (payload, shown)
        assert answer.headers["content-disposition"] == f'attachment; filename="{id}"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "set-cookie" not in answer.headers
        record = await client.get(f"/v1/letters/{id}")
        assert record.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("payload", "is_raw"),
    [
        (b'{"n": 9007199254740993, "n": 1e400}', True),
        (b"[" * 200 + b"]" * 200, True),
        (b"null", True),
        (b" 1", False),
        (b"1 ", False),
        (b'{"a":\n1}', False),
        (b"", False),
        (b"1,2", False),
        (b"{", False),
        (b'"\xff"', False),
        (b'"\\ud800"', False),
        (bytes(range(256)), False),
    ],
)
async def test_a_record_becomes_the_letter_again(queues: Queues, payload: bytes, is_raw: bool) -> None:
    """Byte for byte, through JSON."""
    queue = queues()
    id = await queue.add(
        Encoded("t", "application/json", payload),
        event_id="e",
        subscription_id="s",
        dedupe_key="d",
        ordering_key="o",
        headers={"a": "b"},
        error=ValueError("no"),
        attempt_count=3,
        failed_at=1.5,
        delay=60,
    )
    letter = await queue.get(id)
    record = record_of(letter, whole=True)
    assert (record.payload_base64 is msgspec.UNSET) == is_raw
    line = msgspec.json.encode(record)
    assert b"\n" not in line
    again = letter_of(msgspec.json.decode(line, type=LetterRecord))
    assert again.values == letter.values
    assert (again.id, again.state, again.due_ms) == (letter.id, letter.state, letter.due_ms)


def test_counters_history_and_odd_texts_survive_a_record() -> None:
    """What is no UTF-8 is shown with replacement characters, as everywhere."""
    fields = {b"v": b"1", b"type": b"\xff!", b"attempts": b"0", b"error": b"\xc3"}
    counters = Counters(7, 1, 2, 3, 4, 1, "timeout")
    history = History([Attempt(5, "w", 0.5, "E", "m")]).pack()
    letter = Letter.from_fields(
        "1-5-0", fields, state=LetterState.PARKED, counters=counters, packed_history=history, since_ms=9
    )
    record = msgspec.json.decode(msgspec.json.encode(record_of(letter, whole=True)), type=LetterRecord)
    again = letter_of(record)
    assert (again.type, again.error, again.counters) == ("\ufffd!", "\ufffd", counters)
    assert (again.state, again.since_ms, again.has_payload) == (LetterState.PARKED, 9, False)
    assert again.history.attempts == letter.history.attempts and again.history.attempts[0].duration_s == 0.5
    assert letter_of(LetterRecord(id="1-5-0", state="of a later version")).state is LetterState.HELD
