"""The exposition answers from a thread of its own: in the right format, within bounded time, to whoever asks."""

import asyncio
import gzip
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.probes import get
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.telemetry import exposition as module
from uno.event_bus.dead_letter.telemetry import page_server
from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.telemetry.exposition import Exposition

FINE = Condition(True, facts={"queue": "default"})
BAD = Condition(False, "because", {"queue": "default"})


async def nothing() -> None:
    pass


def exposition(refresh: Callable[[], Awaitable[object]] = nothing, **changed: Any) -> Exposition:
    registry = CollectorRegistry()
    counter = Counter("dlq_retry_count", "Attempts", ["queue"], registry=registry)
    counter.labels("default").inc(3, exemplar={"trace_id": "ab" * 16})
    Gauge("dlq_queue_size", "Letters", registry=registry).set(7)
    kept: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "live": lambda: FINE, "ready": lambda: BAD}
    return Exposition(registry, refresh=refresh, **(kept | changed))


async def ask(served: Exposition, path: str, method: str = "GET", **headers: str) -> Any:
    return await anyio.to_thread.run_sync(lambda: get(served.url, path, method, headers=headers))


async def test_metrics_are_openmetrics_for_clients_that_accept_it_and_text_for_others() -> None:
    """Exemplars are in the former alone."""
    async with exposition() as served:
        text = await ask(served, "/metrics?x=1")
        assert text.status == 200 and text.headers["content-type"].startswith("text/plain; version=")
        assert b'dlq_retry_count_total{queue="default"} 3.0\n' in text.body
        page = await ask(served, "/metrics", accept="application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
        assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert {family.name for family in text_string_to_metric_families(page.body.decode())} >= {"dlq_retry_count"}
        assert b'# {trace_id="abab' in page.body and page.body.endswith(b"# EOF\n")
        packed = await ask(served, "/metrics", **{"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(packed.body) == text.body


async def test_probes_are_json_and_503_says_why() -> None:
    async with exposition() as served:
        live, ready = await ask(served, "/livez"), await ask(served, "/readyz")
    assert (live.status, live.record) == (200, {"ok": True, "queue": "default"})
    assert (ready.status, ready.record) == (503, {"ok": False, "why": "because", "queue": "default"})
    assert ready.headers["content-type"] == "application/json"


async def test_other_paths_are_404_and_other_methods_405() -> None:
    async with exposition() as served:
        for path in ("/", "/metrics/", "/../metrics", "/favicon.ico"):
            assert (await ask(served, path)).status == 404
        for method in ("POST", "HEAD", "OPTIONS", "DELETE"):
            answer = await ask(served, "/metrics", method)
            assert answer.status == 405 and answer.headers["allow"] == "GET"


async def test_a_client_with_much_to_say_hears_the_answer_all_the_same() -> None:
    """A server that hung up at once would break its pipe."""
    async with exposition() as served:
        answer = await anyio.to_thread.run_sync(partial(get, served.url, "/metrics", "POST", body=bytes(8_000_000)))
        assert answer.status == 405


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 100_000, b"431"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"GET  /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/2.0\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request_is_refused(said: bytes, status: bytes) -> None:
    async with exposition() as served:
        with connection(served) as client:
            client.sendall(said)
            assert await anyio.to_thread.run_sync(client.recv, 12) == b"HTTP/1.1 " + status


async def test_probes_and_metrics_answer_while_the_event_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """This very test blocks it, by asking from it. Metrics then show the last values."""
    monkeypatch.setattr(module, "REFRESH_S", 0.1)
    async with exposition() as served:
        assert get(served.url, "/livez").status == 200
        assert b"dlq_queue_size 7.0" in get(served.url, "/metrics").body
        assert b"dlq_queue_size 7.0" in get(served.url, "/metrics").body


async def test_each_scrape_waits_for_a_refresh_in_the_loop_of_the_block() -> None:
    loops = []

    async def refresh() -> None:
        await anyio.sleep(0.001)
        loops.append(asyncio.get_running_loop())

    async with exposition(refresh) as served:
        for scrapes in (1, 2):
            await ask(served, "/metrics")
            assert loops == [asyncio.get_running_loop()] * scrapes


async def test_scrapes_that_come_together_share_a_refresh() -> None:
    calls, come, go = 0, 0, anyio.Event()

    async def refresh() -> None:
        nonlocal calls
        calls += 1
        await go.wait()

    def live() -> Condition:
        nonlocal come
        come += 1
        return FINE

    async with exposition(refresh, live=live) as served, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask, served, "/metrics")
        await eventually(lambda: come == 5)
        assert (await ask(served, "/livez")).status == 200  # nobody waits for a scrape
        go.set()
    assert calls == 1


@pytest.mark.timed(0.03)
async def test_a_refresh_that_fails_or_takes_long_leaves_the_last_values(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.1)
    for refresh in (anyio.sleep_forever, _failing):
        async with exposition(refresh) as served:
            assert b"dlq_queue_size 7.0" in (await ask(served, "/metrics")).body
            await anyio.sleep(0.05)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are not fresh: the queue did not answer within 0 s",
        "metrics are not fresh: ValueError: no",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def _failing() -> None:
    raise ValueError("no")


async def test_a_page_that_fails_is_500_and_the_next_one_is_served(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Condition:
        raise ValueError("no")

    async with exposition(ready=broken) as served:
        assert (await ask(served, "/readyz")).status == 500
        assert (await ask(served, "/metrics")).status == 200
    assert "page /readyz failed" in caplog.text


async def test_slow_clients_take_no_place_from_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one takes the place of the oldest."""
    monkeypatch.setattr(page_server, "MOST_CONNECTIONS", 3)
    async with exposition() as served:
        slow = [connection(served) for _ in range(5)]
        for client in slow:
            client.sendall(b"GET /livez HTTP/1.1\r\n")
        assert (await ask(served, "/livez")).status == 200
        for client in slow[:3]:
            assert await anyio.to_thread.run_sync(is_cut_off, client)
        slow[4].sendall(b"\r\n")
        assert (await anyio.to_thread.run_sync(slow[4].recv, 12)) == b"HTTP/1.1 200"
        for client in slow:
            client.close()


async def test_a_client_that_never_comes_to_its_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "CONNECTION_S", 0.1)
    async with exposition() as served:
        with connection(served) as client:
            client.sendall(b"GET /livez")
            assert await anyio.to_thread.run_sync(is_cut_off, client)


async def test_an_address_that_is_taken_is_one_line_that_names_it() -> None:
    async with exposition() as first:
        port = urlsplit(first.url).port
        with pytest.raises(ConfigError, match=rf"^metrics cannot be served at 127\.0\.0\.1:{port}: .*in use$"):
            async with exposition(port=port):
                pass
    async with exposition(port=port) as again:  # it is free once more
        assert (await ask(again, "/livez")).status == 200
    with pytest.raises(ConfigError, match=r"^metrics cannot be served at nowhere\.invalid:9464: "):
        async with exposition(host="nowhere.invalid", port=9464):
            pass


@pytest.mark.timed(0.2)
async def test_it_ends_while_clients_hang_on() -> None:
    """A scrape that waits for its refresh is cut off; no thread is left."""
    begun = anyio.Event()

    async def refresh() -> None:
        begun.set()
        await anyio.sleep_forever()

    async with exposition(refresh) as served:
        with connection(served) as silent, connection(served) as scrape:
            scrape.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            await begun.wait()
            with anyio.fail_after(1):
                await served.__aexit__(None, None, None)
            assert silent.fileno() > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "uno-pages"]


def is_cut_off(client: socket.socket) -> bool:
    """Whether the server hangs up, without an answer."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def connection(served: Exposition) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)
