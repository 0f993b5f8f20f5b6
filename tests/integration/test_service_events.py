"""CloudEvents 1.0 at ``/v1/events``: as their SDK writes them, and as others may."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.service import app_of, client_of
from uno.event_bus.dead_letter import DeadLetterQueue, Letter

STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCHED = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "t"}
TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"


def attributes(**more: Any) -> dict[str, Any]:
    return {"id": "1", "source": "/shop", "type": "order.placed", "specversion": "1.0"} | more


async def letter_of(queue: DeadLetterQueue, content: bytes, headers: dict[str, str]) -> Letter:
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/events", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    return await queue.get(answer.json()["id"])


async def refusal(queue: DeadLetterQueue, content: Any, headers: dict[str, str]) -> tuple[int, str, str]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/events", content=body, headers=headers)
    told = answer.json()
    return answer.status_code, told["code"], told["detail"]


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event], ids=["binary", "structured"])
async def test_what_the_sdk_writes_is_read(queues: Queues, write: Any) -> None:
    """Attributes, extensions and data, in both modes."""
    queue = queues()
    event = CloudEvent(
        attributes(
            subject="orders/4711 ü%",
            time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            datacontenttype="application/json",
            partitionkey="customer-1",
            traceparent=TRACEPARENT,
            correlationid="c-1",
            causationid="k-1",
            dlqreason="timeout",
            dlqattempts=3,
            dlqerrortype="shop.Sold",
            dlqerrormsg="no 4711 für Ä",
            dlqfirstfailed=datetime(2026, 1, 2, 3, 4, 6, 500_000, tzinfo=UTC),
            dlqsubscription="stock",
        ),
        {"n": 1, "ü": "ä"},
    )
    message: HTTPMessage = write(event)
    letter = await letter_of(queue, message.body, dict(message.headers))
    assert (letter.type, letter.event_id, letter.content_type) == ("order.placed", "/shop 1", "application/json")
    assert json.loads(letter.payload) == {"n": 1, "ü": "ä"}
    assert (letter.reason, letter.caller_attempts, letter.error_type) == ("timeout", 3, "shop.Sold")
    assert (letter.error, letter.subscription, letter.ordering_key) == ("no 4711 für Ä", "stock", "customer-1")
    assert letter.failed_at_ms == 1_767_323_046_500
    headers = letter.headers
    assert datetime.fromisoformat(headers.pop("ce-time")) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert headers == {
        "ce-id": "1",
        "ce-source": "/shop",
        "ce-subject": "orders/4711 ü%",
        "ce-causationid": "k-1",
        "traceparent": TRACEPARENT,
        "correlation_id": "c-1",
    }


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event], ids=["binary", "structured"])
async def test_binary_data_of_the_sdk_comes_byte_for_byte(queues: Queues, write: Any) -> None:
    """All 256 of them."""
    event = CloudEvent(attributes(datacontenttype="application/octet-stream"), bytes(range(256)))
    message: HTTPMessage = write(event)
    letter = await letter_of(queues(), message.body, dict(message.headers))
    assert (letter.payload, letter.content_type) == (bytes(range(256)), "application/octet-stream")


@pytest.mark.parametrize(
    ("members", "payload", "content_type"),
    [
        ('"data": {"n" : 9007199254740993}', b'{"n" : 9007199254740993}', "application/json"),
        ('"data":null', b"null", "application/json"),
        ('"datacontenttype":"application/vnd.x+json","data":[1 ]', b"[1 ]", "application/vnd.x+json"),
        ('"datacontenttype":"text/xml","data":"<a b=\\"c\\"/>"', b'<a b="c"/>', "text/xml"),
        ('"datacontenttype":"text/xml","data_base64":"PGEvPg=="', b"<a/>", "text/xml"),
        ('"data_base64":"e30="', b"{}", "application/json"),
        ('"subject":null', b"", "application/octet-stream"),
    ],
)
async def test_data_are_kept_as_they_stand(
    queues: Queues, server: Server, members: str, payload: bytes, content_type: str
) -> None:
    """JSON is not written anew, texts and base64 are undone, no data are none."""
    body = f'{{"id":"1","source":"/s","type":"t","specversion":"1.0",{members}}}'.encode()
    letter = await letter_of(queues(), body, STRUCTURED)
    assert (letter.payload, letter.content_type) == (payload, content_type)


async def test_any_body_comes_in_binary_mode(queues: Queues) -> None:
    """Of any content type, also without one, and what the body is does not matter."""
    queue = queues()
    letter = await letter_of(queue, b"\xff\x00{", BINARY | {"content-type": "application/json"})
    assert (letter.payload, letter.content_type) == (b"\xff\x00{", "application/json")
    letter = await letter_of(queue, b"", BINARY | {"ce-id": "2"})
    assert (letter.payload, letter.content_type) == (b"", "application/octet-stream")


async def test_source_and_id_together_tell_repeats(queues: Queues) -> None:
    """The same id of another source is another event."""
    queue = queues()
    first = await letter_of(queue, b"", BINARY)
    assert (await letter_of(queue, b"again", BINARY)).id == first.id
    assert (await letter_of(queue, b"", BINARY | {"ce-source": "/other"})).id != first.id


async def test_the_request_s_trace_goes_with_events_without_one(queues: Queues) -> None:
    """The event's own extension stands alone."""
    queue = queues()
    theirs = TRACEPARENT.replace("1", "9")
    letter = await letter_of(queue, b"", BINARY | {"traceparent": TRACEPARENT})
    assert letter.headers["traceparent"] == TRACEPARENT
    letter = await letter_of(queue, b"", BINARY | {"ce-id": "2", "traceparent": TRACEPARENT, "ce-traceparent": theirs})
    assert letter.headers["traceparent"] == theirs


