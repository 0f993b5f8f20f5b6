"""`uno dead-letter service` and `token`: processes as the guide starts them, and how they end."""

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from tests.support.cli import Cli, wait_for_line
from tests.support.probes import Answer, get, get_until
from tests.support.proxy import Proxy
from tests.support.waiting import SOON_S
from uno.event_bus.dead_letter.service.access import TOKEN
from uno.event_bus.dead_letter.store.local_node import free_port

JSON = {"content-type": "application/json"}


class Service(NamedTuple):
    """A process that serves, and where."""

    process: "subprocess.Popen[str]"
    url: str

    @property
    def address(self) -> tuple[str, int]:
        """Where sockets find it."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def capture(self, **headers: str) -> Answer:
        """Send one event."""
        return get(self.url, "/v1/letters", "POST", JSON | headers, b'{"type": "good", "payload": {}}')

    def stop(self) -> str:
        """Stop it in order; return what it logged and was not read yet."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, errors
        return errors


@contextmanager
def serving(cli: Cli, *words: str, cwd: Path | None = None, **settings: str) -> Iterator[Service]:
    """Run the command; its port is any free one unless that is said."""
    process = cli.spawn("service", *words, cwd=cwd, **({"DLQ_SERVICE_PORT": "0"} | settings))
    try:
        line = wait_for_line(process, "service at ")
        yield Service(process, re.findall(r"https?://[0-9.:]+\d", line)[0])
    finally:
        process.kill()
        process.communicate()


def test_the_guides_variables_serve_the_queue_until_sigterm(cli: Cli) -> None:
    port = str(free_port())
    with serving(cli, DLQ_SERVICE_PORT=port, DLQ_METRICS_PORT="0") as service:
        assert service.url == f"http://127.0.0.1:{port}"
        get_until(service.url, "/readyz", 200)
        captured = service.capture()
        assert captured.status == 201
        assert cli("show", captured.record["id"]).status == 0
        for words in (("--port", port), ("--url", service.url), ("--port", port, "--live")):
            told = cli("health", *words)
            assert told.status == 0 and told.record["ok"], told
        assert "the service has stopped" in service.stop()


def test_requests_under_way_are_answered_and_open_streams_end_at_sigterm(cli: Cli) -> None:
    """Within the grace time, also while one reads nothing, and with exit 0; a stream ends after a whole line."""
    cli.seed(*(("big", {"x": "y" * 20_000}) for _ in range(500)))
    with serving(cli, DLQ_SHUTDOWN_GRACE="20") as service, ExitStack() as stack:
        host = "{}:{}".format(*service.address)
        unread, read, *halves = [stack.enter_context(closing(_narrow(service.address))) for _ in range(10)]
        for stream in (unread, read):
            asked = f"GET /v1/letters?whole=true HTTP/1.1\r\nHost: {host}\r\nAccept: application/x-ndjson\r\n\r\n"
            stream.sendall(asked.encode())
            assert stream.recv(12) == b"HTTP/1.1 200"
        begun = _until(read, b"}\n")  # a line of 10 MB, which do not fit into what lies between
        body = b'{"type": "late", "payload": {}}'
        request = f"POST /v1/letters HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        for half in halves:
            half.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        get_until(service.url, "/readyz", 200)  # the heads are in: what comes later is answered later
        begun_at = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        wait_for_line(service.process, "takes no more connections")
        lines = (begun + _read(read)).partition(b"\r\n\r\n")[2]
        time.sleep(0.5)  # as slow clients do: the end waits for them
        for half in halves:
            half.sendall(body[10:])
        for half in halves:
            answer = _read(half)
            assert answer.startswith(b"HTTP/1.1 201") and b"connection: close" in answer
        service.process.communicate(timeout=40)
        assert service.process.returncode == 0 and time.monotonic() - begun_at < 20 + 2
        assert lines.endswith(b"\r\n0\r\n\r\n"), "to its end"
        *letters, last = _unchunked(lines).splitlines(keepends=True)
        assert 0 < len(letters) < 500 and all(json.loads(letter)["payload"] for letter in letters)
        assert last.endswith(b"\n") and json.loads(last)["problem"]["code"] == "store_unavailable"
    late = [record["type"] for record in cli("list").records if record["type"] == "late"]
    assert late == ["late"] * len(halves)


