"""TLS and AUTH to Redis: letters go by it alone, each failure is one line, and secrets rotate while workers run."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.integration.conftest import Queues, queues_on
from tests.support.cli import APP, Cli, wait_for_line
from tests.support.spools import all_sent
from tests.support.tls import NAME, Certificates, TlsCluster, TlsServer, Wire, tapped
from tests.support.waiting import eventually, patiently, running
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterError,
    DeadLetterQueue,
    PermissionDenied,
    StoreUnavailable,
)

PASSWORD = "s3cr3t-word"
MARKER = "m4rk-of-a-payload"
NO_AUTHORITY = r"TLS: the server's certificate is refused \(.*; is redis_ca_file of the authority that signed it\?\)"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def running_tls(certificates: Certificates) -> Iterator[TlsServer]:
    with TlsServer(certificates) as server:
        yield server


@pytest.fixture
def tls(running_tls: TlsServer) -> Iterator[TlsServer]:
    """An empty server, with a user `shop`; it shows the certificate and asks clients for what all tests begin with."""
    running_tls.clean()
    running_tls.client.execute_command("ACL", "SETUSER", "shop", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    yield running_tls
    running_tls.show(running_tls.certificates.server)
    running_tls.client.config_set("tls-auth-clients", "no", "tls-protocols", "")
    running_tls.client.config_set("requirepass", "")


@pytest.fixture(scope="module")
def tls_cluster(certificates: Certificates) -> Iterator[TlsCluster]:
    with TlsCluster(certificates) as cluster:
        yield cluster


async def round_trip(queues: Queues, source: Any = None, **settings: Any) -> None:
    """Capture letters and have a worker resolve them."""
    seen: list[int] = []
    queue = queues(source, **settings)

    @queue.handler()
    async def see(event: dict[str, int]) -> None:
        seen.append(event["n"])

    async with running(queue):
        await queue.add_many([{"n": n} for n in range(20)], delay=0)
        await eventually(lambda: len(seen) == 20)
    assert sorted(seen) == list(range(20))


# -- it works -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["settings", "client"])
async def test_letters_go_by_tls_alone(tls: TlsServer, source: str) -> None:
    """By the settings, and by a client as the guide builds it; the server asks for a certificate, too."""
    tls.client.config_set("tls-auth-clients", "yes")
    files = {"ssl_certfile": str(tls.certificates.client), "ssl_keyfile": str(tls.certificates.client)}
    async with queues_on(tls) as queues:
        if source == "client":
            await round_trip(queues, tls.users_client(username="shop", password=PASSWORD, **files))
        else:
            await round_trip(
                queues,
                tls.bare_url,
                redis_username="shop",
                redis_password=PASSWORD,
                redis_ca_file=str(tls.certificates.ca),
                redis_cert_file=str(tls.certificates.client),
            )
        await asyncio.gather(*[made.aclose() for made in queues._made])
        tls.client.config_set("tls-auth-clients", "no")  # for the look at the end


@pytest.mark.parametrize("source", ["settings", "client"])
async def test_every_node_of_a_cluster_is_reached_alike(tls_cluster: TlsCluster, source: str) -> None:
    """Those that the map names, too: letters of eight shards lie on three nodes without another port."""
    tls_cluster.flush()
    bare = tls_cluster.url.partition("&")[0]
    async with queues_on(tls_cluster, shards=8) as queues:
        if source == "client":
            await round_trip(queues, tls_cluster.users_client())
        else:
            await round_trip(queues, bare, redis_ca_file=str(tls_cluster.certificates.ca))
    assert all(node.client.dbsize() for node in tls_cluster.nodes)


@pytest.mark.timed(0.3)
async def test_a_node_of_a_cluster_that_is_not_what_it_says_is_refused(tls_cluster: TlsCluster) -> None:
    """Its name is checked as the first one's is (P61); the letters of the others go on."""
    tls_cluster.flush()
    node = tls_cluster.nodes[2]
    wrong = str(tls_cluster.certificates.issued("wrong", "other.example"))
    node.client.config_set("tls-cert-file", wrong, "tls-key-file", wrong)
    try:
        config = DeadLetterConfig(shards=8, operation_timeout=1.0)
        async with DeadLetterQueue(tls_cluster.url, config) as queue:
            results = await asyncio.gather(
                *[queue.add({}, ordering_key=str(n)) for n in range(32)], return_exceptions=True
            )
        refused = [str(result) for result in results if isinstance(result, DeadLetterError)]
        assert 0 < len(refused) < 32
        assert all("IP address mismatch" in line and f":{node.port}" in line for line in refused), refused
    finally:
        right = str(tls_cluster.certificates.server)
        # By the client that has been connected since before.
        node.client.config_set("tls-cert-file", right, "tls-key-file", right)


