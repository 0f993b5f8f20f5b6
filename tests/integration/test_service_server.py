"""The service's server against clients that mean no good, over real sockets: 4xx, in bounded time and memory."""

import asyncio
import logging
import os
import resource
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.hostile import HOSTILE, POST
from tests.support.raw_http import Reply, ask, head, wire
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service import bodies, listener, protocol
from uno.event_bus.dead_letter.service.access import TOKEN, line_of, new_token
from uno.event_bus.dead_letter.service.server import Server
from uno.event_bus.dead_letter.service.settings import ServiceSettings
from uno.event_bus.dead_letter.service.token_file import append_token

MIB = 1024 * 1024
KNOWN, EXPIRED, UNKNOWN = new_token(), new_token(), new_token()


class Served(Server):
    """A server of a few routes, and what tests hold of them."""

    def __init__(self, settings: ServiceSettings, grace_s: float) -> None:
        self.begun, self.may_end, self.stop = anyio.Event(), anyio.Event(), anyio.Event()
        paths = {"/echo": self.echo, "/healthz": self.echo, "/slow": self.slow, "/stream": self.stream}
        paths |= {"/large": self.large}
        routes = [Route(path, act, methods=["GET", "POST"]) for path, act in paths.items()]
        super().__init__(Starlette(routes=[*routes, Route("/fail", self.fail)]), settings, grace_s=grace_s)

    async def echo(self, request: Request) -> Response:
        body, state = await request.body(), request.state
        return JSONResponse({"size": len(body), "who": state.caller.name, "id": state.request_id})

    async def slow(self, request: Request) -> Response:
        self.begun.set()
        await self.may_end.wait()
        return JSONResponse({})

    async def stream(self, request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            while not self.stop.is_set():
                yield b"x" * 65_536
                self.begun.set()
                await anyio.sleep(0.001)

        return StreamingResponse(lines())

    async def large(self, request: Request) -> Response:
        return Response(bytes(32 * MIB))

    async def fail(self, request: Request) -> Response:
        raise ValueError("payload")


@asynccontextmanager
async def serving(*, grace_s: float = 5.0, **settings: Any) -> AsyncGenerator[Served]:
    served = Served(ServiceSettings(port=0, **settings), grace_s)
    async with served:
        yield served
        served.may_end.set()
        served.stop.set()


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    """One for all tests that leave it as it was."""
    async with serving() as made:
        yield made


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    file = tmp_path / "tokens"
    role = frozenset({"capture"})
    file.write_text(f"{line_of('billing', role, KNOWN)}\n{line_of('old', role, EXPIRED, until=1)}\n")
    file.chmod(0o600)
    return str(file)


# --- hostile requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_request_gets_a_problem_and_the_end_of_its_connection(served: Served, what: str) -> None:
    sent, status = HOSTILE[what]
    async with wire(served.url) as connection:
        connection.send(sent)
        reply = await connection.reply()
        assert reply.status == status and reply.record["status"] == status, reply
        assert reply.code in (
            "bad_request",
            "head_too_large",
            "body_too_large",
            "misdirected",
            "permission_denied",
            "not_found",
        )
        assert reply.headers["x-request-id"] == reply.record["request_id"]
        assert reply.headers["connection"] == "close" and await connection.rest() == b""
    assert (await ask(served.url, head())).status == 200


@pytest.mark.timed(0.1)
async def test_a_chunk_that_never_comes_is_a_body_that_is_late() -> None:
    async with serving(request_timeout=0.2) as served:
        reply = await ask(served.url, POST + b"Transfer-Encoding: chunked\r\n\r\n7fffffff\r\nabc")
        assert (reply.status, reply.code) == (408, "timeout")


@pytest.mark.timed(0.2)
async def test_heads_that_come_byte_by_byte_end_in_time_and_others_are_answered_meanwhile() -> None:
    async with serving(request_timeout=0.4) as served, AsyncExitStack() as stack:
        begun_at = monotonic()
        slow = [await stack.enter_async_context(wire(served.url)) for _ in range(100)]

        async def dribble() -> None:
            for byte in head(x="a" * 10_000):
                for connection in slow:
                    connection.send(bytes([byte]))
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as group:
            group.start_soon(dribble)
            assert (await ask(served.url, head())).status == 200
            assert {(await connection.reply()).status for connection in slow} == {408}
            assert monotonic() - begun_at < 3
            group.cancel_scope.cancel()


async def test_a_connection_that_says_nothing_is_ended_without_a_word() -> None:
    async with serving(request_timeout=0.1) as served, wire(served.url) as connection:
        assert await connection.rest() == b""


@pytest.mark.timed(0.1)
async def test_the_head_of_a_later_request_has_the_same_time() -> None:
    async with serving(request_timeout=0.2) as served, wire(served.url) as connection:
        connection.send(head())
        assert (await connection.reply()).status == 200
        await anyio.sleep(0.3)  # idle for longer than a head may take
        connection.send(head()[:10])
        assert (await connection.reply()).status == 408


@pytest.mark.timed(0.1)
async def test_a_body_that_comes_slowly_is_late() -> None:
    async with serving(request_timeout=0.2) as served, wire(served.url) as connection:
        connection.send(head("POST", content_length="5") + b"ab")
        assert (await connection.reply()).code == "timeout"
        assert await connection.rest() == b""


# --- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_of_one_gib_is_refused_and_costs_no_memory(announced: bool) -> None:
    async with serving(max_body_bytes=4 * MIB) as served, wire(served.url) as connection:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        part, sent = b"100000\r\n" + bytes(MIB) + b"\r\n", 0
        how = {"content_length": str(1024 * MIB)} if announced else {"transfer_encoding": "chunked"}
        connection.send(head("POST", **how))
        try:
            for _ in range(1024):
                connection.send(part)
                await connection.writer.drain()
                sent += 1
        except ConnectionError:
            pass
        assert sent < 64, "most of it was never taken"
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 48 * 1024, grown_kib
        assert (await ask(served.url, head())).status == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_above_the_bound_is_told_why_and_one_of_the_bound_is_taken(announced: bool) -> None:
    async with serving(max_body_bytes=100_000) as served:
        for size, status in ((100_000, 200), (100_001, 413)):
            body = bytes(size)
            if announced:
                data = head("POST", content_length=str(size)) + body
            else:
                data = head("POST", transfer_encoding="chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
            reply = await ask(served.url, data)
            assert reply.status == status
            assert status == 200 or (reply.code == "body_too_large" and reply.headers["connection"] == "close")


async def test_a_client_that_asks_first_is_told_before_it_sends(served: Served) -> None:
    async with wire(served.url) as connection:
        connection.send(head("POST", expect="100-continue", content_length="3"))
        assert (await connection.reply()).status == 100
        connection.send(b"abc")
        assert (await connection.reply()).record["size"] == 3
        connection.send(head("POST", expect="100-continue", content_length=str(1024 * MIB)))
        assert (await connection.reply()).status == 413


async def test_a_client_that_goes_on_sending_still_reads_why_it_is_refused(served: Served) -> None:
    async with wire(served.url) as connection:
        connection.send(head("POST", content_length=str(1024 * MIB)))
        for _ in range(10):  # as clients do that look at the reply when all is sent
            connection.send(bytes(MIB // 10))
            await connection.writer.drain()
            await anyio.sleep(0.01)
        assert (await connection.reply()).status == 413


async def test_bodies_that_are_under_way_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "FULL_BODIES", 2)
    taken, hold = list[int](), bodies.Bodies._hold

    def noted(self: bodies.Bodies, size: int, held: list[int]) -> None:
        hold(self, size, held)
        taken.append(size)

    monkeypatch.setattr(bodies.Bodies, "_hold", noted)
    async with serving(max_body_bytes=10_000, request_timeout=20) as served, AsyncExitStack() as stack:
        halves = [await stack.enter_async_context(wire(served.url)) for _ in range(3)]
        for connection in halves[:2]:
            connection.send(head("POST", content_length="10000") + bytes(9_000))
        await eventually(lambda: sum(taken) == 18_000)
        halves[2].send(head("POST", content_length="10000") + bytes(9_000))
        refused = await halves[2].reply()
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "overloaded", "1")
        for connection in halves[:2]:
            connection.send(bytes(1_000))
            assert (await connection.reply()).record["size"] == 10_000
        assert (await ask(served.url, head("POST", content_length="10000") + bytes(10_000))).status == 200


async def test_the_longest_idle_connection_gives_way_and_none_that_is_at_work() -> None:
    async with serving(max_connections=3) as served, AsyncExitStack() as stack:
        first, second, third, fourth = [await stack.enter_async_context(wire(served.url)) for _ in range(4)]
        assert await first.rest() == b""
        for connection in (second, third, fourth):
            served.begun = anyio.Event()
            connection.send(head(path="/slow"))
            await served.begun.wait()
        refused = await ask(served.url, head())
        assert (refused.status, refused.code) == (503, "overloaded")
        served.may_end.set()
        for connection in (second, third, fourth):
            assert (await connection.reply()).status == 200
        assert (await ask(served.url, head())).status == 200


async def test_requests_in_a_row_are_answered_in_their_order_up_to_a_bound() -> None:
    async with serving() as served, wire(served.url) as connection:
        connection.send(b"".join(head(x_request_id=f"n{i}") for i in range(10)))
        assert [(await connection.reply()).headers["x-request-id"] for _ in range(10)] == [f"n{i}" for i in range(10)]
        connection.send(head(path="/slow") * 40)
        assert await connection.rest() == b""


async def test_a_reply_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_S", 0.2)
    async with serving() as served, wire(served.url) as unread:
        unread.reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one who does not read
        unread.send(head(path="/stream"))
        await served.begun.wait()
        await eventually(lambda: not served._listener.live.all)


@pytest.mark.timed(0.2)
async def test_more_requests_than_the_rate_are_told_when_to_come_again() -> None:
    async with serving(rate=2) as served:
        assert [(await ask(served.url, head())).status for _ in range(2)] == [200, 200]
        refused = await ask(served.url, head())
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "rate_limited", "1")
        async with wire(served.url) as connection:
            for _ in range(2):  # a caller that has been told keeps its connection
                connection.send(head("POST", content_length="3") + b"abc")
                assert (await connection.reply()).status == 429


@pytest.mark.timed(0.3)
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_busy_caller_takes_nothing_from_the_probes(path: str) -> None:
    """They come from the same address, and what they are refused has the service restarted."""
    async with serving(rate=1) as served:
        assert [(await ask(served.url, head())).status for _ in range(2)] == [200, 429]
        assert (await ask(served.url, head(path=path))).status != 429


# --- who asks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {UNKNOWN}"}, 401),
        ({"authorization": f"Bearer {EXPIRED}"}, 401),
        ({"authorization": f"Basic {KNOWN}"}, 401),
        ({"authorization": f"bearer {KNOWN}"}, 200),
        ({"authorization": f"Bearer {KNOWN}", "host": "any.example"}, 200),
    ],
)
async def test_a_token_is_asked_for(tokens: str, headers: dict[str, str], status: int) -> None:
    async with serving(tokens_file=tokens) as served:
        reply = await ask(served.url, head(**headers))
        assert reply.status == status
        if status == 401:
            assert reply.code == "unauthenticated" and reply.headers["www-authenticate"].startswith("Bearer")
        else:
            assert reply.record["who"] == "billing"


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
async def test_probes_need_no_token_and_may_use_any_name(tokens: str, path: str) -> None:
    async with serving(tokens_file=tokens, hosts=("dlq.example",)) as served:
        reply = await ask(served.url, head(path=path, host="10.1.2.3:8000", authorization=f"Bearer {UNKNOWN}"))
        assert reply.status == 200 and reply.record["who"] == ""
        assert (await ask(served.url, head(authorization=f"Bearer {KNOWN}", host="dlq.example:8000"))).status == 200
        assert (await ask(served.url, head(authorization=f"Bearer {KNOWN}"))).status == 421