def test_it_answers_while_redis_is_away_and_says_so(cli: Cli) -> None:
    with Proxy(cli.url) as proxy:
        proxy.silence()
        with serving(cli, DLQ_REDIS_URL=proxy.url, DLQ_OPERATION_TIMEOUT="0.2") as service:
            assert get(service.url, "/healthz").status == 200
            told = get(service.url, "/readyz")
            assert told.status == 503 and told.record["why"]
            assert service.capture().status == 503
            proxy.heal()
            get_until(service.url, "/readyz", 200)
            _soon(lambda: service.capture().status == 201)
            service.stop()


def test_in_worker_mode_it_runs_the_handlers_of_an_application(cli: Cli, shop: Path) -> None:
    with serving(cli, "--app", "shop:queue", cwd=shop, DLQ_WORKER_MODE="true", DLQ_RETRY_DELAY="0") as service:
        wait_for_line(service.process, "started: queue default, 2 handlers")
        assert service.capture().status == 201
        _soon(lambda: get(service.url, "/v1/stats").record["totals"]["resolved"] == 1)
        assert "stopped: resolved 1" in service.stop()


def test_tokens_are_asked_for_and_change_without_a_restart(cli: Cli, tmp_path: Path) -> None:
    file = str(tmp_path / "tokens")
    first = cli("token", "billing", "--role", "capture", "--append", file).out.strip()
    with serving(cli, "--tokens-file", file, DLQ_SERVICE_HOST="0.0.0.0", DLQ_LOG_LEVEL="debug") as service:
        assert service.capture().status == 401
        assert service.capture(authorization=f"Bearer {first}").status == 201
        assert get(service.url, "/v1/letters", headers={"authorization": f"Bearer {first}"}).status == 403
        assert get(service.url, "/healthz").status == 200
        second = cli("token", "oncall", "--role", "operate", "--append", file).out.strip()
        _soon(lambda: get(service.url, "/v1/letters", headers={"authorization": f"Bearer {second}"}).status == 200)
        logged = service.stop()
    assert "caller billing" in logged and "caller oncall" in logged and not TOKEN.search(logged)


