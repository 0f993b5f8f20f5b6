"""Captures over HTTP: ``/v1/letters``, ``/v1/letters/batch`` and ``/v1/letters/known``."""

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, override

import anyio
import httpx2
import pytest

from tests.integration.conftest import Queues
from tests.support.service import app_of, client_of
from uno.event_bus.dead_letter import DeadLetterQueue, Disabled, PayloadTooLarge
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.telemetry.recorder import Recorder

LATER = {"delay_ms": 60_000}
JSON = {"content-type": "application/json"}


def event(**more: Any) -> dict[str, Any]:
    return {"type": "Order", "payload": {"n": 1}} | LATER | more


async def posted(queue: DeadLetterQueue, path: str, body: Any, **headers: str) -> httpx2.Response:
    async with client_of(app_of(queue)) as client:
        return await client.post(path, json=body, headers=headers)


async def test_all_that_an_event_says_is_in_its_letter(queues: Queues) -> None:
    """Failure, keys, times and headers; the payload's bytes are those of the request."""
    queue = queues()
    body = (
        b'{"type":"Order","payload": {"n" : 9007199254740993,\t"s":"\\u00fc"} ,"event_id":"e-1","subscription":"stock",'
        b'"reason":"of my own","error_type":"KeyError","error":"no 4711","traceback":"Traceback\\n","failed_at_ms":'
        b'1700000000500,"attempts":3,"delay_ms":60000,"ordering_key":"c-1","dedupe_key":"d-1","headers":{"a":"b"}}'
    )
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/letters", content=body, headers=JSON)
    assert answer.status_code == 201
    letter = await queue.get(answer.json()["id"])
    assert letter.payload == b'{"n" : 9007199254740993,\t"s":"\\u00fc"}'
    assert (letter.type, letter.content_type, letter.event_id) == ("Order", "application/json", "e-1")
    assert (letter.subscription, letter.reason, letter.error_type) == ("stock", "of my own", "KeyError")
    assert (letter.error, letter.traceback, letter.failed_at_ms) == ("no 4711", "Traceback\n", 1_700_000_000_500)
    assert (letter.caller_attempts, letter.ordering_key, letter.dedupe_key) == (3, "c-1", "d-1")
    assert letter.headers == {"a": "b"}
    # Redis 6.2 reads the clock again for an id.
    assert 59_000 < letter.not_before_ms - letter.captured_at_ms <= 60_000


async def test_a_letter_says_of_a_failure_what_a_local_capture_says(queues: Queues) -> None:
    """Reason and fingerprint of a text, of nothing, and of a class are those of `add`."""
    queue = queues()
    async with client_of(app_of(queue)) as client:
        for error, body in ((None, {}), ("no 47", {"error": "no 11"})):
            id = (await client.post("/v1/letters", json=event(**body))).json()["id"]
            theirs = await queue.get(id)
            ours = await queue.get(await queue.add({}, type="Order", error=error, delay=60))
            assert (theirs.reason, theirs.fingerprint) == (ours.reason, ours.fingerprint)
        timeout = await client.post("/v1/letters", json=event(error_type="TimeoutError"))
    assert (await queue.get(timeout.json()["id"])).reason == "timeout"


async def test_without_a_delay_the_queue_s_policy_says_when(queues: Queues) -> None:
    """As of `add`."""
    queue = queues(retry_delay=90)
    letter = await queue.get((await posted(queue, "/v1/letters", event(delay_ms=None))).json()["id"])
    assert 45_000 <= letter.not_before_ms - letter.captured_at_ms <= 135_000


@pytest.mark.parametrize("payload", [b"", bytes(range(256)), b'{"a": 1}\n'], ids=["empty", "any", "lines"])
async def test_any_bytes_come_in_as_base64(queues: Queues, payload: bytes) -> None:
    """And are told as such."""
    queue = queues()
    encoded = base64.b64encode(payload).decode()
    body = {"type": "t", "payload_base64": encoded, "content_type": "application/json"} | LATER
    async with client_of(app_of(queue)) as client:
        id = (await client.post("/v1/letters", json=body)).json()["id"]
        assert (await queue.get(id)).payload == payload
        assert (await client.get(f"/v1/letters/{id}")).json()["payload_base64"] == encoded
        assert (await client.get(f"/v1/letters/{id}/payload")).content == payload