async def test_a_batch_is_captured_by_position(queues: Queues) -> None:
    """Also an empty one, which the specification allows; 207 with what was wrong."""
    queue = queues()
    batch = [attributes(id=str(n), data=n) for n in range(3)]
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/events", json=batch, headers=BATCHED)
        assert (answer.status_code, answer.json()["captured"]) == (201, 3)
        last = await queue.get(answer.json()["results"][2]["id"])
        assert (last.event_id, last.payload) == ("/shop 2", b"2")
        answer = await client.post("/v1/events", json=[attributes(id="9"), {"id": "1"}], headers=BATCHED)
        assert (answer.status_code, answer.json()["results"][1]["problem"]["code"]) == (207, "invalid_event")
        assert (await client.post("/v1/events", content=b"[]", headers=BATCHED)).json()["captured"] == 0
        many = await client.post("/v1/events", json=[{}] * 1001, headers=BATCHED)
        assert (many.status_code, many.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (attributes(specversion="0.3"), STRUCTURED, 422, "specversion: only CloudEvents of version 1.0"),
        (attributes(id=""), STRUCTURED, 422, "id: a CloudEvent needs"),
        (attributes(source=None), STRUCTURED, 422, "source: a CloudEvent needs"),
        (attributes(source="/a b"), STRUCTURED, 422, "source: a URI has no space"),
        (attributes(type=["t"]), STRUCTURED, 422, "type: Expected"),
        (attributes(dlqattempts="many"), STRUCTURED, 422, "dlqattempts: it is 'many'"),
        (attributes(dlqattempts=-1), STRUCTURED, 422, "attempts"),
        (attributes(dlqfirstfailed="yesterday"), STRUCTURED, 422, "dlqfirstfailed: it is 'yesterday'"),
        (attributes(dlqfirstfailed="2026-01-01T00:00:00"), STRUCTURED, 422, "dlqfirstfailed"),
        (attributes(data=1, data_base64="YQ=="), STRUCTURED, 422, "one of the two"),
        (attributes(data_base64="!"), STRUCTURED, 422, "data_base64"),
        (attributes(data={}, datacontenttype="text/xml"), STRUCTURED, 422, "data: Expected `str`"),
        ([attributes()], STRUCTURED, 422, "Expected `object`"),
        (attributes(), BATCHED, 422, "Expected `array`"),
        (b"{", STRUCTURED, 400, "no JSON"),
        (b"", {"content-type": "text/plain"}, 415, "there is no ce-specversion"),
        (b"", BINARY | {"content-type": "application/cloudevents+avro"}, 415, "application/cloudevents+avro"),
        (b"", BINARY | {"ce-type": ""}, 422, "type"),
        (b"", BINARY | {"ce-subject": "%ff"}, 422, "ce-subject: it is not percent-encoded UTF-8"),
    ],
)
async def test_what_is_no_cloud_event_is_refused(
    queues: Queues, server: Server, content: Any, headers: dict[str, str], status: int, says: str
) -> None:
    """With the attribute that is wrong, and nothing is captured."""
    queue = queues()
    answered, _, detail = await refusal(queue, content, headers)
    assert answered == status
    assert says in detail.replace(" at ", " ")
    assert (await queue.stats()).open == 0


async def test_too_much_data_is_refused(queues: Queues, server: Server) -> None:
    """By the queue's limit for payloads, in every mode."""
    queue = queues(max_payload_bytes=1024)
    data = base64.b64encode(bytes(1025)).decode()
    assert (await refusal(queue, bytes(1025), BINARY))[:2] == (413, "payload_too_large")
    assert (await refusal(queue, attributes(data_base64=data), STRUCTURED))[:2] == (413, "payload_too_large")
