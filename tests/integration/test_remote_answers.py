"""What a remote queue makes of answers that no sound service gives, or one in trouble: proxies, ends, old versions."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from http import HTTPStatus
from threading import Event, Thread
from time import monotonic
from typing import Any

import anyio
import pytest

from tests.support.waiting import SOON_S, eventually
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, PartialCapture, StoreUnavailable
from uno.event_bus.dead_letter.remote.client import ServiceClient
from uno.event_bus.dead_letter.remote.connections import CONNECTIONS
from uno.event_bus.dead_letter.remote.wire import QueueInfo

INFO = {"queue": "default", "shards": 1, "dedupe_window_s": 600, "max_payload_bytes": 1_048_576, "max_queue_size": 0}
JSON, PROBLEM = "application/json", "application/problem+json"

type Answer = tuple[int, str, Any]
"""Status, content type, body."""


@asynccontextmanager
async def answering(answer: Callable[[bytes], Answer], timeout_s: float = 0.3) -> AsyncGenerator[DeadLetterQueue]:
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
        config = DeadLetterConfig(operation_timeout=timeout_s)
        async with DeadLetterQueue(f"http://127.0.0.1:{port}", config) as queue:
            yield queue


def problem(status: int, code: str, **facts: Any) -> Answer:
    """An answer that tells of an error."""
    told = {"type": "x", "title": "x", "status": status, "detail": "of a test", "code": code, "facts": facts}
    return status, PROBLEM, told


@pytest.mark.timed(0.1)
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


@pytest.mark.timed(0.1)
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

    async with answering(answer, 20) as queue, anyio.create_task_group() as group:

        async def capture() -> None:
            with pytest.raises(StoreUnavailable, match=r"closed during the call.*outcome unknown"):
                await queue.add({}, event_id="e")

        group.start_soon(capture)
        await heard.wait()
        await queue.aclose()


# -- connections ------------------------------------------------------------------------------------------


@asynccontextmanager
async def client_of(url: str, timeout_s: float, **settings: Any) -> AsyncGenerator[ServiceClient]:
    client = ServiceClient(url, DeadLetterConfig(operation_timeout=timeout_s, **settings))
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def listening(backlog: int) -> Generator[socket.socket]:
    """A socket that anybody may connect to; what becomes of that is the test's."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(backlog)
        yield made


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_host_that_takes_no_connection_has_certainly_done_nothing() -> None:
    """Its packets get no answer: what was to be captured may go elsewhere, or into the spool."""
    with listening(backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # the queue of those who want to connect is full
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        try:
            async with client_of(url_of(listener), 0.3) as client:
                with pytest.raises(StoreUnavailable) as caught:
                    await client.ask("POST", "/x", QueueInfo, repeats=False)
            assert caught.value.certain
        finally:
            for each in waiting:
                each.close()


@pytest.mark.timed(0.3)
async def test_calls_that_wait_for_a_connection_have_certainly_done_nothing() -> None:
    """Whether the queue is closed meanwhile, or they wait for too long; streams wait as they do."""
    taken: list[None] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        taken.append(None)
        await reader.read(-1)
        writer.close()

    certain: list[bool] = []

    async def ask(client: ServiceClient) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await client.ask("POST", "/x", QueueInfo, repeats=False)
        certain.append(caught.value.certain)

    async def stream(client: ServiceClient) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            async with aclosing(client.lines("POST", "/x", QueueInfo)) as lines:
                await anext(lines)
        certain.append(caught.value.certain)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = url_of(server.sockets[0])
        async with client_of(url, 30.0) as client, anyio.create_task_group() as group:
            for _ in range(CONNECTIONS):
                group.start_soon(ask, client)
            await eventually(lambda: len(taken) == CONNECTIONS)
            group.start_soon(ask, client)
            group.start_soon(stream, client)
            await anyio.wait_all_tasks_blocked()
            assert certain == []
            await client.close()
        assert sorted(certain) == [False] * CONNECTIONS + [True] * 2
        certain.clear()
        taken.clear()
        async with client_of(url, 0.5) as client, anyio.create_task_group() as group:
            for _ in range(CONNECTIONS):  # of streams, which are silent for longer than a call may take
                group.start_soon(stream, client)
            await eventually(lambda: len(taken) == CONNECTIONS)
            await ask(client)
            assert certain == [True]
            await client.close()


async def test_a_connection_that_the_service_has_closed_is_not_used_again() -> None:
    """Also when the event loop was too busy to hear of it: what is sent there is lost, and nobody knows."""
    told = json.dumps(INFO).encode()
    was_heard, has_closed = Event(), Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {len(told)}\r\n\r\n"
                connection.sendall(head.encode() + told)
                was_heard.wait(SOON_S)
            has_closed.set()

    with listening(backlog=5) as listener:
        listener.settimeout(SOON_S)
        server = Thread(target=serve, args=[listener], daemon=True)
        server.start()
        async with client_of(url_of(listener), SOON_S) as client:
            await client.ask("POST", "/x", QueueInfo, repeats=False)
            was_heard.set()
            assert has_closed.wait(SOON_S)  # the fault: the event loop is blocked meanwhile
            await client.ask("POST", "/x", QueueInfo, repeats=False)
        server.join()


async def test_proxies_that_the_environment_names_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for the way out of the house; this one would take nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with answering(lambda body: (201, JSON, {"captured": 1, "results": [{"id": "0-1-0"}]}), 20) as queue:
        assert await queue.add({}, event_id="e") == "0-1-0"


async def test_what_garbage_raises_does_not_show_the_token() -> None:
    """Nor does its cause: what reports errors shows causes, too."""

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"garbage\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(garbage, "127.0.0.1", 0) as server:
        url = url_of(server.sockets[0])
        async with client_of(url, 0.3, service_token="uno_verysecret") as client:
            for asking in (client.ask("POST", "/x", QueueInfo), anext(client.lines("POST", "/x", QueueInfo))):
                with pytest.raises(StoreUnavailable) as caught:
                    await asking
                error: BaseException | None = caught.value
                while error is not None:
                    assert "verysecret" not in repr(error) + str(vars(error))
                    error = error.__cause__ or error.__context__