async def test_repeating_a_capture_answers_the_first_id(queues: Queues) -> None:
    """By event id and subscription, or by the dedupe key; without either every request makes a letter."""
    queue = queues()
    async with client_of(app_of(queue)) as client:

        async def id_of(**more: Any) -> str:
            return str((await client.post("/v1/letters", json=event(**more))).json()["id"])

        assert await id_of(event_id="e") == await id_of(event_id="e") != await id_of(event_id="e", subscription="s")
        assert await id_of(dedupe_key="d", event_id="1") == await id_of(dedupe_key="d", event_id="2")
        assert await id_of() != await id_of()


async def test_the_request_s_trace_context_goes_with_events_that_have_none(queues: Queues) -> None:
    """An event's own stands alone; what is no trace context is left out."""
    queue = queues()
    ours, own = (f"00-{'1' * 32}-{digit * 16}-01" for digit in "23")
    events = [event(), event(headers={"traceparent": own, "x": "y"})]
    answer = await posted(queue, "/v1/letters/batch", {"events": events}, traceparent=ours, tracestate="a=b")
    first, second = [await queue.get(result["id"]) for result in answer.json()["results"]]
    assert first.headers == {"traceparent": ours, "tracestate": "a=b"}
    assert second.headers == {"traceparent": own, "x": "y"}
    broken = await posted(queue, "/v1/letters", event(), traceparent="00-zz")
    assert (await queue.get(broken.json()["id"])).headers == {}


async def test_a_batch_is_captured_by_position(queues: Queues) -> None:
    """201 when all came in; order is that of the request."""
    queue = queues()
    answer = await posted(queue, "/v1/letters/batch", {"events": [event(event_id=f"e{n}") for n in range(250)]})
    assert (answer.status_code, answer.json()["captured"]) == (201, 250)
    ids = [result["id"] for result in answer.json()["results"]]
    assert [(await queue.get(id)).event_id for id in (ids[0], ids[249])] == ["e0", "e249"]


async def test_a_batch_tells_of_each_event_that_was_not_captured(queues: Queues) -> None:
    """207: two ways of a payload, none, one of another type, one that is too long; the others are captured."""
    queue = queues(max_payload_bytes=1024)
    wrong: list[dict[str, Any]] = [
        event(payload_base64="YQ=="),
        {"type": "t"},
        event(content_type="text/plain"),
        event(payload="x" * 1025),
        event(headers={"h": "x" * 1025}),
    ]
    answer = await posted(queue, "/v1/letters/batch", {"events": [event(), *wrong, event()]})
    told = answer.json()
    assert (answer.status_code, told["captured"]) == (207, 2)
    codes = [result.get("problem", {}).get("code") for result in told["results"]]
    assert codes == [None, *["invalid_event"] * 3, *["payload_too_large"] * 2, None]
    assert told["results"][4]["problem"]["facts"] == {"size": 1027, "limit": 1024, "part": "payload"}
    assert (await queue.stats()).open == 2


@pytest.mark.parametrize("levels", [101, 9000])
async def test_headers_that_no_page_could_show_are_refused(queues: Queues, levels: int) -> None:
    """One such letter would make every list with it fail; as many lists side by side are none."""
    queue = queues()
    nested = b'{"events":[{"type":"t","payload":1,"headers":{"a":%s}},{"type":"t","payload":1,"headers":{"a":[%s]}}]}'
    body = nested % (b"[" * levels + b"]" * levels, b",".join([b"[]"] * levels))
    async with client_of(app_of(queue)) as client:
        told = (await client.post("/v1/letters/batch", content=body, headers=JSON)).json()
        assert [result.get("problem", {}).get("code") for result in told["results"]] == ["invalid_event", None]
        assert told["results"][0]["problem"]["facts"]["field"] == "headers"
        assert len((await client.get("/v1/letters?whole=true")).json()["letters"]) == 1


