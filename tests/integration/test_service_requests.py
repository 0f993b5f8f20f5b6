"""What every request to the service meets: roles, the queue that is meant, bodies, queries, problems, descriptions."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import openapi_spec_validator
import pytest

from tests.integration.conftest import Queues
from tests.support.service import app_of, client_of, known_as
from uno.event_bus.dead_letter.remote.problems import STATUS
from uno.event_bus.dead_letter.service.app import OPERATIONS
from uno.event_bus.dead_letter.service.caller import ADMIN, ANY_ROLE, ANYONE, CAPTURE, NOBODY, OPERATE, READ, Caller
from uno.event_bus.dead_letter.service.openapi import description

pytestmark = pytest.mark.usefixtures("server")
"""Nothing here depends on the topology."""

JSON = {"content-type": "application/json"}

INCLUDED = {
    CAPTURE: {ANY_ROLE, CAPTURE},
    READ: {ANY_ROLE, READ},
    OPERATE: {ANY_ROLE, OPERATE, READ},
    ADMIN: {ANY_ROLE, CAPTURE, READ, OPERATE, ADMIN},
}


# -- roles ------------------------------------------------------------------------------------------------


async def test_who_is_not_known_may_do_nothing_unless_all_may(queues: Queues) -> None:
    """Without `open_to_all` the application is shut; probes are for everybody."""
    queue = queues()
    async with client_of(app_of(queue, open_to_all=False)) as client:
        assert (await client.get("/v1/stats")).status_code == 401
        assert (await client.get("/healthz")).status_code == 200
    async with client_of(app_of(queue)) as client:
        assert (await client.get("/v1/stats")).status_code == 200


def test_a_caller_may_what_its_roles_include() -> None:
    """Two roles are what both allow."""
    assert [ANYONE.may(role) for role in INCLUDED] == [True] * 4
    assert [NOBODY.may(role) for role in INCLUDED] == [False] * 4
    assert [Caller("x", frozenset({CAPTURE, OPERATE})).may(role) for role in INCLUDED] == [True, True, True, False]


# -- requests -----------------------------------------------------------------------------------------------


async def test_a_request_that_means_another_queue_is_refused_before_anything(queues: Queues) -> None:
    """409 that names both."""
    queue = queues(queue="a")
    async with client_of(app_of(queue)) as client:
        told = await client.post("/v1/letters", json={"type": "t", "payload": 1}, headers={"dlq-queue": "b"})
        assert (told.status_code, told.json()["code"]) == (409, "config_invalid")
        assert told.json()["detail"] == (
            "the service serves queue 'a', the request means 'b' (DLQ_QUEUE): nothing was done"
        )
        assert (await client.get("/v1/stats", headers={"dlq-queue": "a"})).json()["open"] == 0


@pytest.mark.parametrize(
    ("content", "headers", "status", "code", "says"),
    [
        (b'{"type":', JSON, 400, "malformed_request", "truncated"),
        (b'{"type":"t","payload":"\xff"}', JSON, 400, "malformed_request", "byte 23 is not UTF-8"),
        (b'{"type":"t","payload":"\\ud800"}', JSON, 400, "malformed_request", ""),
        (b'{"type":"t","payload":01}', JSON, 400, "malformed_request", "byte"),
        (b"[" * 200_000, JSON, 422, "invalid_request", "Expected `object`"),
        (b'{"type":"t","payload":' + b"[" * 200_000, JSON, 400, "malformed_request", "nested too deeply"),
        (b"", JSON, 400, "malformed_request", "truncated"),
        (b"null", JSON, 422, "invalid_request", "Expected `object`"),
        (b'{"payload":1}', JSON, 422, "invalid_request", "missing required field `type`"),
        (b'{"type":7,"payload":1}', JSON, 422, "invalid_request", "$.type"),
        (b'{"type":"","payload":1}', JSON, 422, "invalid_request", "$.type"),
        (b'{"type":"t","payload":1,"delay_ms":-1}', JSON, 422, "invalid_request", "$.delay_ms"),
        (b'{"type":"t","payload_base64":"!"}', JSON, 422, "invalid_request", "base64"),
        (b'{"type":"t"}', JSON, 422, "invalid_event", "one of the two"),
        (b'{"type":"t","payload":1}', {"content-type": "text/plain"}, 415, "unsupported_media_type", "text/plain"),
        (b'{"type":"t","payload":1}', {}, 415, "unsupported_media_type", "no content-type"),
        (b'{"type":"t","payload":"' + b"x" * 5000 + b'"}', JSON, 413, "payload_too_large", "4096 bytes"),
    ],
)
async def test_a_body_that_is_not_as_described_is_refused(
    queues: Queues, content: bytes, headers: dict[str, str], status: int, code: str, says: str
) -> None:
    """Each with a problem of one line, and nothing is captured."""
    queue = queues()
    async with client_of(app_of(queue, most_body_bytes=max(4096, 300_000 * content.count(b"[")))) as client:
        answer = await client.post("/v1/letters", content=content, headers=headers)
    told = answer.json()
    assert (answer.status_code, told["status"], told["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in told["detail"] and "\n" not in told["detail"]
    assert (await queue.stats()).open == 0


async def test_a_body_of_unknown_length_is_read_up_to_the_limit(queues: Queues) -> None:
    """No more of it is asked for than what passes the limit."""
    queue = queues()
    asked = 0

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> Any:
            nonlocal asked
            while True:
                asked += 1
                yield b" " * 1000

    async with client_of(app_of(queue, most_body_bytes=10_000)) as client:
        answer = await client.post("/v1/letters", content=Endless(), headers=JSON)
    assert (answer.status_code, asked, answer.headers["connection"]) == (413, 11, "close")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("stat=parked", "'stat' is no parameter; did you mean state?"),
        ("zzz=1", "known are state, type"),
        ("limit=0", "$.limit"),
        ("limit=1001", "$.limit"),
        ("limit=many", "$.limit"),
        ("limit=1&limit=2", "limit is given twice"),
        ("state=gone", "Invalid enum value 'gone'"),
        ("whole=perhaps", "$.whole"),
        ("cursor=0", "$.cursor"),
        ("cursor=9:-", "cursor is '9:-'"),
        ("cursor=0:99999999999999999999-0", "cursor is"),
        ("type=%ff", "it cannot be read"),
        ("&".join(f"type={n}" for n in range(1001)), "it cannot be read"),
    ],
)
async def test_a_query_that_is_not_as_described_is_refused(queues: Queues, query: str, says: str) -> None:
    """400 with one line that names the parameter."""
    async with client_of(app_of(queues())) as client:
        answer = await client.get(f"/v1/letters?{query}")
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


async def test_paths_and_methods_that_are_not_there_are_problems(queues: Queues) -> None:
    """404; 405 with what is allowed on the path; HEAD where there is GET."""
    async with client_of(app_of(queues())) as client:
        for path in ("/v2/letters", "/v1", "/v1/letters/", "/v1/letters/a/b/c", "/openapi.json/", "/..%2f..%2fetc"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        answer = await client.delete("/v1/letters")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
        assert (await client.get("/v1/letters/retry")).headers["allow"] == "POST"
        head = await client.head("/v1/stats")
        assert (head.status_code, head.content) == (200, b"")
        streamed = await client.head("/v1/letters", headers={"accept": "application/x-ndjson"})
        assert (streamed.status_code, streamed.content) == (200, b"")


# -- errors -----------------------------------------------------------------------------------------------


async def test_an_error_that_nobody_expected_tells_the_client_nothing_and_the_log_where(
    queues: Queues, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 with the request's id, which the log line has; its message, which may quote a payload, is nowhere."""
    queue = queues()
    mark = "terces"[::-1]  # so that no line of source has it

    async def fail() -> None:
        raise ValueError(mark)

    monkeypatch.setattr(queue, "workers", fail)
    async with client_of(known_as(app_of(queue), ANYONE, "r-77")) as client:
        answer = await client.get("/v1/workers")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["request_id"] == "r-77"
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1 and "r-77 failed: ValueError" in lines[0] and "in fail" in lines[0]
    assert mark not in answer.text + caplog.text


