"""Certificates, a server and a cluster that are reached by TLS, and a wire that is listened to.

Of the servers here only Debian's is built with TLS. Authorities and certificates are made anew by each test process.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, override

import redis
import redis.asyncio
import trustme
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.clusters import Cluster
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.local_node import HOST, LocalNode, free_port

SERVER = "redis-7.0"
NAME = "localhost"


class Certificates:
    """Files of an authority, of a stranger, and of certificates that these have signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ours, self._strange = trustme.CA(), trustme.CA()
        self.ca, self.strange_ca = folder / "ca.pem", folder / "strange-ca.pem"
        self._ours.cert_pem.write_to_path(str(self.ca))
        self._strange.cert_pem.write_to_path(str(self.strange_ca))

    def issued(self, name: str, *identities: str, strange: bool = False, days: tuple[float, float] = (-1, 1)) -> Path:
        """Return the file of a new certificate, with its chain and its key, for so many days from and to now."""
        now = datetime.now(UTC)
        leaf = (self._strange if strange else self._ours).issue_cert(
            *(identities or (HOST, NAME)),
            not_before=now + timedelta(days=days[0]),
            not_after=now + timedelta(days=days[1]),
        )
        path = self._folder / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    @cached_property
    def server(self) -> Path:
        return self.issued("server")

    @cached_property
    def client(self) -> Path:
        return self.issued("client", "worker@shop.example")

    def flags(self, certificate: Path | None = None) -> tuple[str, ...]:
        """What a server's command line says of its certificate; it asks clients for none."""
        path = str(certificate or self.server)
        return (
            *("--tls-cert-file", path, "--tls-key-file", path, "--tls-ca-cert-file", str(self.ca)),
            *("--tls-auth-clients", "no"),
        )


class TlsServer(Server):
    """A server that is reached by TLS at `port`, by plain TCP at `plain_port`; a test's own looks go by its socket."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        super().__init__(SERVER)
        self._take_ports()

    def _take_ports(self) -> None:
        self.port, self.plain_port = free_port(), free_port()
        ports = ("--bind", HOST, "--port", str(self.plain_port), "--tls-port", str(self.port))
        self.options = (*ports, *self.certificates.flags())
        self.bare_url = f"rediss://{NAME}:{self.port}/0"
        """Names no authority."""
        self.url = f"{self.bare_url}?ssl_ca_certs={self.certificates.ca}"

    @override
    def start(self) -> None:
        """Start it; at other ports when somebody was quicker to take these."""
        for _ in range(3):
            try:
                return super().start()
            except RuntimeError:
                if "ddress already in use" not in self.log():
                    raise
                self.stop()
                (self.folder / "server.log").unlink()
                self._take_ports()
        return super().start()

    @property
    @override
    def address(self) -> str:
        return f"{NAME}:{self.port}"

    def show(self, certificate: Path) -> None:
        """Show another certificate from now on."""
        self.client.config_set("tls-cert-file", str(certificate), "tls-key-file", str(certificate))

    @override
    def users_client(self, **options: Any) -> redis.asyncio.Redis:
        """A client as the guide builds it."""
        tls: dict[str, Any] = {"ssl": True, "ssl_cert_reqs": "required", "ssl_ca_certs": str(self.certificates.ca)}
        return redis.asyncio.Redis(host=NAME, port=self.port, **(tls | options))


class TlsNode(LocalNode):
    """A node of a cluster that has a port for TLS alone."""

    def __init__(self, command: Sequence[str], folder: Path, port: int, ca: Path) -> None:
        super().__init__(command, folder, port)
        self._command = [*command, "--port", "0", "--tls-port", str(port)]
        self._ca = ca

    @override
    def _connect(self, timeout_s: float) -> redis.Redis:
        return redis.Redis(
            host=HOST,
            port=self.port,
            ssl=True,
            ssl_ca_certs=str(self._ca),
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )


class TlsCluster(Cluster):
    """Three primaries that are reached by TLS alone, also by each other."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        flags = (*certificates.flags(), "--tls-cluster", "yes", "--tls-replication", "yes")
        super().__init__(SERVER, replicas=0, options=flags)

    @override
    def _node_at(self, port: int, folder: Path) -> LocalNode:
        return TlsNode(self._command, folder, port, self.certificates.ca)

    @property
    @override
    def url(self) -> str:
        return f"{super().url.replace('redis://', 'rediss://')}&ssl_ca_certs={self.certificates.ca}"

    @property
    @override
    def client(self) -> Any:
        raise NotImplementedError("ask a node")

    @override
    def users_client(self, **options: Any) -> Any:
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.certificates.ca)}
        return AsyncRedisCluster(host=HOST, port=self._first().port, **(tls | options))


class Wire:
    """What has passed, by direction."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent = bytearray()
        """By clients."""
        self.answered = bytearray()
        self.connections = 0

    def saw(self, *words: bytes) -> list[bytes]:
        """Return those of the words that have passed in clear, in whatever letters."""
        passed = bytes(self.sent + self.answered).lower()
        return [word for word in words if word.lower() in passed]


@asynccontextmanager
async def tapped(port: int) -> AsyncGenerator[Wire]:
    """A port of its own before this port of the loopback, and what passes there."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: bytearray) -> None:
        try:
            while chunk := await reader.read(65_536):
                to += chunk
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.connections += 1
        server_reader, server_writer = await asyncio.open_connection(HOST, port)
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, server_writer, wire.sent))
            group.create_task(copy(server_reader, writer, wire.answered))

    listening = await asyncio.start_server(connect, HOST, 0)
    wire = Wire(listening.sockets[0].getsockname()[1])
    try:
        yield wire
    finally:
        listening.close()
        listening.close_clients()
        await listening.wait_closed()