async def test_a_full_queue_refuses_by_position(queues: Queues) -> None:
    """507 alone, 207 in a batch; nothing is trimmed."""
    queue = queues(shards=1, max_queue_size=1)
    answer = await posted(queue, "/v1/letters/batch", {"events": [event(), event(), event()]})
    codes = [result.get("problem", {}).get("code") for result in answer.json()["results"]]
    assert (answer.status_code, codes[-1]) == (207, "queue_full")
    alone = await posted(queue, "/v1/letters", event())
    assert (alone.status_code, alone.json()["code"]) == (507, "queue_full")


async def test_a_disabled_queue_answers_503(queues: Queues) -> None:
    """With the engine's code."""
    queue = queues(enabled=False)
    for path, body in (("/v1/letters", event()), ("/v1/letters/batch", {"events": [event()]})):
        answer = await posted(queue, path, body)
        assert (answer.status_code, answer.json()["code"]) == (503, "disabled")


async def test_while_redis_is_away_captures_fail_or_are_spooled(queues: Queues, tmp_path: Path) -> None:
    """503 with the engine's code; with a spool, 201 and an id that says so."""
    away = queues("redis://localhost:1/0", operation_timeout=0.1)
    answer = await posted(away, "/v1/letters", event())
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    spooling = DeadLetterQueue("redis://localhost:1/0", queues().config.__class__(spool_dir=str(tmp_path)))
    try:
        kept = await posted(spooling, "/v1/letters/batch", {"events": [event(event_id="e")]})
        assert (kept.status_code, kept.json()["results"]) == (201, [{"id": "spooled:e"}])
    finally:
        await spooling.aclose()


async def test_what_is_in_the_queue_is_known_by_its_keys(queues: Queues) -> None:
    """By event id and subscription, by dedupe key, in the home of the ordering key; by the asker's clock."""
    queue = queues(dedupe_window=1.0)
    await posted(queue, "/v1/letters", event(event_id="a", subscription="s"))
    await posted(queue, "/v1/letters", event(event_id="b", dedupe_key="d"))
    await posted(queue, "/v1/letters", event(event_id="c", ordering_key="o"))
    their_now = int(time.time() * 1000) + 3_600_000  # their clock is an hour ahead
    keys: list[dict[str, Any]] = [
        {"event_id": "a", "subscription": "s"},
        {"event_id": "a"},
        {"event_id": "other", "dedupe_key": "d"},
        {"event_id": "c", "ordering_key": "o"},
        {"event_id": "z"},
    ]
    body = {"keys": [key | {"kept_since_ms": their_now} for key in keys], "now_ms": their_now}
    assert (await posted(queue, "/v1/letters/known", body)).json() == {"positions": [0, 2, 3]}
    late = {"keys": [keys[0] | {"kept_since_ms": their_now + 1_000_000}], "now_ms": their_now}
    assert (await posted(queue, "/v1/letters/known", late)).json() == {"positions": []}


async def test_captures_of_many_clients_at_once_all_come_in(queues: Queues) -> None:
    """Each once."""
    queue = queues()

    async def capture(client: httpx2.AsyncClient, n: int) -> None:
        events = [event(event_id=f"{n % 10}-{m}") for m in range(10)]
        assert (await client.post("/v1/letters/batch", json={"events": events})).status_code == 201

    async with client_of(app_of(queue)) as client, anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(capture, client, n)
    assert (await queue.stats()).open == 100


async def test_letters_that_are_made_already_have_their_answers_by_position(queues: Queues) -> None:
    """`put`: too much of a payload, or of headers, is refused without a call; the others come in, and are counted."""
    counted: list[str] = []

    class Counting(Recorder):
        @override
        def captured(self, queue: str, letters: Sequence[NewLetter]) -> None:
            counted.extend(new.event_id for new in letters)

    queue = queues(max_payload_bytes=100, recorder=Counting())
    letters = [
        NewLetter("a", "t", b"1", delay_ms=60_000),
        NewLetter("b", "t", bytes(101)),
        NewLetter("c", "t", b"", headers=bytes(101)),
        NewLetter("a", "t", b"1", delay_ms=60_000),
    ]
    first, large, heavy, again = await queue.put(letters)
    assert isinstance(first, str) and first == again
    assert isinstance(large, PayloadTooLarge) and isinstance(heavy, PayloadTooLarge) and heavy.part == "headers"
    assert counted == ["a", "a"]
    assert await queue.put([]) == []
    with pytest.raises(Disabled):
        await queues(enabled=False).put(letters)