# -- what goes wrong is one line ------------------------------------------------------------------------


async def refused(source: Any, words: str, kind: type[DeadLetterError], **settings: Any) -> None:
    """What is refused at `open` is at `add`: at once, in one line with these words, and the address.

    What is met by silence is refused after the operation timeout.
    """
    for verb in ("open", "add"):
        queue = DeadLetterQueue(source, DeadLetterConfig(shards=1, **({"operation_timeout": 30} | settings)))
        began = monotonic()
        with pytest.raises(kind, match=words) as caught:
            await (queue.open() if verb == "open" else queue.add({"n": 1}))
        await queue.aclose()
        assert monotonic() - began < 15
        for secret in (PASSWORD, "wr0ng", "\n"):
            assert secret not in str(caught.value)
        assert f" at {NAME}:" in str(caught.value)
        assert getattr(caught.value, "certain", True)


type Act = Callable[[TlsServer], tuple[str, dict[str, Any]]]
"""Does something to the server; returns the URL and the settings that are to fail."""


def _shows(name: str, *identities: str, days: tuple[float, float] = (-1, 1)) -> Act:
    def act(tls: TlsServer) -> tuple[str, dict[str, Any]]:
        tls.show(tls.certificates.issued(name, *identities, days=days))
        return tls.url, {}

    return act


def _asks(protocols: str, **settings: str) -> Act:
    def act(tls: TlsServer) -> tuple[str, dict[str, Any]]:
        tls.client.config_set("tls-auth-clients", "yes", "tls-protocols", protocols)
        return tls.url, settings

    return act


HANDSHAKES: dict[str, tuple[Act, str]] = {
    "of another authority": (
        lambda tls: (tls.bare_url, {"redis_ca_file": str(tls.certificates.strange_ca)}),
        NO_AUTHORITY,
    ),
    "of none that the system knows": (lambda tls: (tls.bare_url, {}), NO_AUTHORITY),
    "of another name": (_shows("other", "other.example"), r"Hostname mismatch, .* not valid for 'localhost'"),
    "expired": (_shows("expired", days=(-2, -1)), r"certificate has expired"),
    "not yet valid": (_shows("early", days=(1, 2)), r"certificate is not yet valid"),
    "asks for ours": (_asks("TLSv1.3"), r"TLS: .*the server asks? for a certificate of ours"),
    "asks for ours, 1.2": (_asks("TLSv1.2"), r"TLS: the server asks for a certificate of ours \(redis_cert_file\)"),
    "is too old": (_asks("TLSv1.1"), r"TLS: the server speaks no version from 1.2 on"),
    "is a plain port": (
        lambda tls: (tls.url.replace(str(tls.port), str(tls.plain_port)), {"operation_timeout": 2}),
        r"no answer to the TLS handshake, in time \(is that a port for TLS\?\)|what answers is no TLS",
    ),
    "is a port for TLS": (
        lambda tls: (f"redis://{NAME}:{tls.port}", {}),
        r"closed before the first answer \(is that a port for TLS\? then the URL begins rediss://\)",
    ),
}


@pytest.mark.parametrize("case", HANDSHAKES)
async def test_a_handshake_that_fails_is_redis_that_is_away(tls: TlsServer, case: str) -> None:
    """Whoever mends it does so elsewhere: it is worth another try, nothing was written, and the spool takes it."""
    act, words = HANDSHAKES[case]
    url, settings = act(tls)
    await refused(url, words, StoreUnavailable, **settings)