def test_a_body_of_one_gib_costs_the_process_no_memory(cli: Cli) -> None:
    with serving(cli, DLQ_SERVICE_MAX_BODY_BYTES="1048576") as service:
        assert service.capture().status == 201
        before, part = _peak_kib(service.process.pid), b"100000\r\n" + bytes(1_048_576) + b"\r\n"
        for _ in range(3):
            with closing(socket.create_connection(service.address, timeout=SOON_S)) as client:
                client.sendall(b"POST /v1/letters HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
                with suppress(ConnectionError):
                    for _ in range(1024):
                        client.sendall(part)
                    pytest.fail("all of it was taken")
        assert _peak_kib(service.process.pid) - before < 16 * 1024
        assert service.capture().status == 201


def test_health_asks_a_service_that_speaks_tls(cli: Cli, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with serving(cli, DLQ_SERVICE_CERT_FILE=str(tmp_path / "both.pem")) as service:
        url = service.url.replace("127.0.0.1", "localhost")
        told = cli("health", "--url", url, "--live", DLQ_SERVICE_CA_FILE=str(tmp_path / "ca.pem"))
        assert told.status == 0 and told.record == {"ok": True}
        assert cli("health", "--url", url, "--live").status == 5
        assert cli("health", "--url", url, DLQ_SERVICE_CA_FILE=str(tmp_path / "no.pem")).status == 2
        service.stop()


@pytest.mark.parametrize(
    ("words", "settings", "why"),
    [
        ((), {"DLQ_SERVICE_HOST": "0.0.0.0"}, "there are no tokens: set DLQ_SERVICE_TOKENS_FILE"),
        (("--tokens-file", "/nowhere/tokens"), {}, "'/nowhere/tokens' cannot be read: No such file"),
        (("--host", "not a host"), {}, "DLQ_SERVICE_HOST (host) is 'not a host'"),
        (("--host", "127.0.0.1", "--app", "shop:queue"), {}, "set DLQ_WORKER_MODE=true"),
        ((), {"DLQ_WORKER_MODE": "true", "DLQ_APP": ""}, "no handlers are known"),
        ((), {"DLQ_SERVICE_CERT_FILE": "/nowhere/cert"}, "'/nowhere/cert' cannot be used for TLS: No such file"),
        ((), {"DLQ_SERVICE_PROT": "1"}, "did you mean DLQ_SERVICE_PORT?"),
        ((), {"DLQ_REDIS_URL": "", "REDIS_URL": ""}, "no Redis URL is set"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    cli: Cli, words: tuple[str, ...], settings: dict[str, Any], why: str
) -> None:
    ran = cli("service", "--port", "0", *words, **settings)
    assert ran.status == 2 and ran.err.count("\n") == 1 and why in ran.err, ran


def test_a_port_that_is_taken_is_said_in_one_line(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = cli("service", "--port", str(taken.getsockname()[1]))
    assert ran.status == 2 and "Address already in use" in ran.err and ran.err.count("\n") == 1


def test_a_queue_that_cannot_be_served_ends_it_in_one_line(cli: Cli) -> None:
    cli.seed(("good", {}))
    process = cli.spawn("service", "--port", "0", DLQ_SHARDS="8")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 4
    assert errors.splitlines()[-1].startswith("uno: error: queue 'default'") and "Traceback" not in errors


def test_a_second_signal_leaves_at_once(cli: Cli) -> None:
    with serving(cli) as service, closing(socket.create_connection(service.address, timeout=SOON_S)) as half:
        half.sendall(b"POST /v1/letters HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        get_until(service.url, "/readyz", 200)
        service.process.send_signal(signal.SIGTERM)
        wait_for_line(service.process, "takes no more connections")
        service.process.send_signal(signal.SIGTERM)
        _, errors = service.process.communicate(timeout=SOON_S)
        assert service.process.returncode == 128 + signal.SIGTERM and "leaving at once" in errors


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "httptools"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    script = (
        f"import sys; sys.modules['{missing}'] = None; "
        "sys.argv[1:] = ['dead-letter', 'service']; from uno.cli.main import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "uno: error: the service is an extra: pip install 'uno-dead-letter[service]'\n"


def test_a_token_is_shown_once_and_its_line_has_its_hash_alone(cli: Cli, tmp_path: Path) -> None:
    ran = cli("token", "ci", "--role", "read", "--role", "capture", "--days", "1")
    assert TOKEN.fullmatch(ran.out.strip()) and not TOKEN.search(ran.err)
    assert re.search(
        r"^ci capture,read sha256:[0-9a-f]{64} until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", ran.err, re.MULTILINE
    )
    file = tmp_path / "tokens"
    appended = cli("token", "ci", "--role", "read", "--append", str(file))
    assert appended.err == "" and appended.out.strip() not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_without_sound_words_is_refused(cli: Cli) -> None:
    assert cli("token", "two words", "--role", "read").status == 2
    assert cli("token", "x").status == 2
    assert cli("token", "x", "--role", "write").status == 2


def _soon(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _read(connection: socket.socket) -> bytes:
    read = b""
    while part := connection.recv(65_536):
        read += part
    return read


def _narrow(address: tuple[str, int]) -> socket.socket:
    """Connect, with room for little of what comes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    connection.settimeout(SOON_S)
    connection.connect(address)
    return connection


def _unchunked(sent: bytes) -> bytes:
    """Return what was sent in chunks."""
    parts = []
    while sent:
        size, _, sent = sent.partition(b"\r\n")
        parts.append(sent[: int(size, 16)])
        sent = sent[int(size, 16) + 2 :]
    return b"".join(parts)


def _until(connection: socket.socket, mark: bytes) -> bytes:
    """Read until this has come."""
    read = b""
    while mark not in read:
        read += connection.recv(65_536)
    return read


def _peak_kib(pid: int) -> int:
    """Most memory that a process had resident so far."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