async def test_no_payload_is_in_any_log_line(queues: Queues, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, of all loggers; whatever becomes of the request."""
    caplog.set_level(logging.DEBUG)
    queue = queues()
    mark = "hunter2"
    event: dict[str, Any] = {"type": "t", "payload": {"card": mark}, "headers": {"authorization": mark}, "delay_ms": 0}
    async with client_of(app_of(queue)) as client:
        id = (await client.post("/v1/letters", json=event)).json()["id"]
        await client.post("/v1/letters", json=event, headers={"authorization": f"Bearer {mark}"})
        await client.post("/v1/letters", json=event | {"delay_ms": "no"})
        await client.post("/v1/letters/batch", json={"events": [event, {"type": "t"}]})
        await client.post("/v1/letters", content=b'{"type": "hunter2', headers=JSON)
        await client.get(f"/v1/letters/{id}")
        await client.get("/v1/letters?whole=true", headers={"accept": "application/x-ndjson"})
        await client.post(f"/v1/letters/{id}/discard", json={"why": "done"})
    assert "discard of" in caplog.text
    assert mark not in caplog.text


# -- descriptions -----------------------------------------------------------------------------------------------


def _schemas(told: Any) -> Iterator[Any]:
    if isinstance(told, dict):
        yield told
        for one in told.values():
            yield from _schemas(one)
    elif isinstance(told, list):
        for one in told:
            yield from _schemas(one)


def test_the_description_is_openapi() -> None:
    """Valid, each operation once, with its role, its problems, and the stable code of each."""
    told = json.loads(description(OPERATIONS))
    openapi_spec_validator.validate(told)
    operations = [one for methods in told["paths"].values() for one in methods.values()]
    assert len(operations) == len(OPERATIONS) == len({one["operationId"] for one in operations})
    for operation in OPERATIONS:
        one = told["paths"][operation.path][operation.method.lower()]
        assert one["summary"]
        if operation.role is None:
            assert one["security"] == []
        else:
            assert f"`{operation.role}`" in one["description"]
            assert "application/problem+json" in one["responses"]["403"]["content"]
    properties = told["components"]["schemas"]["Event"]["properties"]
    assert properties["delay_ms"]["description"].startswith("Until the first retry")
    assert told["components"]["schemas"]["Problem"]["properties"]["code"]["type"] == "string"
    refs = {one["$ref"] for one in _schemas(told) if "$ref" in one}
    assert {ref.rpartition("/")[2] for ref in refs} <= told["components"]["schemas"].keys()
    assert all(str(status.value) in json.dumps(told["paths"]) for status in STATUS.values())


async def test_the_description_is_also_a_page_without_scripts(queues: Queues) -> None:
    """The root leads there; nothing is loaded, and its policy allows nothing but its own style."""
    async with client_of(app_of(queues(), open_to_all=False)) as client:
        root = await client.get("/")
        assert (root.status_code, root.headers["location"]) == (307, "/docs")
        page = await client.get("/docs")
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert "<script" not in page.text and "src=" not in page.text and "http:" not in page.text
        assert all(f"<code>{operation.path}</code>" in page.text for operation in OPERATIONS)
        assert (await client.get("/openapi.json")).json()["openapi"] == "3.1.0"


async def test_every_reply_is_kept_out_of_caches_and_guesses(queues: Queues) -> None:
    """Also problems and pages."""
    async with client_of(app_of(queues())) as client, anyio.create_task_group():
        for path in ("/v1/stats", "/v1/letters/0-1-1", "/nowhere", "/docs", "/openapi.json", "/healthz", "/metrics"):
            headers = (await client.get(path)).headers
            assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff"), path