async def test_a_body_without_a_token_is_not_read(tokens: str) -> None:
    async with serving(tokens_file=tokens) as served, wire(served.url) as connection:
        connection.send(head("POST", content_length="1000") + bytes(10))
        reply = await connection.reply()
        assert reply.status == 401 and await connection.rest() == b""


@pytest.mark.timed(0.2)
async def test_each_caller_has_a_rate_of_its_own(tokens: str) -> None:
    append_token(tokens, line_of("other", frozenset({"read"}), UNKNOWN))
    async with serving(tokens_file=tokens, rate=1) as served:
        asked = [await ask(served.url, head(authorization=f"Bearer {token}")) for token in (KNOWN, KNOWN, UNKNOWN)]
        assert [reply.status for reply in asked] == [200, 429, 200]


async def test_no_token_and_no_payload_is_ever_logged(tokens: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(tokens_file=tokens) as served:
        for token in (KNOWN, EXPIRED, UNKNOWN):
            for path in ("/echo", f"/{token}", f"/echo?token={token}", f"/{token}/../x", "/fail"):
                sent = head("POST", path, authorization=f"Bearer {token}", x_request_id=token, content_length="9")
                reply = await ask(served.url, sent + b"s3cr3t123")
                assert token not in str(reply.headers)
    assert "caller billing" in caplog.text
    assert not TOKEN.search(caplog.text) and "s3cr3t" not in caplog.text and "?" not in caplog.text


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST."])
async def test_loopback_may_be_called_by_its_names(served: Served, host: str) -> None:
    assert (await ask(served.url, head(host=host))).status == 200


async def test_a_page_of_the_same_site_may_ask(served: Served) -> None:
    same = head("POST", host="localhost:80", origin="http://localhost:80", sec_fetch_site="same-origin")
    assert (await ask(served.url, same)).status == 200


@pytest.mark.parametrize("given", ["a" * 65, "a b", "ä", "a;b"])
async def test_a_request_has_a_name_which_is_its_own_if_that_is_sound(served: Served, given: str) -> None:
    sound = await ask(served.url, head(x_request_id="job-7.a_b"))
    assert sound.headers["x-request-id"] == sound.record["id"] == "job-7.a_b"
    made = await ask(served.url, head(x_request_id=given))
    assert made.headers["x-request-id"] == made.record["id"] != given


async def test_every_reply_says_what_browsers_must_not_do_with_it(served: Served) -> None:
    for reply in (await ask(served.url, head()), await ask(served.url, head(host="evil.example"))):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["content-security-policy"] == "default-src 'none'"
        assert "server" not in reply.headers


async def test_a_failure_is_a_problem_that_tells_nothing(served: Served) -> None:
    async with wire(served.url) as connection:
        connection.send(head(path="/fail"))
        reply = await connection.reply()
        assert reply.status == 500 and b"payload" not in reply.body


# --- the end ---------------------------------------------------------------------------------------------


async def test_the_end_answers_what_is_under_way_and_ends_streams() -> None:
    served, replies, streamed = Served(ServiceSettings(port=0), 20.0), list[Reply](), list[bytes]()
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        async with served:
            idle, slow, half, stream = [await stack.enter_async_context(wire(served.url)) for _ in range(4)]
            half.send(head("POST", content_length="5") + b"abc")
            stream.send(head(path="/stream"))
            await stream.reader.readuntil(b"\r\n\r\n")
            served.begun = anyio.Event()
            slow.send(head(path="/slow"))
            await served.begun.wait()

            async def finish() -> None:
                assert await idle.rest() == b""  # the end has begun
                with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
                    await asyncio.open_connection(served._address, served._port)
                served.may_end.set()
                half.send(b"de")
                replies.extend([await slow.reply(), await half.reply()])

            async def read() -> None:
                streamed.append(await stream.rest())

            group.start_soon(finish)
            group.start_soon(read)
            served.stop.set()
            begun_at = monotonic()
        assert monotonic() - begun_at < 15
    assert [reply.status for reply in replies] == [200, 200]
    assert all(reply.headers["connection"] == "close" for reply in replies)
    assert streamed[0].endswith(b"0\r\n\r\n"), "to its end"


async def test_the_end_does_not_wait_for_a_client_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads nothing of a reply has a moment then; one that reads has all of the time."""
    monkeypatch.setattr(protocol, "UNREAD_AT_END_S", 0.2)
    async with AsyncExitStack() as stack:
        async with serving(grace_s=20) as served:
            unread = await stack.enter_async_context(wire(served.url))
            unread.reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one who does not read
            unread.send(head(path="/stream"))
            await eventually(lambda: any(one.flow.write_paused for one in served._listener.live.all))  # type: ignore[attr-defined]
            begun_at = monotonic()
        assert monotonic() - begun_at < 15


@pytest.mark.timed(0.1)
async def test_the_end_waits_for_a_client_that_reads_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_AT_END_S", 0.1)
    async with AsyncExitStack() as stack, anyio.create_task_group() as group, serving(grace_s=20) as served:
        slow = await stack.enter_async_context(wire(served.url))
        slow.send(head(path="/large"))
        assert (await slow.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

        async def read() -> None:
            size = 0
            while part := await slow.reader.read(MIB):
                size += len(part)
                await anyio.sleep(0.01)
            assert size == 32 * MIB

        group.start_soon(read)


async def test_the_end_waits_for_nobody_beyond_its_time(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(ServiceSettings(port=0), 0.2)
    async with AsyncExitStack() as stack:
        async with served:
            stuck = await stack.enter_async_context(wire(served.url))
            stuck.send(head(path="/slow"))
            await served.begun.wait()
            begun_at = monotonic()
        assert monotonic() - begun_at < 15
        told = await stuck.reply()
        assert (told.status, told.code) == (503, "stopping")
    assert "Traceback" not in caplog.text


def test_an_address_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen at 127.0.0.1:{port} .*: Address already in use"
        ) as raised:
            Served(ServiceSettings(port=port), 1)
    assert "\n" not in str(raised.value)


# --- TLS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write(authority: trustme.CA, folder: Path, name: str = "localhost") -> dict[str, Any]:
    """Put a certificate of the name into the folder; return the settings that name it."""
    issued = authority.issue_cert(name)
    for file, content in (("key.new", issued.private_key_pem), ("cert.new", issued.cert_chain_pems[0])):
        (folder / file).write_bytes(content.bytes())
        (folder / file).rename((folder / file).with_suffix(".pem"))
    return {"cert_file": str(folder / "cert.pem"), "key_file": str(folder / "key.pem")}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def named(url: str) -> str:
    return url.replace("127.0.0.1", "localhost")


async def test_https_is_spoken_and_a_large_body_above_the_bound_is_told_why(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with serving(**write(authority, tmp_path), max_body_bytes=100_000) as served:
        assert served.url.startswith("https://")
        context = trusting(authority)
        assert (await ask(named(served.url), head(), context)).status == 200
        chunked = head("POST", transfer_encoding="chunked") + b"%x\r\n%s\r\n" % (200_000, bytes(200_000))
        assert (await ask(named(served.url), chunked, context)).status == 413
        assert (await ask(named(served.url), head(x="a" * 40_000), context)).status == 431


async def test_old_tls_and_no_tls_are_refused(authority: trustme.CA, tmp_path: Path) -> None:
    async with serving(**write(authority, tmp_path), request_timeout=0.3) as served:
        context = trusting(authority)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")  # else this side itself would refuse
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(named(served.url), head(), context)
        async with wire(served.url) as plain:
            plain.send(head())
            assert not (await plain.rest()).startswith(b"HTTP")


async def test_a_handshake_that_stalls_ends(authority: trustme.CA, tmp_path: Path) -> None:
    async with serving(**write(authority, tmp_path), request_timeout=0.2) as served, wire(served.url) as stalled:
        stalled.send(b"\x16\x03\x01")
        begun_at = monotonic()
        await stalled.rest()
        assert monotonic() - begun_at < 15


async def test_a_certificate_that_changes_is_used_and_one_that_is_wrong_is_not(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "CERTIFICATE_LOOK_S", 0.02)
    caplog.set_level(logging.INFO)
    other = trustme.CA()
    async with serving(**write(authority, tmp_path)) as served:
        (tmp_path / "cert.pem").write_text("nothing")
        await eventually(lambda: "the certificate stays as it was" in caplog.text)
        assert (await ask(named(served.url), head(), trusting(authority))).status == 200
        write(other, tmp_path)
        await eventually(lambda: "certificate read from" in caplog.text)
        assert (await ask(named(served.url), head(), trusting(other))).status == 200


@pytest.mark.parametrize("spoil", ["cert.pem", "key.pem"])
def test_a_certificate_that_cannot_be_used_is_said_in_one_line(
    authority: trustme.CA, tmp_path: Path, spoil: str
) -> None:
    files = write(authority, tmp_path)
    for act in (lambda path: path.write_text("x"), os.unlink):
        act(tmp_path / spoil)
        with pytest.raises(ConfigError, match="cannot be used for TLS") as raised:
            Served(ServiceSettings(port=0, **files), 1)
        assert "\n" not in str(raised.value)