async def test_captures_wait_on_disk_for_a_certificate(tls: TlsServer, tmp_path: Path) -> None:
    """One that expires at night loses none."""
    tls.show(tls.certificates.issued("expired", days=(-2, -1)))
    config = DeadLetterConfig(shards=1, operation_timeout=0.3, spool_dir=str(tmp_path / "spool"))
    async with DeadLetterQueue(tls.url, config) as queue:
        assert (await queue.add({}, event_id="e1")) == "spooled:e1"
        tls.show(tls.certificates.server)

        await all_sent(queue)
        assert (await patiently(queue.stats)).open == 1


@pytest.mark.parametrize("case", ["wrong password", "unknown user", "none", "switched off"])
async def test_a_login_that_fails_is_a_setting_to_mend(tls: TlsServer, case: str) -> None:
    """At the start, when waiting would look as if Redis were away."""
    settings = {"redis_username": "shop", "redis_password": PASSWORD}
    match case:
        case "wrong password":
            settings["redis_password"] = "wr0ng"
        case "unknown user":
            settings["redis_username"] = "nobody"
        case "none":
            settings = {}
            tls.client.config_set("requirepass", PASSWORD)
        case "switched off":
            tls.client.execute_command("ACL", "SETUSER", "shop", "off")
    await refused(tls.url, r"^user or password was refused \(", ConfigError, **settings)


async def test_a_right_that_is_missing_is_named(tls: TlsServer) -> None:
    """A command, and a key."""
    for rights, words in ((["-client|setname"], "client"), (["resetkeys", "~other:*"], "keys")):
        tls.client.execute_command("ACL", "SETUSER", "shop", "reset", "on", f">{PASSWORD}", "~*", "+@all", *rights)
        await refused(tls.url, words, PermissionDenied, redis_username="shop", redis_password=PASSWORD)


def test_a_command_says_it_and_how_it_ends(tls: TlsServer) -> None:
    """5: Redis is out of reach. 2: a setting has to be mended."""
    cli = Cli(tls.bare_url)
    strange = cli("list", DLQ_REDIS_CA_FILE=str(tls.certificates.strange_ca))
    assert (strange.status, strange.out) == (5, "")
    assert strange.err.startswith("uno: error: Redis is unavailable (TLS: the server's certificate is refused")
    assert strange.err.count("\n") == 1
    ours = {"DLQ_REDIS_CA_FILE": str(tls.certificates.ca)}
    wrong = cli("list", DLQ_REDIS_USERNAME="shop", DLQ_REDIS_PASSWORD="wr0ng", DLQ_OPERATION_TIMEOUT="20", **ours)
    assert wrong.status == 2
    assert "user or password was refused" in wrong.err
    assert "wr0ng" not in wrong.err
    missing = cli("list", DLQ_REDIS_PASSWORD_FILE="/no/file", **ours)
    assert (missing.status, missing.err) == (
        2,
        "uno: error: DLQ_REDIS_PASSWORD_FILE (redis_password_file) is '/no/file': No such file or directory\n",
    )


def test_a_worker_waits_for_a_certificate_and_recovers(tls: TlsServer, tmp_path: Path) -> None:
    """Its line says for what."""
    (tmp_path / "shop.py").write_text(APP)
    tls.show(tls.certificates.issued("expired", days=(-2, -1)))
    process = Cli(tls.url).spawn("worker", "--app", "shop:queue", cwd=tmp_path, DLQ_LOG_FORMAT="plain")
    try:
        line = wait_for_line(process, "waiting for Redis")
        assert "TLS: the server's certificate is refused (certificate has expired)" in line
        tls.show(tls.certificates.server)
        wait_for_line(process, "started")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    assert process.returncode == 0


# -- nothing in the clear -------------------------------------------------------------------------------


WORDS = (PASSWORD.encode(), MARKER.encode(), b"HELLO", b"AUTH", b"EVALSHA", b"SETNAME", b"INFO", b"dlq:{")


async def _pass_a_letter(wire: Wire, scheme: str, **settings: Any) -> None:
    whole: dict[str, Any] = {"redis_username": "shop", "redis_password": PASSWORD, "operation_timeout": 20}
    config = DeadLetterConfig(shards=1, **(whole | settings))
    async with DeadLetterQueue(f"{scheme}://{NAME}:{wire.port}", config) as queue:
        await queue.add({"text": MARKER})


