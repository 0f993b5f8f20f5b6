"""What a remote queue makes of answers that no sound service gives, or one in trouble: proxies, ends, old versions."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from time import monotonic
from typing import Any

import anyio
import pytest

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, PartialCapture, StoreUnavailable

INFO = {"queue": "default", "shards": 1, "dedupe_window_s": 600, "max_payload_bytes": 1_048_576, "max_queue_size": 0}
JSON, PROBLEM = "application/json", "application/problem+json"

type Answer = tuple[int, str, Any]
"""Status, content type, body."""


@asynccontextmanager
async def answering(answer: Callable[[bytes], Answer]) -> AsyncGenerator[DeadLetterQueue]:
    """A remote queue whose service tells of itself as it should, and answers the body of any other request so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                body = await reader.readexactly(length)
                status, kind, told = answer(body) if length else (200, JSON, INFO)
                content = told if isinstance(told, bytes) else json.dumps(told).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n".encode()
                )
                writer.write(content)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config = DeadLetterConfig(operation_timeout=0.2)
        async with DeadLetterQueue(f"http://127.0.0.1:{port}", config) as queue:
            yield queue


def problem(status: int, code: str, **facts: Any) -> Answer:
    """An answer that tells of an error."""
    told = {"type": "x", "title": "x", "status": status, "detail": "of a test", "code": code, "facts": facts}
    return status, PROBLEM, told


@pytest.mark.parametrize(
    ("answer", "certain"),
    [
        (problem(503, "stopping"), False),
        (problem(408, "timeout"), True),
        (problem(429, "rate_limited"), True),
        (problem(503, "overloaded"), True),
        (problem(503, "store_unavailable"), False),
        (problem(503, "store_unavailable", certain="so it says", why=None), False),
        ((502, "text/html", b"<html>"), False),
        ((307, "text/html", b""), False),
        ((200, "text/html", b"<html>"), False),
        ((201, JSON, {"captured": 0, "results": []}), False),
        ((201, JSON, {"captured": 2, "results": [{"id": "0-1-0"}, {"id": "0-1-1"}]}), False),
    ],
    ids=str,
)
async def test_what_is_worth_another_try_is_said_to_be(answer: Answer, certain: bool) -> None:
    """A spool keeps such a letter; ``certain`` is what certainly was not done."""
    async with answering(lambda body: answer) as queue:
        with pytest.raises(StoreUnavailable) as caught:
            await queue.add({}, event_id="e")
    assert caught.value.certain is certain


async def test_letters_behind_one_that_the_service_did_not_take_wait_with_it() -> None:
    """They do not overtake it, and cost no time: the service is asked for the first batch alone."""
    asked = set[str]()

    def answer(body: bytes) -> Answer:
        asked.add(json.loads(body)["events"][0]["event_id"])
        return problem(503, "stopping")

    async with answering(answer) as queue:
        begun = monotonic()
        with pytest.raises(PartialCapture) as caught:
            await queue.add_many([{}] * 1000, event_ids=[f"e{n}" for n in range(1000)])
    assert asked == {"e0"}
    assert monotonic() - begun < 1
    assert [getattr(error, "certain", None) for error in caught.value.errors.values()] == [False] * 250 + [True] * 750


async def test_a_queue_that_is_closed_during_a_call_says_so() -> None:
    """With an error of the engine's, which a spool keeps letters for; the call ends there."""
    heard = anyio.Event()

    def answer(body: bytes) -> Answer:
        heard.set()
        return HTTPStatus.BAD_GATEWAY, "text/html", b""

    async with answering(answer) as queue, anyio.create_task_group() as group:

        async def capture() -> None:
            with pytest.raises(StoreUnavailable, match=r"closed during the call.*outcome unknown"):
                await queue.add({}, event_id="e")

        group.start_soon(capture)
        await heard.wait()
        await queue.aclose()
