"""Tracing from the command line: `OTEL_*` set up the worker's SDK, and headers come through every command."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli, wait_for_line
from tests.support.waiting import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def work_off(cli: Cli, shop: Path, **variables: str) -> tuple[str, str]:
    """Run a worker until the queue is empty, stop it in order; return what it wrote."""
    process = cli.spawn("worker", "--app", "shop:queue", cwd=shop, **variables)
    wait_for_line(process, "started")

    async def emptied(queue: Any) -> None:
        async def is_empty() -> bool:
            return bool((await queue.stats()).open == 0)

        await eventually(is_empty)

    cli.do(emptied)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    return out, errors


def test_the_variables_set_up_the_workers_sdk_and_its_stop_flushes(cli: Cli, shop: Path) -> None:
    cli.seed(("good", {}), delay=0, headers={"traceparent": TRACEPARENT})
    out, _ = work_off(cli, shop, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="till")
    decoder, spans, at = json.JSONDecoder(), [], 0
    while at < len(out.rstrip()):
        span, at = decoder.raw_decode(out, at)
        spans.append(span)
        at += len(out[at:]) - len(out[at:].lstrip())
    assert [span["name"] for span in spans] == ["receive default", "process default", "ack default"]
    attempt = spans[1]
    assert attempt["context"]["trace_id"] == "0x" + TRACEPARENT[3:35]
    assert attempt["parent_id"] == "0x" + TRACEPARENT[36:52]
    assert attempt["resource"]["attributes"]["service.name"] == "till"


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Something that takes traces by OTLP."""
    received: list[tuple[str, bytes]] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


needs_otlp = pytest.mark.skipif(
    not os.environ.get("CI") and find_spec("google") is None, reason="the extra otlp is not installed"
)


@needs_otlp
def test_an_endpoint_alone_asks_for_otlp(cli: Cli, shop: Path) -> None:
    cli.seed(("good", {}), delay=0)
    with collector() as (url, received):
        _, errors = work_off(cli, shop, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert "stopped: resolved 1" in errors
    paths, bodies = zip(*received, strict=True)
    assert set(paths) == {"/v1/traces"}
    assert all(any(name in body for body in bodies) for name in (b"process default", b"uno-dead-letter"))


def test_a_wrong_exporter_is_one_line_and_status_2(cli: Cli, shop: Path) -> None:
    process = cli.spawn("worker", "--app", "shop:queue", cwd=shop, OTEL_TRACES_EXPORTER="zipkin")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors == "uno: error: OTEL_TRACES_EXPORTER is 'zipkin': allowed are otlp, console and none\n"


def test_operators_leave_the_trace_of_a_letter_as_it_is(cli: Cli) -> None:
    [letter_id] = cli.seed(("good", {}), delay=60, headers={"traceparent": TRACEPARENT})
    assert cli("retry", letter_id, "--yes").status == 0
    assert cli("show", letter_id, "-o", "json").record["headers"] == {"traceparent": TRACEPARENT}