async def test_nothing_is_in_the_clear_on_the_wire(tls: TlsServer) -> None:
    """Neither password, nor payload, nor a word of Redis; where there is no TLS, the same ear hears all of them."""
    async with tapped(tls.plain_port) as wire:
        await _pass_a_letter(wire, "redis")
    assert wire.saw(*WORDS) == list(WORDS)
    async with tapped(tls.port) as wire:
        await _pass_a_letter(wire, "rediss", redis_ca_file=str(tls.certificates.ca))
    assert len(wire.sent) > 1000
    assert wire.saw(*WORDS) == []


@pytest.mark.parametrize("port", ["tls", "plain"])
async def test_nothing_is_in_the_clear_after_a_handshake_that_failed(tls: TlsServer, port: str) -> None:
    """There is no second try without TLS, whoever answers."""
    async with tapped(tls.port if port == "tls" else tls.plain_port) as wire:
        strange = str(tls.certificates.strange_ca)
        with pytest.raises(StoreUnavailable):
            await _pass_a_letter(wire, "rediss", redis_ca_file=strange, operation_timeout=0.3)
    assert wire.connections >= 1
    assert wire.sent.startswith(b"\x16\x03")  # a handshake, and not a word more
    assert wire.saw(*WORDS) == []


# -- rotation -------------------------------------------------------------------------------------------


def _cut(tls: TlsServer) -> None:
    """End every connection but the test's own."""
    tls.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.timed(0.2)
@pytest.mark.parametrize("how", ["rotated", "switched off"])
async def test_a_login_is_lost_and_found_while_a_worker_runs(
    tls: TlsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The server has the new password before the file does, or the user is off for a while: the worker waits."""
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    seen: list[int] = []
    async with queues_on(tls, operation_timeout=0.6) as queues:
        queue = queues(redis_username="shop", redis_password_file=str(path))

        @queue.handler()
        async def see(event: dict[str, int]) -> None:
            seen.append(event["n"])

        async with running(queue):
            await queue.add({"n": 1}, delay=0)
            await eventually(lambda: seen == [1])
            change = ["off"] if how == "switched off" else ["resetpass", ">n3w-word"]
            tls.client.execute_command("ACL", "SETUSER", "shop", *change)
            _cut(tls)
            with pytest.raises(StoreUnavailable, match=r"user or password was refused \("):
                await queue.add({"n": 2}, delay=0, event_id="second")
            await eventually(lambda: "user or password was refused" in caplog.text)
            if how == "switched off":
                tls.client.execute_command("ACL", "SETUSER", "shop", "on")
            else:
                path.write_text("n3w-word\n")
            await queue.add({"n": 2}, delay=0, event_id="second")
            await eventually(lambda: seen == [1, 2])
    for secret in (PASSWORD, "n3w-word"):
        assert secret not in caplog.text


@pytest.mark.timed(0.2)
async def test_files_rotate_while_a_queue_is_used(tls: TlsServer, tmp_path: Path) -> None:
    """An authority, in place; a file that cannot be used meanwhile is told, and is worth another try."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(tls.certificates.ca.read_bytes())
    config = DeadLetterConfig(shards=1, operation_timeout=0.6, redis_ca_file=str(ca))
    async with DeadLetterQueue(tls.bare_url, config) as queue:
        await queue.add({})
        tls.show(tls.certificates.issued("strange", strange=True))
        for content, words in (
            (None, NO_AUTHORITY),
            (b"half", r"DLQ_REDIS_CA_FILE \(redis_ca_file\) is '.*: it has no"),
        ):
            if content is not None:
                ca.write_bytes(content)
            _cut(tls)
            with pytest.raises(StoreUnavailable, match=words):
                await queue.add({})
        ca.write_bytes(tls.certificates.strange_ca.read_bytes())
        await queue.add({})
        ca.unlink()
        await queue.add({})  # connections that stand need no file
        _cut(tls)
        with pytest.raises(StoreUnavailable, match=r"redis_ca_file\) is '.*': No such file"):
            await queue.add({})
